"""Where models lie: a folder, or any object store that obstore speaks (s3://, gs://, az://)."""

import asyncio
import hashlib
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, NotModifiedError
from obstore.store import from_url

from forecast_service.customer_ids import check_customer_id
from forecast_service.errors import StoreUnavailableError, UnknownCustomerError
from forecast_service.settings import StoreSettings, check_store_variables

if TYPE_CHECKING:
    from obstore import GetResult

MAX_RETRIES = 2
PIECE_BYTES = 256_000  # of a large artifact, to read at a time
PROBE = "-"  # no customer's id: those begin with a letter, a digit or '_'
SAY_AGAIN_S = 3600  # a fault that lasts is in the log once an hour
STATUS = re.compile(r"status code: (\d{3})[^:]*")
CODE, MESSAGE = re.compile(r"<Code>(.*?)</Code>"), re.compile(r"<Message>(.*?)</Message>", re.S)
INNERMOST = re.compile(r'"[^"\n]+"|\b[A-Z]\w+')
NO_SUCH_STORE = "NoSuchBucket", "ContainerNotFound"  # S3 and Google, Azure
HOPELESS = "BadScheme", "RustPanic"  # as long as a replica lives: it reads its environment once
ADVICE = {  # what to do, by a store's code; without an entry here a code is logged all the same
    "AccessDenied": "Allow s3:GetObject on the objects and s3:ListBucket on the bucket. Without "
    "s3:ListBucket, S3 denies what does not exist: each unknown customer is a 503, and a deleted "
    "model stays in memory",
    "AuthorizationHeaderMalformed": "Set AWS_REGION to the region of the bucket",
    "BadScheme": "AWS_ALLOW_HTTP=true allows plain http",
    "BareRedirect": "Set AWS_REGION to the region of the bucket",
    "ExpiredToken": "Renew the credentials, and restart: replicas read them when they start",
    "InvalidAccessKeyId": "Check AWS_ACCESS_KEY_ID",
    "InvalidObjectState": "Restore the object, and let no lifecycle rule archive models",
    "NoCredentials": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role",
    "RequestTimeTooSkewed": "Set the clock of this machine",
    "RustPanic": "obstore can make no request of what it was given: see stderr, and check "
    "the variables for the store, and the files that they name",
    "SignatureDoesNotMatch": "Check AWS_SECRET_ACCESS_KEY",
}
logger = logging.getLogger("ray.serve.forecasts")


class Artifact(NamedTuple):
    """A stored model: its bytes, and a tag that other bytes do not have.

    The tag is the store's, or a checksum where the store has none.
    """

    data: bytes
    etag: str


Admit = Callable[[int, str | None], asyncio.Future]  # by an artifact's size in bytes, and its tag


class StoreFault(Exception):
    """What a store answered in place of a model, or why it did not, in one line for the log.

    `code` is the one in the store's answer, or else the answer's HTTP `status`. Without an answer
    it is the innermost reason that obstore gives.
    """

    def __init__(self, error: Exception):
        """Take an error of obstore's, or of the operating system."""
        said, _, debug = str(error).partition("\n\nDebug source:")  # all once more, in Rust's terms
        if answer := STATUS.search(said):
            self.status = int(answer[1])
            found = [element[1] for element in (CODE.search(said), MESSAGE.search(said)) if element]
            self.code = found[0] if found else answer[1]
            said = said[: answer.end()]
        else:
            self.status = None
            words = INNERMOST.findall(re.sub(r'path: ".*"', "", debug))
            self.code = words[-1].strip('"') if words else type(error).__name__
            found = [] if self.code in said else [self.code]
        if "/latest/api/token" in said:  # what obstore asks the machine for if it was given none
            self.code = "NoCredentials"
        said = re.sub(r"\?\S*", "", said.partition("\n")[0])  # a URL's query may hold a signature
        super().__init__(" ".join(": ".join([said.strip(" :"), *found]).split()).rstrip("."))


