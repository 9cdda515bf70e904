"""A budget of memory on the live service: what is resident, what is refused, what stays warm.

The models are those of lab/heavy_service.py, in a store that answers over HTTP.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import psutil
import pytest
from live_service import FAST, SERVICE, LogWatch, is_hit, replica_pid
from ray import serve

from faulty_store import FaultyStore
from forecast_service.errors import ModelTooLargeError
from forecast_service.memory import MB
from forecast_service.settings import Settings
from lab import heavy_service
from lab.capacity import budget_hit_rates
from lab.cluster_metrics import read_metrics
from lab.serving import launch, wait_until
from lab.traffic import Outcomes, load_customers, send, zipf_trace

BUDGET_MB = 50
SLACK = 1.2  # of the budget may be resident: what is being loaded comes beside
FLEETS = {"alike": (4,), "mixed": (1, 4, 7)}  # megabytes of the models, in turn
CUSTOMERS = 40
SKEW = 1.0
REQUESTS = 3600  # one a second for an hour. Compressed: each as soon as AT_ONCE allow it
WARM_UP = 600  # of these
AT_ONCE = 8
SAMPLE_S = 0.01
NAME, URL = "heavy", f"{SERVICE}/heavy"
LOG = "replica_heavy_*.log"
ONCE = "once will do"  # what is in a replica's memory is no matter of the ingress
spend_an_hour = pytest.mark.skipif(not FAST, reason=ONCE)
spend_a_moment = pytest.mark.skipif(FAST, reason=ONCE)


@dataclass(frozen=True)
class Hour:
    """An hour's traffic on one replica under a budget, and what came of it."""

    trace: np.ndarray  # (requests,), rows in sizes_bytes
    sizes_bytes: np.ndarray  # (customers,), of the models, as they say themselves
    hit: np.ndarray  # (requests,), whether the model was in memory, as the service says
    resident_bytes: np.ndarray  # (samples,), above an empty replica's, after the warm-up

    @property
    def hit_rate(self) -> float:
        return float(self.hit[WARM_UP:].mean())


class ResidentBytes:
    """Samples what a process has resident while it is entered."""

    def __init__(self, pid: int):
        self._process, self._over = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.samples = [self._process.memory_info().rss]

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.samples.append(self._process.memory_info().rss)

    def __enter__(self) -> "ResidentBytes":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()


def launch_heavy(store: FaultyStore, **settings: object) -> None:
    defaults = {"models_per_replica": 1000, "model_memory_mb": BUDGET_MB, "reload_check_s": 1}
    app = heavy_service.app(Settings(model_store=store.url, **defaults | settings))
    launch(app, NAME, f"/{NAME}")


def artifacts(fleet: dict[str, bytes], sizes_mb: list[float]) -> dict[str, bytes]:
    """Return artifacts of so many customers, with payloads of these sizes."""
    payload = np.random.default_rng(0).bytes(int(max(sizes_mb) * MB))
    return {
        name: heavy_service.add_payload(fleet[name], payload[: int(size_mb * MB)])
        for name, size_mb in zip(fleet, sizes_mb, strict=False)
    }


def ask_all(customer_ids: list[str], trace: np.ndarray) -> Outcomes:
    customers = load_customers(customer_ids)
    outcomes = asyncio.run(send(f"{URL}/", *customers, trace, concurrency=AT_ONCE, progress=False))
    assert set(outcomes.status) == {"200"}
    return outcomes


@pytest.fixture(scope="module")
def heavy_store(session_dir) -> Iterator[FaultyStore]:
    yield FaultyStore()
    serve.delete(NAME)


@pytest.fixture(scope="module")
def trace() -> np.ndarray:
    return zipf_trace(CUSTOMERS, REQUESTS, SKEW, seed=0)


@pytest.fixture(scope="module")
def empty_bytes(heavy_store, fleet, trace) -> int:
    """What is resident in a replica that has had the same traffic, for models without weight."""
    heavy_store.artifacts = artifacts(fleet, [0] * CUSTOMERS)
    launch_heavy(heavy_store)
    ask_all(list(heavy_store.artifacts), trace)
    resident_bytes = psutil.Process(replica_pid(NAME)).memory_info().rss
    serve.delete(NAME)
    return resident_bytes


@pytest.fixture(scope="module", params=FLEETS)
def hour(heavy_store, fleet, trace, empty_bytes, request) -> Hour:
    sizes_mb = FLEETS[request.param]
    heavy = artifacts(fleet, [sizes_mb[row % len(sizes_mb)] for row in range(CUSTOMERS)])
    names = list(heavy)
    heavy_store.repair(heavy)
    launch_heavy(heavy_store)
    before = ask_all(names, trace[:WARM_UP])
    with ResidentBytes(replica_pid(NAME)) as resident:
        after = ask_all(names, trace[WARM_UP:])
    serve.delete(NAME)
    sizes = [heavy_service.from_bytes(data, name).size_bytes for name, data in heavy.items()]
    return Hour(
        trace,
        np.array(sizes),
        np.concatenate([before.cache, after.cache]) == "hit",
        np.array(resident.samples) - empty_bytes,
    )


