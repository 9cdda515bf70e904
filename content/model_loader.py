"""Load each model once, however many requests want it, and outside Ray Serve's cache lock."""

import asyncio
import logging
import time
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from model_store import InvalidCustomerIdError, ModelStore, UnknownCustomerError

CLIENT_ERRORS = InvalidCustomerIdError, UnknownCustomerError  # no news for the operator
Model = TypeVar("Model")
logger = logging.getLogger("ray.serve")


class ModelLoader(Generic[Model]):
    """Reads the models of one replica from a store.

    It keeps no model alive: Ray Serve's cache does, and every request at work. As long as anything
    holds a model, load() returns that very object and asks the store nothing.
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
        with it every other request, should not wait for it. `on_loaded` is told of every read of
        the store: how many seconds it took, and the error that it ended in, or None.
        """
        self._store = store
        self._in_thread = in_thread
        self._from_bytes = from_bytes
        self._on_loaded = on_loaded
        self._alive: weakref.WeakValueDictionary[str, Model] = weakref.WeakValueDictionary()
        self._loading: dict[str, asyncio.Task[Model]] = {}

    def __contains__(self, customer_id: str) -> bool:
        """Return whether a customer's model is in memory."""
        return customer_id in self._alive

    async def load(self, customer_id: str) -> Model:
        """Return a customer's model. Those who ask while it is being read share one read.

        A caller that is cancelled does not cancel the read: another may be waiting for it.

        Raises:
            InvalidCustomerIdError, UnknownCustomerError, StoreUnavailableError: from the store.
            CorruptModelError: from `from_bytes`.
        """
        model = self._alive.get(customer_id)
        if model is not None:
            return model
        if customer_id not in self._loading:
            started = time.perf_counter()
            task = asyncio.create_task(self._read(customer_id, started))
            self._loading[customer_id] = task
            task.add_done_callback(lambda done: self._finish(customer_id, done, started))
        return await asyncio.shield(self._loading[customer_id])

    async def _read(self, customer_id: str, started: float) -> Model:
        artifact = await self._store.read(customer_id)
        if self._in_thread:
            model = await asyncio.to_thread(self._from_bytes, artifact.data, customer_id)
        else:
            model = self._from_bytes(artifact.data, customer_id)
        self._alive[customer_id] = model
        elapsed_ms = (time.perf_counter() - started) * 1000
        logger.info(
            f"Cold load of {customer_id}: {len(artifact.data)} bytes in {elapsed_ms:.1f} ms."
        )
        return model

    def _finish(self, customer_id: str, task: asyncio.Task, started: float) -> None:
        del self._loading[customer_id]
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self._on_loaded:
            self._on_loaded(time.perf_counter() - started, error)
        if error and not isinstance(error, CLIENT_ERRORS):
            cause = str(error.__cause__ or "").partition("\n")[0]
            logger.warning(f"Could not load {customer_id}: {error}. {cause}")
