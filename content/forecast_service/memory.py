"""The models in a replica's memory, in order of use: within a budget, and none of them idle."""

import asyncio
import logging
import math
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from forecast_service.errors import ModelTooLargeError

MB = 1_000_000
TICK_S = 1  # between two looks for idle models, and two reports of what is in memory
logger = logging.getLogger("ray.serve.forecasts")


class Sized(Protocol):
    """What says how many bytes of memory it takes."""

    @property
    def size_bytes(self) -> int: ...


Model = TypeVar("Model", bound=Sized)


@dataclass(eq=False, slots=True, weakref_slot=True)
class Holder(Generic[Model]):
    """Where a customer's model is kept, so that it can be replaced, or unloaded.

    A request takes `model` once and works with that, so it never sees two. Without a model: either
    it was `unloaded`, and the next request loads it. Or, if there is an `etag`, that artifact
    cannot be used. Or the store has none, or was not asked yet.
    """

    model: Model | None = None
    etag: str | None = None  # of the artifact that was looked at last, be it good or not
    unloaded: bool = False


class _Place(weakref.ref):
    """A model's place in the order of use. It outlives the holder that it refers to."""

    __slots__ = "customer_id", "size_bytes", "used_s"


class ModelMemory(Generic[Model]):
    """Finds the holders of a replica's models, and empties those of models that have to go.

    It keeps no holder alive: Ray Serve's cache does, and every request at work. A request at work
    keeps the model of a holder that is emptied, too.
    """

    def __init__(
        self,
        pinned: Collection[str] = (),
        idle_s: float = math.inf,
        on_unload: Callable[[str], None] = lambda reason: None,
        on_tick: Callable[[int, int, float], None] = lambda models, size_bytes, budget_bytes: None,
    ):
        """Take the customers whose models stay, and the seconds after which others are idle.

        `on_unload` is told why each model is unloaded, "budget" or "idle". `on_tick` is told by
        run() how many models are in memory, their bytes, and the budget.
        """
        self.budget_bytes = math.inf
        self.used_bytes = 0
        self._pinned = frozenset(pinned)
        self._idle_s = idle_s
        self._on_unload = on_unload
        self._on_tick = on_tick
        self._holders = weakref.WeakValueDictionary[str, Holder[Model]]()
        self._kept: dict[str, _Place] = {}  # those of the pinned models
        self._order: OrderedDict[str, _Place] = OrderedDict()  # of the others, next to go first
        self._gone: deque[_Place] = deque()  # their holders have died, in any thread

    def limit(self, budget_bytes: float) -> None:
        """Set the budget, once the pinned models are in memory, and no others.

        Raises:
            ValueError: if they take more.
        """
        if self.used_bytes > budget_bytes:
            raise ValueError(
                f"the pinned models take {self.used_bytes / MB:.6g} MB, and model_memory_mb is "
                f"{budget_bytes / MB:g}: raise it, or pin fewer customers"
            )
        self.budget_bytes = budget_bytes

    def holders(self) -> list[tuple[str, Holder[Model]]]:
        """Return the customers for whom somebody keeps a holder, and these holders."""
        return list(self._holders.items())

    def find(self, customer_id: str) -> Holder[Model] | None:
        """Return a customer's holder, if somebody keeps it."""
        return self._holders.get(customer_id)

    def hold(self, customer_id: str) -> Holder[Model]:
        """Return a customer's holder: a new, empty one if nobody keeps it."""
        return self._holders.setdefault(customer_id, Holder())

    def touch(self, customer_id: str) -> None:
        """Make a customer's model the most recently used."""
        if place := self._order.get(customer_id):
            place.used_s = asyncio.get_running_loop().time()
            self._order.move_to_end(customer_id)

    def put(self, customer_id: str, model: Model, etag: str) -> Holder[Model]:
        """Fill a customer's holder. What was used least recently is unloaded to make room.

        A new model is the most recently used. One that replaces another is in its place.

        Raises:
            ModelTooLargeError: if it cannot have the room. Then no model has changed.
        """
        self._settle()
        size_bytes = model.size_bytes
        self.require_room(customer_id, size_bytes)
        holder, places = self.hold(customer_id), self._places(customer_id)
        place, old = _Place(holder, self._gone.append), places.get(customer_id)
        place.customer_id, place.size_bytes = customer_id, size_bytes
        place.used_s = old.used_s if old else asyncio.get_running_loop().time()
        places[customer_id] = place
        self.used_bytes += size_bytes - (old.size_bytes if old else 0)
        holder.model, holder.etag, holder.unloaded = model, etag, False
        while self.used_bytes > self.budget_bytes:
            self._unload("budget", f"to stay within {self.budget_bytes / MB:g} MB")
        return holder

    def require_room(self, customer_id: str, size_bytes: int) -> None:
        """Raise ModelTooLargeError if so many bytes do not fit beside the pinned models."""
        others = (place for name, place in self._kept.items() if name != customer_id)
        pinned_bytes = sum(place.size_bytes for place in others)
        if size_bytes > self.budget_bytes - pinned_bytes:
            beside = f", beside {pinned_bytes / MB:.3g} MB of pinned models" if pinned_bytes else ""
            raise ModelTooLargeError(
                f"the model of {customer_id} takes {size_bytes / MB:.6g} MB, more than there may "
                f"be in memory: {self.budget_bytes / MB:g} MB{beside}"
            )

    def remove(self, customer_id: str, *, unloaded: bool = False) -> None:
        """Empty a customer's holder, if somebody keeps it."""
        if place := self._places(customer_id).pop(customer_id, None):
            self.used_bytes -= place.size_bytes
        if holder := self.find(customer_id):
            holder.model, holder.etag, holder.unloaded = None, None, unloaded

    async def run(self) -> None:
        """Unload what is idle and report what is in memory, again and again, until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            self._settle()
            idle_since_s = asyncio.get_running_loop().time() - self._idle_s
            while self._order and next(iter(self._order.values())).used_s <= idle_since_s:
                self._unload("idle", f"not asked for in {self._idle_s:g} s")
            self._on_tick(len(self._kept) + len(self._order), self.used_bytes, self.budget_bytes)

    def _unload(self, reason: str, why: str) -> None:
        """Unload the model that was used least recently."""
        customer_id, place = next(iter(self._order.items()))
        self.remove(customer_id, unloaded=True)
        logger.info(f"Unloaded {customer_id}: {place.size_bytes / MB:.3g} MB, {why}.")
        self._on_unload(reason)

    def _places(self, customer_id: str) -> dict[str, _Place]:
        return self._kept if customer_id in self._pinned else self._order

    def _settle(self) -> None:
        """Forget models whose holders have died, as when Ray Serve's cache evicts one."""
        while self._gone:
            place = self._gone.popleft()
            places = self._places(place.customer_id)
            if places.get(place.customer_id) is place:
                del places[place.customer_id]
                self.used_bytes -= place.size_bytes
