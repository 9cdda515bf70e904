"""What the service reports of itself, beside what Ray Serve reports. No label names a customer.

Ray adds the labels `application`, `deployment` and `replica`, and exports each name with the prefix
`ray_`; a counter's name gets the suffix `_total`.

An outcome of `forecast_requests` is

- `hit` or `miss`: a forecast, of a model that was in memory, or of one that was not
- the name of an error in errors.py, which has the status. `ClientLeftError`: while it sent its body
- `InvalidBodyError`: 422 over HTTP; through a handle, and so from the portfolio and from gRPC, it
  is `InvalidHistoryError`
- `CancelledError`: nobody waited for the answer any more. The client left, or its time was up
- another name: a bug, which HTTP answers with 500
"""

import asyncio
import math
from collections import Counter as Count
from collections.abc import Iterator
from contextlib import contextmanager

from ray.serve.metrics import Counter, Gauge, Histogram

from forecast_service.errors import ServiceError

PUBLISH_EVERY_S = 1  # counts of requests: to count each with Ray costs some percent of it
COLD_LOAD_BOUNDS_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]


class ServiceMetrics:
    """The metrics of one replica."""

    def __init__(self):
        self._outcomes: Count[str] = Count()  # since they were published
        self._requests = Counter(
            "forecast_requests",
            "Requests by outcome: hit or miss for a forecast, otherwise the error's name.",
            tag_keys=("outcome",),
        )
        self._load_failures = Counter(
            "forecast_load_failures",
            "Reads of the model store without a model to serve, by the error's name, and by who "
            "asked: a request; or the service, for pinned models and those in memory.",
            tag_keys=("kind", "asked_by"),
        )
        self._cold_load_seconds = Histogram(
            "forecast_cold_load_seconds",
            "From asking the store for a request's model to having it in memory.",
            boundaries=COLD_LOAD_BOUNDS_S,
        )
        self._reloads = Counter(
            "forecast_reloads",
            "Models that came into memory because the store had a newer one, or a first one.",
        )
        self._models = Gauge("forecast_models_in_memory", "Models in memory, the pinned included.")
        self._memory = Gauge("forecast_model_memory_bytes", "What these take, as they say.")
        self._budget = Gauge("forecast_model_memory_budget_bytes", "What they may take, if set.")
        self._unloads = Counter(
            "forecast_unloads",
            "Models that the service unloaded: to stay within the budget, or because they were "
            "idle. Ray Serve's cache counts its own evictions.",
            tag_keys=("reason",),
        )

    @contextmanager
    def count_request(self, hit: bool) -> Iterator[None]:
        """Count a request by what comes of it."""
        outcome = "hit" if hit else "miss"
        try:
            yield
        except BaseException as error:  # asyncio.CancelledError is no Exception
            outcome = type(error).__name__
            raise
        finally:
            self._outcomes[outcome] += 1

    async def publish(self) -> None:
        """Report the requests that were counted, every PUBLISH_EVERY_S, until cancelled."""
        while True:
            await asyncio.sleep(PUBLISH_EVERY_S)
            outcomes, self._outcomes = self._outcomes, Count()
            for outcome, requests in outcomes.items():
                self._requests.inc(requests, tags={"outcome": outcome})

    def record_load(self, elapsed_s: float, error: BaseException | None) -> None:
        """Record that a load for requests ended, after `elapsed_s`, with a model or an error."""
        if error:
            self._record_failure(error, "request")
        else:
            self._cold_load_seconds.observe(elapsed_s)

    def record_reload(self, error: ServiceError | None) -> None:
        """Record that the service itself brought a model into memory, or could not.

        In the latter case, the one that was there may have stayed.
        """
        if error:
            self._record_failure(error, "service")
        else:
            self._reloads.inc()

    def record_unload(self, reason: str) -> None:
        """Record that the service unloaded a model: for "budget", or as it was "idle"."""
        self._unloads.inc(tags={"reason": reason})

    def set_memory(self, models: int, size_bytes: int, budget_bytes: float) -> None:
        """Set how many models are in memory, what they take, and what they may take, if limited.

        Ray forgets a gauge that is old: this has to be called again and again.
        """
        self._models.set(models)
        self._memory.set(size_bytes)
        if math.isfinite(budget_bytes):
            self._budget.set(budget_bytes)

    def _record_failure(self, error: BaseException, asked_by: str) -> None:
        self._load_failures.inc(tags={"kind": type(error).__name__, "asked_by": asked_by})
