"""Where models live: a folder, or any object store that obstore speaks (s3://, gs://, az://).

Environment:
    MODEL_STORE           a URL or a path, relative to this file; default: the folder `models`
    STORE_TIMEOUT_S       seconds after which a read gives up, retries included; default 10
    STORE_ADDED_DELAY_S   seconds of artificial delay before each read, to stand in for a far store;
                          default 0
    AWS_...               of an s3:// store: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION;
                          outside AWS also AWS_ENDPOINT_URL, and AWS_ALLOW_HTTP=true for plain http
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import obstore
from obstore.exceptions import BaseError, GenericError, NotModifiedError
from obstore.store import from_url

CUSTOMER_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
MAX_RETRIES = 2
NO_SUCH_STORE = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)</Code>")  # S3 and Google, Azure
REASONS = {  # by a pattern of what obstore reports, in words that give no address away
    r"/latest/api/token": "was given no credentials",  # so obstore asked the machine for a role
    r"status code: 40[13]": "refuses the credentials",
    r"BadScheme": "is on plain http, which only AWS_ALLOW_HTTP=true allows",
}


class InvalidCustomerIdError(ValueError):
    """The id is not one that a customer can have."""


class UnknownCustomerError(LookupError):
    """The id is well formed, and the store holds no model for it."""


class StoreUnavailableError(ConnectionError):
    """The store did not answer, or not in time, or not to us."""


class Artifact(NamedTuple):
    """A stored model: its bytes, and the store's tag for this version of them."""

    data: bytes
    etag: str | None


def artifact_path(customer_id: str, artifact: str) -> str:
    """Return where in the store a customer's model is.

    Raises:
        InvalidCustomerIdError: unless the id is all of CUSTOMER_ID.
    """
    if not CUSTOMER_ID.fullmatch(customer_id):
        raise InvalidCustomerIdError(
            "a customer id is 1 to 64 of A-Z, a-z, 0-9, '_', '.' and '-', "
            "and begins with a letter, a digit or '_'"
        )
    return f"{customer_id}/{artifact}"


class ModelStore:
    """Models by customer id.

    Every method raises StoreUnavailableError when the store does not answer in time.
    """

    def __init__(self, url: str | None = None, artifact: str = "model.safetensors"):
        """Take a URL, by default that of MODEL_STORE, and the name of a customer's artifact."""
        url = url or os.environ.get("MODEL_STORE") or "models"
        self.url = url if "://" in url else (Path(__file__).parent / url).resolve().as_uri()
        self._timeout_s = float(os.environ.get("STORE_TIMEOUT_S", 10))
        self._added_delay_s = float(os.environ.get("STORE_ADDED_DELAY_S", 0))
        attempt = timedelta(seconds=self._timeout_s * 0.4)  # a pause and a second one fit in
        self._artifact = artifact
        self._folder = None
        if self.url.startswith("file:"):
            self._store = from_url(self.url, mkdir=True)
            self._folder = Path(self._store.prefix)
        else:
            plain = "true" if self.url.startswith("http:") else os.environ.get("AWS_ALLOW_HTTP")
            client_options = {
                "timeout": attempt,
                "connect_timeout": attempt,
                "allow_http": plain or "false",  # obstore asks the environment only without options
            }
            retry_config = {"max_retries": MAX_RETRIES, "retry_timeout": attempt * 1.25}
            self._store = from_url(
                self.url, client_options=client_options, retry_config=retry_config
            )

    async def read(self, customer_id: str) -> Artifact:
        """Return a customer's artifact.

        Raises:
            InvalidCustomerIdError: before the store is asked.
            UnknownCustomerError: if the store holds no model of this customer.
        """
        return await self._get(customer_id)

    async def read_if_changed(self, customer_id: str, etag: str | None) -> Artifact | None:
        """Return a customer's artifact, or None if it is still the one of this tag.

        Raises what read() raises.
        """
        try:
            return await self._get(customer_id, etag)
        except NotModifiedError:
            return None

    async def exists(self, customer_id: str) -> bool:
        """Return whether a customer has a model. Raises InvalidCustomerIdError."""
        path = artifact_path(customer_id, self._artifact)
        async with self._within_timeout():
            try:
                await obstore.head_async(self._store, path)
                return True
            except FileNotFoundError:
                pass  # HEAD has no body that tells a missing key from a missing bucket: ask again
        try:
            await self._get(customer_id)
        except UnknownCustomerError:
            return False
        return True

    async def write(self, customer_id: str, data: bytes) -> None:
        """Store a customer's artifact; a reader sees the old one or the new one.

        Raises InvalidCustomerIdError.
        """
        path = artifact_path(customer_id, self._artifact)
        async with self._within_timeout():
            await obstore.put_async(self._store, path, data)

    async def list(self) -> list[str]:
        """Return the ids of all customers with a model, sorted."""
        found = []
        async with self._within_timeout():
            async for batch in obstore.list(self._store):
                found += [
                    path.parent.name
                    for path in (PurePosixPath(meta["path"]) for meta in batch)
                    if path.name == self._artifact
                ]
            if self._folder and not self._folder.is_dir():
                raise FileNotFoundError(self._folder)  # obstore takes it for an empty one
        return sorted(found)

    async def _get(self, customer_id: str, known_etag: str | None = None) -> Artifact:
        path = artifact_path(customer_id, self._artifact)
        options = {"if_none_match": known_etag} if known_etag else None
        async with self._within_timeout():
            await asyncio.sleep(self._added_delay_s)
            try:
                found = await obstore.get_async(self._store, path, options=options)
            except FileNotFoundError as error:
                if self._is_missing(error):
                    raise
                raise UnknownCustomerError(f"there is no model for {customer_id}") from None
            except GenericError:  # as of a file where a customer's folder would be
                if not (self._folder and (self._folder / customer_id).is_file()):
                    raise
                raise UnknownCustomerError(f"there is no model for {customer_id}") from None
            return Artifact(bytes(await found.bytes_async()), found.meta["e_tag"])

    def _is_missing(self, error: Exception) -> bool:
        """Return whether it is the store itself that was not found: its folder, its bucket."""
        return not self._folder.is_dir() if self._folder else bool(NO_SUCH_STORE.search(str(error)))

    @asynccontextmanager
    async def _within_timeout(self) -> AsyncIterator[None]:
        """Turn a late or failing store into StoreUnavailableError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except NotModifiedError:
            raise  # an answer, if a short one
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"the model store did not answer in {self._timeout_s:g} s"
            ) from error
        except (BaseError, OSError) as error:
            raise StoreUnavailableError(f"the model store {self._what_is_wrong(error)}") from error

    def _what_is_wrong(self, error: Exception) -> str:
        if self._is_missing(error):
            return "does not exist"
        return next(
            (reason for said, reason in REASONS.items() if re.search(said, str(error))),
            "does not answer",
        )
