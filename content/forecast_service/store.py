"""Where models lie: a folder, or any object store that obstore speaks (s3://, gs://, az://)."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import BaseError, GenericError, NotModifiedError
from obstore.store import from_url

from forecast_service.customer_ids import check_customer_id
from forecast_service.errors import StoreUnavailableError, UnknownCustomerError
from forecast_service.settings import StoreSettings

MAX_RETRIES = 2
NO_SUCH_STORE = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)</Code>")  # S3 and Google, Azure
REASONS = {  # by a pattern of what obstore reports, in words that give no address away
    r"/latest/api/token": "was given no credentials",  # so obstore asked the machine for a role
    r"status code: 40[13]": "refuses the credentials",
    r"BadScheme": "is on plain http, which only AWS_ALLOW_HTTP=true allows",
}


class Artifact(NamedTuple):
    """A stored model: its bytes, and the store's tag for this version of them."""

    data: bytes
    etag: str | None


class ModelStore:
    """Models by customer id.

    Every method raises StoreUnavailableError when the store does not answer in time.
    """

    def __init__(
        self,
        settings: StoreSettings | None = None,
        artifact: str = "model.safetensors",
        *,
        create: bool = False,
    ):
        """Take settings, by default the environment's, and the name of a customer's artifact.

        Raises:
            FileNotFoundError: if its folder does not exist, unless it is to be created.
        """
        settings = settings or StoreSettings()
        self.url = settings.model_store
        self._timeout_s = settings.store_timeout_s
        self._added_delay_s = settings.store_added_delay_s
        attempt = timedelta(seconds=self._timeout_s * 0.4)  # a pause and a second one fit in
        self._artifact = artifact
        self.folder = None
        if self.url.startswith("file:"):
            self.folder = Path(url2pathname(urlsplit(self.url).path))
            if not (create or self.folder.is_dir()):
                raise FileNotFoundError(
                    f"the model store {self.folder} does not exist: train models into it "
                    "(python train_models.py), or name another one in MODEL_STORE"
                )
            self._store = from_url(self.url, mkdir=create)
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

    async def write(self, customer_id: str, data: bytes) -> None:
        """Store a customer's artifact; a reader sees the old one or the new one.

        Raises InvalidCustomerIdError.
        """
        path = self._path(customer_id)
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
            if self.folder and not self.folder.is_dir():
                raise FileNotFoundError(self.folder)  # obstore takes it for an empty one
        return sorted(found)

    def _path(self, customer_id: str) -> str:
        return f"{check_customer_id(customer_id)}/{self._artifact}"

    async def _get(self, customer_id: str, known_etag: str | None = None) -> Artifact:
        path = self._path(customer_id)
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
                if not (self.folder and (self.folder / customer_id).is_file()):
                    raise
                raise UnknownCustomerError(f"there is no model for {customer_id}") from None
            return Artifact(bytes(await found.bytes_async()), found.meta["e_tag"])

    def _is_missing(self, error: Exception) -> bool:
        """Return whether it is the store itself that was not found: its folder, its bucket."""
        return not self.folder.is_dir() if self.folder else bool(NO_SUCH_STORE.search(str(error)))

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
