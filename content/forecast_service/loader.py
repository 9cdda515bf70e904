"""Load each model once, however many requests want it, and outside Ray Serve's cache lock."""

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from forecast_service.errors import (
    CorruptModelError,
    InvalidCustomerIdError,
    UnknownCustomerError,
)
from forecast_service.store import ModelStore

CLIENT_ERRORS = InvalidCustomerIdError, UnknownCustomerError  # not for the operator's log
Model = TypeVar("Model")
logger = logging.getLogger("ray.serve")


@dataclass(eq=False, slots=True, weakref_slot=True)
class Holder(Generic[Model]):
    """Where a customer's model is kept, so that a newer one can take its place.

    A request takes `model` once and works with that, so it never sees two. Without a model, `etag`
    says why: with one, that artifact is damaged; without, the store has none, or was not asked yet.
    """

    model: Model | None = None
    etag: str | None = None  # of the artifact that was looked at last, be it good or not


class ModelLoader(Generic[Model]):
    """Reads the models of one replica from a store.

    It keeps no model alive: Ray Serve's cache does, and every request at work. As long as anything
    holds on to a model's holder, load() returns that very holder and asks the store nothing.
    """

    def __init__(
        self,
        store: ModelStore,
        from_bytes: Callable[[bytes, str], Model],
        *,
        in_thread: bool = False,
        on_loaded: Callable[[float, BaseException | None], None] | None = None,
    ):
        """Take a store, and a function from an artifact's bytes and a customer id to a model.

        With `in_thread` the function runs in a thread: it takes so long that the event loop, and
        with it every other request, should not wait for it. `on_loaded` is told of every load that
        asked the store: how many seconds it took, and the error that it ended in, or None.
        """
        self._store = store
        self._in_thread = in_thread
        self._from_bytes = from_bytes
        self._on_loaded = on_loaded
        self._alive: weakref.WeakValueDictionary[str, Holder[Model]] = weakref.WeakValueDictionary()
        self._loading: dict[str, asyncio.Task[Holder[Model]]] = {}

    def __contains__(self, customer_id: str) -> bool:
        """Return whether a customer's model is in memory."""
        holder = self._alive.get(customer_id)
        return holder is not None and holder.model is not None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the customers for whom somebody keeps a holder, with a model or without."""
        return iter(list(self._alive))

    def hold(self, customer_id: str) -> Holder[Model]:
        """Return what a customer's model is kept in, empty if it has not been loaded."""
        return self._alive.setdefault(customer_id, Holder())

    async def load(self, customer_id: str) -> Holder[Model]:
        """Return a customer's model. Those who ask while it is being read share one read.

        A caller that is cancelled does not cancel the read: another may be waiting for it.

        Raises:
            InvalidCustomerIdError, UnknownCustomerError, StoreUnavailableError: from the store.
            CorruptModelError: from `from_bytes`, or in place of whatever else that raises.
        """
        holder = self._alive.get(customer_id)
        while holder is None or holder.model is None:
            loading = self._loading.get(customer_id) or self._start(customer_id)
            holder = await asyncio.shield(loading)
        return holder

    async def reload(self, customer_id: str) -> bool:
        """Compare what is held for a customer with the store: ask it once. Return if it changed.

        A new model is read and verified before it takes its place. If it cannot be used, the old
        one stays, if there is one, and the new one is not read again.

        Raises:
            UnknownCustomerError: if the store has none, or none any more. Then none is in memory.
            StoreUnavailableError, CorruptModelError: as load().
        """
        holder = self._alive.get(customer_id)
        if holder is None:
            return False
        try:
            artifact = await self._store.read_if_changed(customer_id, holder.etag)
        except UnknownCustomerError:
            holder.model = holder.etag = None
            raise
        if artifact is None:
            return False
        holder.etag = artifact.etag
        holder.model = await self._verify(artifact.data, customer_id)
        return True

    def _start(self, customer_id: str) -> asyncio.Task[Holder[Model]]:
        started = time.perf_counter()
        task = asyncio.create_task(self._read(customer_id, started))
        self._loading[customer_id] = task
        task.add_done_callback(lambda done: self._finish(customer_id, done, started))
        return task

    async def _read(self, customer_id: str, started: float) -> Holder[Model]:
        artifact = await self._store.read(customer_id)
        try:
            model = await self._verify(artifact.data, customer_id)
        except CorruptModelError:
            if customer_id in self._alive:  # somebody keeps its place: reload() need not read it
                self._alive[customer_id].etag = artifact.etag
            raise
        holder = self.hold(customer_id)
        holder.model, holder.etag = model, artifact.etag
        elapsed_ms = (time.perf_counter() - started) * 1000
        logger.info(
            f"Cold load of {customer_id}: {len(artifact.data)} bytes in {elapsed_ms:.1f} ms."
        )
        return holder

    async def _verify(self, data: bytes, customer_id: str) -> Model:
        if self._in_thread:
            return await asyncio.to_thread(self._read_bytes, data, customer_id)
        return self._read_bytes(data, customer_id)

    def _read_bytes(self, data: bytes, customer_id: str) -> Model:
        try:
            return self._from_bytes(data, customer_id)
        except CorruptModelError:
            raise
        except Exception as error:  # whatever it is, it is about this artifact, and no other
            logger.exception(f"The reader of artifacts failed at that of {customer_id}.")
            raise CorruptModelError(
                f"the model of {customer_id} cannot be read: {type(error).__name__}"
            ) from error

    def _finish(self, customer_id: str, task: asyncio.Task, started: float) -> None:
        del self._loading[customer_id]
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self._on_loaded:
            self._on_loaded(time.perf_counter() - started, error)
        if error and not isinstance(error, CLIENT_ERRORS):
            cause = str(error.__cause__ or "").partition("\n")[0]
            logger.warning(f"Could not load {customer_id}: {error}. {cause}")
