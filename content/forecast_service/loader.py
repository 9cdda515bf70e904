"""Load each model once, however many requests want it, and outside Ray Serve's cache lock."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple

from forecast_service.errors import (
    CorruptModelError,
    InvalidCustomerIdError,
    ModelTooLargeError,
    UnknownCustomerError,
)
from forecast_service.memory import Holder, Model, ModelMemory
from forecast_service.store import Admit, ModelStore

CLIENT_ERRORS = InvalidCustomerIdError, UnknownCustomerError  # not for the operator's log
logger = logging.getLogger("ray.serve.forecasts")


class Loaded(NamedTuple, Generic[Model]):
    """A model, and the holder that it was in: by now it may have been replaced or unloaded."""

    model: Model
    holder: Holder[Model]


class Gate:
    """Lets so many bytes in at a time, first come, first served. What is larger goes in alone."""

    def __init__(self, most_bytes: float):
        self._most_bytes = most_bytes
        self._inside_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()

    def enter(self, size_bytes: int) -> asyncio.Future[int]:
        """Return a turn. It is done when the bytes are in, which may be at once."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, turn))
        self._let_in()
        return turn

    def leave(self, turn: asyncio.Future[int]) -> None:
        """Give the room of a turn back, or give it up if it has not come."""
        if not turn.cancel() and not turn.cancelled():
            self._inside_bytes -= turn.result()
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            size_bytes, turn = self._waiting[0]
            if not turn.cancelled():
                if self._inside_bytes and self._inside_bytes + size_bytes > self._most_bytes:
                    return
                self._inside_bytes += size_bytes
                turn.set_result(size_bytes)
            self._waiting.popleft()


class ModelLoader(Generic[Model]):
    """Reads the models of one replica from a store.

    It keeps no model alive: Ray Serve's cache does, and every request at work. As long as anything
    holds on to a model's holder, load() returns that very holder and asks the store nothing.
    """

    def __init__(
        self,
        store: ModelStore,
        from_bytes: Callable[[bytes, str], Model],
        memory: ModelMemory[Model] | None = None,
        *,
        in_thread: bool = False,
        most_bytes_at_once: float = math.inf,
        on_loaded: Callable[[float, BaseException | None], None] | None = None,
    ):
        """Take a store, a function from an artifact's bytes and a customer id to a model, a memory.

        With `in_thread` the function runs in a thread: it takes so long that the event loop, and
        with it every other request, should not wait for it. Artifacts that are being read, or made
        into models, have `most_bytes_at_once` together, and one is always let through. `on_loaded`
        is told of every load that asked the store: how many seconds it took, and the error that it
        ended in, or None.
        """
        self.memory = ModelMemory() if memory is None else memory
        self._store = store
        self._in_thread = in_thread
        self._from_bytes = from_bytes
        self._on_loaded = on_loaded
        self._gate = Gate(most_bytes_at_once)
        self._loading: dict[str, asyncio.Task[Loaded[Model]]] = {}

    def __contains__(self, customer_id: str) -> bool:
        """Return whether a customer's model is in memory."""
        holder = self.memory.find(customer_id)
        return holder is not None and holder.model is not None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the customers for whom somebody keeps a holder, unless it was unloaded."""
        return (name for name, holder in self.memory.holders() if not holder.unloaded)

    def hold(self, customer_id: str) -> Holder[Model]:
        """Return what a customer's model is kept in, empty if it has not been loaded."""
        return self.memory.hold(customer_id)

    async def load(self, customer_id: str) -> Loaded[Model]:
        """Return a customer's model. Those who ask while it is being read share one read.

        A caller that is cancelled does not cancel the read: another may be waiting for it.

        Raises:
            InvalidCustomerIdError, UnknownCustomerError, StoreUnavailableError: from the store.
            CorruptModelError: from `from_bytes`, or in place of whatever else that raises.
            ModelTooLargeError: if there is no room for it in memory.
        """
        holder = self.memory.find(customer_id)
        if holder is not None and holder.model is not None:
            self.memory.touch(customer_id)
            return Loaded(holder.model, holder)
        return await asyncio.shield(self._loading.get(customer_id) or self._start(customer_id))

    async def reload(self, customer_id: str) -> bool:
        """Compare what is held for a customer with the store: ask it once. Return if it changed.

        A new model is read and verified before it takes its place. If it cannot be used, the old
        one stays, if there is one, and the new one is not read again. What was unloaded stays so.

        Raises:
            UnknownCustomerError: if the store has none, or none any more. Then none is in memory.
            StoreUnavailableError, CorruptModelError, ModelTooLargeError: as load().
        """
        holder = self.memory.find(customer_id)
        if holder is None or holder.unloaded:
            return False
        known = holder.etag
        with self._admission(customer_id) as admit:
            try:
                artifact = await self._store.read_if_changed(customer_id, known, admit)
            except UnknownCustomerError:
                self.memory.remove(customer_id)
                raise
            if artifact is None or holder.etag != known:  # unloaded, or loaded, meanwhile
                return False
            holder.etag = artifact.etag
            model = await self._verify(artifact.data, customer_id)
            if holder.etag != artifact.etag:
                return False
            self.memory.put(customer_id, model, artifact.etag)
        return True

    @contextmanager
    def _admission(self, customer_id: str) -> Iterator[Admit]:
        """Yield what the store asks for an artifact's turn before it reads the bytes."""
        turns = []

        def admit(size_bytes: int, etag: str | None) -> asyncio.Future:
            try:  # it would be in memory: no artifact may be larger than a model
                self.memory.require_room(customer_id, size_bytes)
            except ModelTooLargeError:
                self._note(customer_id, etag)
                raise
            turns.append(self._gate.enter(size_bytes))
            return turns[-1]

        try:
            yield admit
        finally:
            for turn in turns:
                self._gate.leave(turn)

    def _note(self, customer_id: str, etag: str | None) -> None:
        """Note which artifact was looked at: reload() need not read it, should it be no good."""
        if holder := self.memory.find(customer_id):
            holder.etag, holder.unloaded = etag, False

    def _start(self, customer_id: str) -> asyncio.Task[Loaded[Model]]:
        started = time.perf_counter()
        task = asyncio.create_task(self._read(customer_id, started))
        self._loading[customer_id] = task
        task.add_done_callback(lambda done: self._finish(customer_id, done, started))
        return task

    async def _read(self, customer_id: str, started: float) -> Loaded[Model]:
        with self._admission(customer_id) as admit:
            await self._gate.enter(0)  # behind those who wait: a response in vain takes memory, too
            artifact = await self._store.read(customer_id, admit)
            self._note(customer_id, artifact.etag)
            model = await self._verify(artifact.data, customer_id)
            holder = self.memory.put(customer_id, model, artifact.etag)
        elapsed_ms = (time.perf_counter() - started) * 1000
        logger.info(
            f"Cold load of {customer_id}: {len(artifact.data)} bytes in {elapsed_ms:.1f} ms."
        )
        return Loaded(model, holder)

    async def _verify(self, data: bytes, customer_id: str) -> Model:
        if self._in_thread:  # which keeps its arguments for a while: the list is empty by then
            return await asyncio.to_thread(self._read_bytes, [data], customer_id)
        return self._read_bytes([data], customer_id)

    def _read_bytes(self, data: list[bytes], customer_id: str) -> Model:
        try:
            return self._from_bytes(data.pop(), customer_id)
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