@spend_an_hour
@pytest.mark.parametrize("hour", ["alike"], indirect=True)
def test_what_is_resident_stays_within_the_budget_and_a_fifth(hour):
    resident_mb = hour.resident_bytes / MB
    print("resident MB, least, median, most:", np.percentile(resident_mb, [0, 50, 100]).round(1))
    assert np.median(resident_mb) > BUDGET_MB / 2, "the payloads are not in memory"
    assert resident_mb.max() <= SLACK * BUDGET_MB


@spend_an_hour
def test_hits_are_those_that_the_planner_predicts(hour):
    (expected,) = budget_hit_rates(hour.trace, hour.sizes_bytes, [BUDGET_MB * MB], WARM_UP)
    print("hit rate", hour.hit_rate, "predicted", expected)
    assert 0.3 < expected < 0.9
    assert hour.hit_rate == pytest.approx(expected, abs=0.03)


@pytest.fixture
def few(heavy_store, fleet) -> dict[str, bytes]:
    """Five customers with models of 2, 2, 6, 1 and 1 MB, in the store."""
    heavy = artifacts(fleet, [2, 2, 6, 1, 1])
    heavy_store.repair(heavy)
    return heavy


def samples(session_dir, name: str, replica: str) -> Counter:
    """Return a metric of a replica, by the reason that its label gives, if it has one."""
    found = Counter()
    for sample in read_metrics(session_dir):
        if sample.name == name and sample.labels["replica"] == replica:
            found[sample.labels.get("reason")] += sample.value
    return found


@spend_a_moment
def test_a_model_too_large_is_a_507_and_the_others_stay_warm(
    few, heavy_store, ask, histories, session_dir
):
    log = LogWatch(session_dir)
    launch_heavy(heavy_store, model_memory_mb=5)
    first, second, huge, *_ = few
    assert all(ask(name, url=URL).ok for name in (first, second))
    for _ in range(3):
        answer = ask(huge, url=URL)
        assert answer.status_code == 507
        assert "6.00" in answer.json()["detail"] and "5 MB" in answer.json()["detail"]
    handle = serve.get_app_handle(NAME).options(multiplexed_model_id=huge)
    history = histories["customer_123"]
    with pytest.raises(ModelTooLargeError, match="5 MB"):
        handle.forecast.remote(history).result(timeout_s=30)
    described = handle.answer.remote(history).result(timeout_s=30)
    assert described == {"status": 507, "detail": answer.json()["detail"]}
    assert all(is_hit(ask(name, url=URL)) for name in (first, second)), "a model was lost"
    wait_until(lambda: f"Could not load {huge}" in log.new(LOG), "the log says who is too large")


@spend_a_moment
def test_who_was_used_least_recently_is_unloaded_and_said_and_counted(
    few, heavy_store, ask, session_dir
):
    log = LogWatch(session_dir)
    launch_heavy(heavy_store, model_memory_mb=5)
    first, second, _, third, fourth = few
    for name in (first, second, third, fourth):
        assert not is_hit(ask(name, url=URL))
    assert is_hit(ask(second, url=URL)) and not is_hit(ask(first, url=URL))
    wait_until(lambda: "to stay within 5 MB" in log.new(LOG), "what is unloaded is logged")
    assert f"Unloaded {first}: 2 MB, to stay within 5 MB." in log.new(LOG)
    reported = partial(samples, session_dir, replica=ask(first, url=URL).headers["X-Replica-Id"])
    unloads = "ray_forecast_unloads_total"
    wait_until(lambda: reported(unloads)["budget"] == 3, "unloads are counted", 30)
    for name, value in ("models_in_memory", 2), ("model_memory_budget_bytes", 5 * MB):
        name = f"ray_forecast_{name}"
        wait_until(lambda: reported(name).total() == value, name, 30)  # noqa: B023
    counted = reported("ray_forecast_model_memory_bytes").total()
    assert 4 * MB < counted < 4.01 * MB


@spend_a_moment
def test_an_idle_model_is_unloaded_and_not_checked_and_a_pinned_one_stays(
    few, heavy_store, ask, session_dir
):
    first, second, *_ = few
    log = LogWatch(session_dir)
    launch_heavy(heavy_store, pinned_customers=(second,), unload_idle_s=2)
    assert ask(first, url=URL).ok
    said = f"Unloaded {first}: 2 MB, not asked for in 2 s."
    wait_until(lambda: said in log.new(LOG), "the idle model is unloaded")
    heavy_store.checks.clear()
    wait_until(lambda: heavy_store.checks[second] >= 3, "the pinned one is checked")
    assert not heavy_store.checks[first], "an unloaded model is checked"
    assert is_hit(ask(second, url=URL)) and not is_hit(ask(first, url=URL))


@spend_a_moment
def test_pinned_models_beyond_the_budget_are_refused_at_start_with_both_figures(few, heavy_store):
    with pytest.raises(RuntimeError) as failed:
        launch_heavy(heavy_store, model_memory_mb=7.5, pinned_customers=tuple(few)[:3])
    said = "ValueError: the pinned models take 10.0"
    assert said in str(failed.value) and "model_memory_mb is 7.5" in str(failed.value)