class ModelStore:
    """Models by customer id.

    Every method raises StoreUnavailableError when the store does not answer in time, or refuses.
    What it refused with is in the log, once an hour, and is the error's cause: a StoreFault.
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
            ValueError: if the store cannot be opened as it is set, by the settings or by the
                environment's variables for it.
        """
        settings = settings or StoreSettings()
        self.url = settings.model_store
        self._timeout_s = settings.store_timeout_s
        self._added_delay_s = settings.store_added_delay_s
        attempt = timedelta(seconds=self._timeout_s * 0.4)  # a pause and a second one fit in
        self._artifact = artifact
        self._said: dict[str, float] = {}  # by a fault's code, on the monotonic clock
        self._kind = obstore.parse_scheme(self.url)
        self.folder = None
        if self._kind == "local":
            self.folder = Path(url2pathname(urlsplit(self.url).path))
            if not (create or self.folder.is_dir()):
                raise FileNotFoundError(
                    f"the model store {self.folder} does not exist: train models into it "
                    "(python train_models.py), or name another one in MODEL_STORE"
                )
            try:
                self._store = from_url(self.url, mkdir=create, automatic_cleanup=True)
            except (BaseError, OSError) as error:
                reason = str(error).partition("\n")[0]
                raise ValueError(
                    f"the model store {self.folder} cannot be opened: {reason}"
                ) from None
        else:
            check_store_variables(self._kind)
            plain = "true" if self.url.startswith("http:") else os.environ.get("AWS_ALLOW_HTTP")
            client_options = {
                "timeout": attempt,
                "connect_timeout": attempt,
                "allow_http": plain or "false",  # obstore asks the environment only without options
            }
            retry_config = {"max_retries": MAX_RETRIES, "retry_timeout": attempt * 1.25}
            try:
                self._store = from_url(
                    self.url, client_options=client_options, retry_config=retry_config
                )
            except BaseError as error:
                raise ValueError(
                    f"the model store {self.url} cannot be opened: {StoreFault(error)}"
                ) from None

    async def check(self) -> None:
        """Ask the store, as a replica starts, and log what is wrong with it, if anything is.

        A store that does not answer, refuses or is empty is logged: the replica starts, and finds
        it well by itself when it is.

        Raises:
            FileNotFoundError: if the store does not exist.
            ValueError: if it can never be asked with the variables of this environment.
        """
        try:
            await self._get(PROBE)
        except UnknownCustomerError:
            pass
        except StoreUnavailableError as error:
            fault = error.__cause__
            if isinstance(fault, StoreFault) and self._is_missing(fault):
                raise FileNotFoundError(
                    f"the model store {self.url} does not exist: create it, or name another one in "
                    f"MODEL_STORE. {fault}"
                ) from None
            if isinstance(fault, StoreFault) and fault.code in HOPELESS:
                raise ValueError(f"{fault}. {ADVICE[fault.code]}") from None
            return
        else:
            logger.warning(
                f"The model store {self.url} has an answer even for what cannot exist: MODEL_STORE "
                "is not the address of a store, and customers without a model will not be a 404."
            )
            return
        if self._kind == "http":
            return  # plain HTTP has no listing
        try:
            async with self._within_timeout(), aclosing(self._ids()) as customer_ids:
                async for _ in customer_ids:
                    return
        except StoreUnavailableError:
            return  # logged by now
        logger.warning(
            f"The model store {self.url} has no {self._artifact} in it: every customer is a 404 "
            "until models are trained into it, or another store is named in MODEL_STORE."
        )

    async def read(self, customer_id: str, admit: Admit | None = None) -> Artifact:
        """Return a customer's artifact.

        Its bytes are read when what `admit` returns is done. `admit` may raise an error instead.

        Raises:
            InvalidCustomerIdError: before the store is asked.
            UnknownCustomerError: if the store holds no model of this customer.
        """
        return await self._get(check_customer_id(customer_id), admit=admit)

    async def read_if_changed(
        self, customer_id: str, etag: str | None, admit: Admit | None = None
    ) -> Artifact | None:
        """Return a customer's artifact, or None if it is still the one of this tag.

        Takes and raises what read() does.
        """
        try:
            artifact = await self._get(check_customer_id(customer_id), etag, admit)
        except NotModifiedError:
            return None
        return None if artifact.etag == etag else artifact  # a store without tags sends it again

    async def write(self, customer_id: str, data: bytes) -> None:
        """Store a customer's artifact; a reader sees the old one or the new one.

        Raises InvalidCustomerIdError.
        """
        path = self._path(check_customer_id(customer_id))
        async with self._within_timeout():
            await obstore.put_async(self._store, path, data)

    async def create(self, customer_id: str, data: bytes) -> bool:
        """Store an artifact unless there is one: of several who try at once, one succeeds.

        Returns whether it was stored.

        Raises:
            InvalidCustomerIdError: before the store is asked.
            NotImplementedError: by a store that is plain HTTP.
        """
        path = self._path(check_customer_id(customer_id))
        async with self._within_timeout():
            try:
                await obstore.put_async(self._store, path, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    async def delete(self, customer_id: str) -> None:
        """Delete a customer's artifact, if there is one. Raises InvalidCustomerIdError."""
        path = self._path(check_customer_id(customer_id))
        async with self._within_timeout():
            try:
                await obstore.delete_async(self._store, path)
            except FileNotFoundError as error:
                if self._is_missing(StoreFault(error)):
                    raise

    async def list(self) -> list[str]:
        """Return the ids of all customers with a model, sorted."""
        async with self._within_timeout():
            return sorted([customer_id async for customer_id in self._ids()])

    async def _ids(self) -> AsyncIterator[str]:
        async for batch in obstore.list(self._store):
            for path in (PurePosixPath(meta["path"]) for meta in batch):
                if path.name == self._artifact:
                    yield path.parent.name
        if self.folder and not self.folder.is_dir():
            raise FileNotFoundError(self.folder)  # obstore takes it for an empty one

    def _path(self, customer_id: str) -> str:
        return f"{customer_id}/{self._artifact}"

    async def _get(
        self, customer_id: str, known_etag: str | None = None, admit: Admit | None = None
    ) -> Artifact:
        options = {"if_none_match": known_etag} if known_etag else None
        async with self._within_timeout() as timeout:
            await asyncio.sleep(self._added_delay_s)
            found = await self._ask(customer_id, options)
            turn = admit(found.meta["size"], found.meta["e_tag"]) if admit else None
            if turn and not turn.done():
                del found  # a response that waits would keep half a megabyte in memory
                timeout.reschedule(None)  # nor is the store to blame for this wait
                await turn
                timeout.reschedule(asyncio.get_running_loop().time() + self._timeout_s)
                found = await self._ask(customer_id, options)
            data = await self._read_body(found)
            return Artifact(data, found.meta["e_tag"] or f'"{hashlib.sha256(data).hexdigest()}"')

    async def _ask(self, customer_id: str, options: dict[str, str] | None) -> "GetResult":
        try:
            return await obstore.get_async(self._store, self._path(customer_id), options=options)
        except FileNotFoundError as error:
            if self._is_missing(StoreFault(error)):
                raise
            raise UnknownCustomerError(f"there is no model for {customer_id}") from None
        except GenericError:  # as of a file where a customer's folder would be
            if not (self.folder and (self.folder / customer_id).is_file()):
                raise
            raise UnknownCustomerError(f"there is no model for {customer_id}") from None

    async def _read_body(self, found: "GetResult") -> bytes:
        if self.folder or found.meta["size"] <= PIECE_BYTES:
            return bytes(await found.bytes_async())
        with BytesIO() as body:  # bytes_async() would have it all in memory twice
            async for piece in found.stream(min_chunk_size=PIECE_BYTES):
                body.write(piece)
            return body.getvalue()

    def _is_missing(self, fault: StoreFault) -> bool:
        """Return whether it is the store itself that was not found: its folder, its bucket."""
        return not self.folder.is_dir() if self.folder else fault.code in NO_SUCH_STORE

    @asynccontextmanager
    async def _within_timeout(self) -> AsyncIterator[asyncio.Timeout]:
        """Turn a late or failing store into StoreUnavailableError."""
        try:
            async with asyncio.timeout(self._timeout_s) as timeout:
                yield timeout
        except NotModifiedError:
            raise  # an answer, if a short one
        except TimeoutError as error:
            late = f"the model store did not answer in {self._timeout_s:g} s"
            self._say(late, "TimeoutError")
            raise StoreUnavailableError(late) from error
        except Exception as error:
            # No class is exported for a panic of obstore's. It must not reach a client as a 500.
            if not isinstance(error, BaseError | OSError) and type(error).__name__ != "RustPanic":
                raise
            fault = StoreFault(error)
            wrong = "does not answer"
            if self._is_missing(fault):
                wrong = "does not exist"
            elif fault.status and fault.status < 500:
                wrong = "refuses the request"
            self._say(f"the model store {wrong}: {fault}", fault.code)
            raise StoreUnavailableError(f"the model store {wrong}") from fault

    def _say(self, what: str, code: str) -> None:
        """Log what is wrong with the store and what to do, unless it was said a short time ago."""
        now_s = time.monotonic()
        if now_s - self._said.get(code, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said[code] = now_s
            advice = f" {ADVICE[code]}." if code in ADVICE else ""
            logger.warning(f"{what[0].upper()}{what[1:]}.{advice}")
