"""Keep the models in memory as new as those in the store, while requests are served."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator

from forecast_service.errors import StoreUnavailableError, UnknownCustomerError
from forecast_service.loader import ModelLoader

CHECKS_AT_ONCE = 16
ROUNDS = 20  # in the time within which each model is checked
SHORTEST, LONGEST = 0.7, 0.9  # of that time, between two checks; what is left is for two rounds
logger = logging.getLogger("ray.serve")


class ModelReloader:
    """Compares each model that a loader has in memory with the store, and reloads what has changed.

    A check is one request, which the store answers without a body as long as nothing has changed.
    """

    def __init__(
        self,
        loader: ModelLoader,
        check_s: float,
        on_reload: Callable[[BaseException | None], None] = lambda error: None,
    ):
        """Take a loader, and the seconds within which each of its models is checked.

        `on_reload` is told of each new model, with None, and of each check that ended in an error.

        Raises:
            ValueError: unless the time is more than 0 seconds.
        """
        if not check_s > 0:
            raise ValueError(f"models are checked each {check_s} s: it takes more than 0")
        self._loader = loader
        self._check_s = check_s
        self._on_reload = on_reload
        self._due_s: dict[str, float] = {}  # by customer, on the event loop's clock
        self._store_answers = True
        self._random = random.Random()  # without a seed: replicas must not ask in step

    async def run(self) -> None:
        """Check, round by round, until cancelled."""
        while True:
            await asyncio.sleep(self._check_s / ROUNDS)
            self._due_s = {name: self._due_s.get(name) or self._in_s(0) for name in self._loader}
            now_s = asyncio.get_running_loop().time()
            due = [name for name, due_s in self._due_s.items() if due_s <= now_s]
            late_s = max((now_s - self._due_s[name] for name in due), default=0)
            if late_s > self._check_s and self._store_answers:
                logger.warning(f"Checks of models are {late_s:.0f} s late: raise reload_check_s.")
            in_turn = iter(due)
            ends = await asyncio.gather(*(self._check(in_turn) for _ in range(CHECKS_AT_ONCE)))
            failures = [end for end in ends if end]
            if self._store_answers == bool(failures):
                self._store_answers = not failures
                if failures:
                    logger.warning(f"Models in memory go on unchecked: {failures[0]}.")
                else:
                    logger.warning("Models in memory are checked again.")

    def _in_s(self, shortest: float = SHORTEST) -> float:
        """Return when to check a model, if it has been checked, or loaded, now."""
        now_s = asyncio.get_running_loop().time()
        return now_s + self._random.uniform(shortest, LONGEST) * self._check_s

    async def _check(self, names: Iterator[str]) -> StoreUnavailableError | None:
        """Check one customer after another. Stop at the store's first failure, and return it."""
        for name in names:
            loaded = name in self._loader  # otherwise somebody waits for this customer's first
            check = self._loader.reload if loaded else self._loader.load
            (outcome,) = await asyncio.gather(check(name), return_exceptions=True)
            if loaded:
                self._report(name, outcome)
            if isinstance(outcome, StoreUnavailableError):
                return outcome  # it stays due
            self._due_s[name] = self._in_s()
        return None

    def _report(self, name: str, outcome: bool | BaseException) -> None:
        if isinstance(outcome, UnknownCustomerError):
            logger.info(f"The model of {name} has left the store, and so memory.")
        elif isinstance(outcome, BaseException):
            self._on_reload(outcome)
            if not isinstance(outcome, StoreUnavailableError):
                logger.warning(f"Could not load {name} anew, its old model goes on: {outcome}.")
        elif outcome:
            self._on_reload(None)
            logger.info(f"Reloaded {name}.")
