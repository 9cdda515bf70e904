"""What the service reports of itself, beside what Ray Serve reports. No label names a customer.

Ray adds the labels `application`, `deployment` and `replica`, and exports each name with the prefix
`ray_`; a counter's name gets the suffix `_total`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.serve.metrics import Counter, Histogram

COLD_LOAD_BOUNDS_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]


class ServiceMetrics:
    """The metrics of one replica."""

    def __init__(self):
        self._requests = Counter(
            "forecast_requests",
            "Requests by outcome: hit or miss for a forecast, otherwise the error's name.",
            tag_keys=("outcome",),
        )
        self._load_failures = Counter(
            "forecast_load_failures",
            "Reads of the model store without a model to serve, by the error's name.",
            tag_keys=("kind",),
        )
        self._cold_load_seconds = Histogram(
            "forecast_cold_load_seconds",
            "From asking the store for a model to having it in memory.",
            boundaries=COLD_LOAD_BOUNDS_S,
        )
        self._reloads = Counter(
            "forecast_reloads", "Models in memory that were replaced by a newer one of the store."
        )

    @contextmanager
    def count_request(self, hit: bool) -> Iterator[None]:
        """Count a request by what comes of it."""
        outcome = "hit" if hit else "miss"
        try:
            yield
        except BaseException as error:  # a client that has gone raises asyncio.CancelledError
            outcome = type(error).__name__
            raise
        finally:
            self._requests.inc(tags={"outcome": outcome})

    def record_load(self, elapsed_s: float, error: BaseException | None) -> None:
        """Record that a load ended, after `elapsed_s` seconds, with a model or with an error."""
        if error:
            self._load_failures.inc(tags={"kind": type(error).__name__})
        else:
            self._cold_load_seconds.observe(elapsed_s)

    def record_reload(self, error: BaseException | None) -> None:
        """Record that a model in memory was replaced, or could not be compared or replaced."""
        if error:
            self._load_failures.inc(tags={"kind": type(error).__name__})
        else:
            self._reloads.inc()
