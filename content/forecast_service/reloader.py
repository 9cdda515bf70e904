"""Keep the models in memory as new as those in the store, while requests are served."""

import asyncio
import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from forecast_service.errors import ServiceError, StoreUnavailableError, UnknownCustomerError
from forecast_service.loader import ModelLoader

CHECKS_AT_ONCE = 16
RETRIES_AT_ONCE = 4  # beside those: a retry that hangs takes nobody else's place
ROUNDS = 20  # in the time within which each model is checked
SHORTEST, LONGEST = 0.7, 0.9  # of that time, between two checks; what is left is for two rounds
MOST_PUT_OFF = 3  # times that the time between two checks of a customer doubles
logger = logging.getLogger("ray.serve.forecasts")


@dataclass(slots=True)
class _Turn:
    """When a customer is checked, who has a model in memory, or has a place there without one."""

    customer_id: str
    has_model: bool
    due_s: float  # on the event loop's clock
    put_off: int = 0  # checks in a row without an answer, or without a model


class ModelReloader:
    """Compares what a loader holds with the store, and reloads what has changed.

    A check is one request, which the store answers without a body as long as nothing has changed.
    Each model is checked every `check_s` seconds, at the latest. A customer is put off whom the
    store does not answer for, or has no good model of: the time to the next check doubles with each
    such check in a row, from `check_s` to eight times as much. These retries take no other's place.

    A store that has answered no check for `check_s` is away. It is asked a few times a round, and
    puts nobody off any further: within twice `check_s` of its return it is noticed, and within once
    more each model is checked.
    """

    def __init__(
        self,
        loader: ModelLoader,
        check_s: float,
        on_reload: Callable[[ServiceError | None], None] = lambda error: None,
    ):
        """Take a loader, and the seconds within which each of its models is checked.

        `on_reload` is told of each model that comes into memory, with None, and of each check that
        the store did not answer, or with a damaged model, with the error.

        Raises:
            ValueError: unless the time is more than 0 seconds.
        """
        if not check_s > 0:
            raise ValueError(f"models are checked each {check_s} s: it takes more than 0")
        self._loader = loader
        self._check_s = check_s
        self._round_s = check_s / ROUNDS
        self._on_reload = on_reload
        self._turns: dict[tuple[str, bool], _Turn] = {}  # who gains or loses a model has a new one
        self._silent_since_s: float | None = None  # when the first check failed since an answer
        self._away = False
        self._random = random.Random()  # without a seed: replicas must not ask in step

    async def run(self) -> None:
        """Check, round by round, until cancelled.

        Raises an ExceptionGroup of what no check is expected to raise, and stops at that.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_turns(tasks, CHECKS_AT_ONCE, retries=False))
            tasks.create_task(self._take_turns(tasks, RETRIES_AT_ONCE, retries=True))

    async def _take_turns(self, tasks: asyncio.TaskGroup, at_once: int, retries: bool) -> None:
        room = asyncio.Semaphore(at_once)
        while True:
            await asyncio.sleep(self._round_s)
            for place, turn in enumerate(self._due(retries)):
                if place >= RETRIES_AT_ONCE and self._silent_s() > self._round_s:
                    break  # the others stay due
                await room.acquire()
                turn.due_s = math.inf  # it is at work
                tasks.create_task(self._check(turn, room))

    def _due(self, retries: bool) -> list[_Turn]:
        """Return the turns that have come, of those who are put off or of the others, in order."""
        now_s = asyncio.get_running_loop().time()
        held = ((name, name in self._loader) for name in self._loader)
        self._turns = {key: self._turns.get(key) or _Turn(*key, self._in_s(0)) for key in held}
        due = [
            turn
            for turn in self._turns.values()
            if turn.due_s <= now_s and bool(turn.put_off) == retries
        ]
        due.sort(key=lambda turn: turn.due_s)
        late_s = now_s - due[0].due_s if due else 0
        if late_s > self._check_s and not retries and self._silent_since_s is None:
            logger.warning(f"Checks of models are {late_s:.0f} s late: raise reload_check_s.")
        return due

    def _in_s(self, shortest: float = SHORTEST, put_off: int = 0) -> float:
        """Return when to check a customer, if it has been checked, or loaded, now."""
        now_s = asyncio.get_running_loop().time()
        return now_s + self._random.uniform(shortest, LONGEST) * self._check_s * 2**put_off

    async def _check(self, turn: _Turn, room: asyncio.Semaphore) -> None:
        """Check a customer, say what came of it, and set its next turn."""
        error, changed = None, False
        try:
            changed = await self._loader.reload(turn.customer_id)
        except ServiceError as raised:
            error = raised
        finally:
            room.release()
        answered = not isinstance(error, StoreUnavailableError)
        self._listen(None if answered else error)
        self._report(turn, error, changed)
        if answered and turn.has_model:
            turn.put_off = 0
        elif answered or not self._away:
            turn.put_off = min(turn.put_off + 1, MOST_PUT_OFF)
        turn.due_s = self._in_s(put_off=turn.put_off)
        error = None  # it and this frame refer to each other, and its traceback to the model

    def _silent_s(self) -> float:
        """Return for how long checks have failed, and none has been answered."""
        since_s = self._silent_since_s
        return 0 if since_s is None else asyncio.get_running_loop().time() - since_s

    def _listen(self, failure: StoreUnavailableError | None) -> None:
        """Note that the store has answered, or has not, and say so if that is news."""
        if failure is None:
            self._silent_since_s = None
            if self._away:
                self._away = False
                for turn in self._turns.values():
                    turn.due_s = self._in_s(0)
                logger.warning("Models in memory are checked again.")
        elif self._silent_since_s is None:
            self._silent_since_s = asyncio.get_running_loop().time()
        elif not self._away and self._silent_s() > self._check_s:
            self._away = True
            logger.warning(f"Models in memory go on unchecked: {failure}.")

    def _report(self, turn: _Turn, error: ServiceError | None, changed: bool) -> None:
        name = turn.customer_id
        if isinstance(error, UnknownCustomerError):
            if turn.has_model:
                logger.info(f"The model of {name} has left the store, and so memory.")
        elif isinstance(error, StoreUnavailableError):
            self._on_reload(error)
            if turn.has_model and turn.put_off == 1 and not self._away:  # so it is not the store
                cause = error.__cause__ or ""
                logger.warning(f"Could not check {name}, its model goes on: {error}. {cause}")
        elif error:
            self._on_reload(error)
            goes_on = " anew, its old model goes on" if turn.has_model else ""
            logger.warning(f"Could not load {name}{goes_on}: {error}.")
        elif changed:
            self._on_reload(None)
            logger.info(f"Reloaded {name}.")
