"""Pinned customers: warm before the first request, whatever else is asked for."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from live_service import SERVICE, STORE_DELAY_S, LogWatch, is_hit
from ray import serve

from forecast_service.store import PROBE
from lab.cluster_metrics import read_metrics
from lab.serving import wait_until

PINNED = "customer_0041", "customer_0042"
MISSING = "customer_9999"
URL = f"{SERVICE}/pinned"
LOG = "replica_pinned_*.log"


@pytest.fixture(scope="module")
def pinned(live_store, fleet, launch_production, session_dir) -> Iterator[dict[str, int]]:
    """A service with a cache of four and three customers to pin. Yields what it read to start."""
    live_store.repair(fleet)
    launch_production(
        "pinned",
        # the level at which Ray Serve logs what it loads
        {"logging_config": {"log_level": "DEBUG", "enable_access_log": False}},
        pinned_customers=(*PINNED, MISSING),
    )
    yield dict(live_store.reads)
    serve.delete("pinned")


@pytest.fixture(scope="module")
def log(session_dir) -> LogWatch:
    """What is logged from before the service is launched."""
    return LogWatch(session_dir)


def test_ray_serve_has_pinned_models_before_the_first_request_and_so_its_router_knows(log, pinned):
    for name in PINNED:
        said = f"Successfully loaded model '{name}'"
        wait_until(lambda said=said: said in log.new(LOG), f"{said!r} is logged")


def test_pinned_models_are_loaded_before_the_first_request_and_survive_a_sweep(
    pinned, store, ask, fleet
):
    assert pinned == dict.fromkeys((*PINNED, MISSING, PROBE), 1)
    assert not any(is_hit(ask(name, url=URL)) for name in fleet if name not in PINNED)
    for name in PINNED:
        answer = ask(name, url=URL)
        assert answer.ok and is_hit(answer)
    assert not store.reads.keys() & set(PINNED)


def test_a_pinned_customer_without_a_model_is_named_in_the_log_and_stops_nothing(log, pinned, ask):
    assert ask(MISSING, url=URL).status_code == 404
    wait_until(lambda: "Not pinned" in log.new(LOG), "it is logged")
    (line,) = [line for line in log.new(LOG).splitlines() if "Not pinned" in line]
    assert line.startswith("WARNING") and MISSING in line


@pytest.fixture
def counted(session_dir):
    """Read a counter of the application `counted`, by its labels that are not Ray's."""

    def counted(name: str, *labels: str) -> Counter:
        found = Counter()
        for sample in read_metrics(session_dir):
            if sample.name == name and sample.labels["application"] == "counted":
                found[tuple(sample.labels[label] for label in labels)] += int(sample.value)
        return found

    return counted


def test_what_is_counted_of_pins_and_of_requests(store, fleet, ask, launch_production, counted):
    damaged, pinned, url = "customer_0043", PINNED[0], f"{SERVICE}/counted"
    evicting, cold = PINNED[1], "customer_0044"
    store.artifacts[damaged] = fleet[damaged][:-1]
    launch_production(
        "counted",
        pinned_customers=(pinned, damaged, MISSING),
        models_per_replica=1,
        reload_check_s=1,
    )
    wait_until(lambda: store.checks[damaged] >= 2, "the damaged model is checked", 60)
    wait_until(lambda: store.reads[MISSING] >= 3, "the missing model is looked for", 60)
    assert store.bodies[damaged] == 1, "what cannot be used was read again"

    assert not is_hit(ask(evicting, url=url))  # Ray Serve's cache has one place
    assert is_hit(ask(pinned, url=url))
    store.delay_s = STORE_DELAY_S
    with ThreadPoolExecutor(5) as threads:
        joining = list(threads.map(lambda _: ask(cold, url=url), range(5)))
    assert not any(map(is_hit, joining)) and store.reads[cold] == 1

    outcomes = {("hit",): 1, ("miss",): 6}
    requests = "ray_forecast_requests_total"
    wait_until(lambda: counted(requests, "outcome") == outcomes, f"counted: {outcomes}", 30)
    failures = counted("ray_forecast_load_failures_total", "asked_by", "kind")
    assert failures.pop(("service", "CorruptModelError")) == 1
    assert failures.keys() == {("service", "UnknownCustomerError")}, "nobody asked for these"
    cache_loads = counted("ray_serve_multiplexed_models_load_counter_total")
    assert cache_loads == {(): 4}, "Ray Serve's cache takes a pin for a miss, and joiners for hits"
    serve.delete("counted")
