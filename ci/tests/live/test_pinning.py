"""Pinned customers: warm before the first request, whatever else is asked for."""

from collections.abc import Iterator

import pytest
from live_service import SERVICE, LogWatch, is_hit
from ray import serve

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
    assert pinned == dict.fromkeys((*PINNED, MISSING), 1)
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
