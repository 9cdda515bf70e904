"""Pinned customers: warm before the first request, whatever else is asked for."""

import os
import subprocess

import pytest
import ray
import requests
from conftest import CONTENT, FAST, SERVICE
from ray import serve
from ray.util.state import get_log, list_logs

PINNED = "customer_0041", "customer_0042"
MISSING = "customer_9999"
reads_log = pytest.mark.skipif(FAST, reason="with it, Ray writes a log in blocks of 1000 lines")


@pytest.fixture(scope="module")
def pinned_service(live_store, fleet):
    """A second application of the service, with a cache of four and three customers to pin."""
    live_store.artifacts = dict(fleet)
    live_store.delay_s, live_store.down = 0.0, False
    settings = {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "MODEL_STORE": live_store.url,
        "MODELS_PER_REPLICA": "4",
        "CPUS_PER_REPLICA": "0",
        "PINNED_CUSTOMERS": ",".join((*PINNED, MISSING)),
        "LOG_LEVEL": "DEBUG",  # at which Ray Serve logs what it loads
    }
    launch = ["serve", "run", "serve_forecast_multiplex:app", "--non-blocking"]
    launch += ["--name", "pinned", "--route-prefix", "/pinned"]
    live_store.reads.clear()
    subprocess.run(launch, cwd=CONTENT, env=os.environ | settings, check=True, timeout=120)
    assert serve.status().applications["pinned"].status == "RUNNING"
    yield dict(live_store.reads)
    serve.delete("pinned")


def ask_pinned(customer_id: str, history: list[int]) -> requests.Response:
    return requests.post(
        f"{SERVICE}/pinned",
        headers={"serve_multiplexed_model_id": customer_id},
        json={"sequence_data": history},
        timeout=30,
    )


def read_log() -> str:
    """Return what the replica has logged."""
    (node,) = ray.nodes()
    (name,) = list_logs(node_id=node["NodeID"], glob_filter="serve/*pinned_Fore*")["internal"]
    return "".join(get_log(node_id=node["NodeID"], filename=name, tail=-1))


@reads_log
def test_ray_serve_has_pinned_models_before_the_first_request_and_so_its_router_knows(
    pinned_service,
):
    log = read_log()
    for name in PINNED:
        assert f"Successfully loaded model '{name}'" in log


def test_pinned_models_are_loaded_before_the_first_request_and_survive_a_sweep(
    pinned_service, store, histories, fleet
):
    assert pinned_service == dict.fromkeys((*PINNED, MISSING), 1)
    history = histories["customer_123"]
    for name in [name for name in fleet if name not in PINNED]:
        assert "miss" in ask_pinned(name, history).headers["Server-Timing"]
    for name in PINNED:
        answer = ask_pinned(name, history)
        assert answer.ok and "hit" in answer.headers["Server-Timing"]
    assert not store.reads.keys() & set(PINNED)


@reads_log
def test_a_pinned_customer_without_a_model_is_named_in_the_log_and_stops_nothing(
    pinned_service, store, histories
):
    assert ask_pinned(MISSING, histories["customer_123"]).status_code == 404
    (line,) = [line for line in read_log().splitlines() if "Not pinned" in line]
    assert line.startswith("WARNING") and MISSING in line
