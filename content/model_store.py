"""Where models live: a folder, or any object store that obstore speaks (s3://, gs://, az://).

Environment:
    MODEL_STORE           a URL or a path, relative to this file; default: the folder `models`
    STORE_TIMEOUT_S       seconds after which a read gives up, retries included; default 10
    STORE_ADDED_DELAY_S   seconds of artificial delay before each read, to stand in for a far store;
                          default 0
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
from obstore.exceptions import BaseError
from obstore.store import from_url

CUSTOMER_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
ARTIFACT = "model.safetensors"  # stored as <customer id>/model.safetensors
MAX_RETRIES = 2


class InvalidCustomerIdError(ValueError):
    """The id is not one that a customer can have."""


class UnknownCustomerError(LookupError):
    """The id is well formed, and the store holds no model for it."""


class StoreUnavailableError(ConnectionError):
    """The store did not answer, or not in time."""


class Artifact(NamedTuple):
    """A stored model: its bytes, and the store's tag for this version of them."""

    data: bytes
    etag: str | None


def artifact_path(customer_id: str) -> str:
    """Return where in the store a customer's model is.

    Raises:
        InvalidCustomerIdError: unless the id is all of CUSTOMER_ID.
    """
    if not CUSTOMER_ID.fullmatch(customer_id):
        raise InvalidCustomerIdError(
            "a customer id is 1 to 64 of A-Z, a-z, 0-9, '_', '.' and '-', "
            "and begins with a letter, a digit or '_'"
        )
    return f"{customer_id}/{ARTIFACT}"


class ModelStore:
    """Models by customer id.

    Every method raises StoreUnavailableError when the store does not answer in time.
    """

    def __init__(self, url: str | None = None):
        url = url or os.environ.get("MODEL_STORE") or "models"
        self.url = url if "://" in url else (Path(__file__).parent / url).resolve().as_uri()
        self._timeout_s = float(os.environ.get("STORE_TIMEOUT_S", 10))
        self._added_delay_s = float(os.environ.get("STORE_ADDED_DELAY_S", 0))
        half = timedelta(seconds=self._timeout_s / 2)  # so that a second attempt fits in the time
        self._folder = None
        if self.url.startswith("file:"):
            self._store = from_url(self.url, mkdir=True)
            self._folder = Path(self._store.prefix)
        else:
            client_options = {"timeout": half, "connect_timeout": half}
            if self.url.startswith("http:"):
                client_options["allow_http"] = True
            retry_config = {"max_retries": MAX_RETRIES, "retry_timeout": half}
            self._store = from_url(
                self.url, client_options=client_options, retry_config=retry_config
            )

    async def read(self, customer_id: str) -> Artifact:
        """Return a customer's artifact.

        Raises:
            InvalidCustomerIdError: before the store is asked.
            UnknownCustomerError: if the store holds no model of this customer.
        """
        path = artifact_path(customer_id)
        async with self._within_timeout():
            await asyncio.sleep(self._added_delay_s)
            try:
                found = await obstore.get_async(self._store, path)
            except FileNotFoundError:
                if self._folder and not self._folder.is_dir():
                    raise  # a missing folder is a missing store, not a missing customer
                raise UnknownCustomerError(f"there is no model for {customer_id}") from None
            return Artifact(bytes(await found.bytes_async()), found.meta["e_tag"])

    async def exists(self, customer_id: str) -> bool:
        """Return whether a customer has a model. Raises InvalidCustomerIdError."""
        path = artifact_path(customer_id)
        async with self._within_timeout():
            try:
                await obstore.head_async(self._store, path)
            except FileNotFoundError:
                return False
            return True

    async def write(self, customer_id: str, data: bytes) -> None:
        """Store a customer's artifact; a reader sees the old one or the new one.

        Raises InvalidCustomerIdError.
        """
        path = artifact_path(customer_id)
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
                    if path.name == ARTIFACT
                ]
        return sorted(found)

    @asynccontextmanager
    async def _within_timeout(self) -> AsyncIterator[None]:
        """Turn a late or failing store into StoreUnavailableError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"the model store did not answer in {self._timeout_s:g} s"
            ) from error
        except (BaseError, OSError) as error:
            raise StoreUnavailableError("the model store does not answer") from error
