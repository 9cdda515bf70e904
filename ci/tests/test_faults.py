"""What broken artifacts, a broken store and impatient clients do to the live service."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import ray
import requests
from conftest import FAST, MODELS_PER_REPLICA, NAMED, STORE_TIMEOUT_S
from ray import serve
from ray.util.state import get_log, list_logs

from forecasting import Scores
from model_artifact import from_bytes, to_bytes
from model_store import InvalidCustomerIdError, UnknownCustomerError

WARM = NAMED[0]


def flip_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def with_nan_weights(data: bytes) -> bytes:
    """Return a well-formed artifact, checksum included, whose weights are not numbers."""
    model = from_bytes(data, BROKEN["NaN weights"])
    return to_bytes(replace(model, weights=np.full_like(model.weights, np.nan)), Scores(1, 1, 1, 1))


BREAKAGES = {
    "truncated": lambda data: data[:-100],
    "cut to nothing": lambda data: b"",
    "one bit flipped": flip_bit,
    "NaN weights": with_nan_weights,
    "a pickle": lambda data: pickle.dumps({"weights": [1.0]}),
    "not a model": lambda data: b"<html>404</html>" * 100,
}
BROKEN = {breakage: f"customer_{30 + number:04d}" for number, breakage in enumerate(BREAKAGES)}


@pytest.fixture
def warm_answer(ask) -> bytes:
    """What a healthy, warm customer gets, before the fault."""
    return ask(WARM).content


def coldly_ask(ask, customer_id: str, **options) -> requests.Response:
    """Ask for a customer whose model is certainly not in memory."""
    for other in NAMED[-MODELS_PER_REPLICA:]:
        assert ask(other).status_code == 200
    return ask(customer_id, **options)


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_artifact_is_a_502_that_names_the_customer(
    ask, store, fleet, warm_answer, breakage
):
    customer_id = BROKEN[breakage]
    store.artifacts[customer_id] = BREAKAGES[breakage](fleet[customer_id])
    answer = ask(customer_id)
    assert answer.status_code == 502
    assert customer_id in answer.json()["detail"]
    again = ask(WARM)
    assert again.headers["Server-Timing"].startswith("cache;desc=hit"), "a warm model was evicted"
    assert again.content == warm_answer
    store.artifacts[customer_id] = fleet[customer_id]
    assert ask(customer_id).status_code == 200, "a repaired artifact is not picked up"


def test_another_customers_artifact_is_a_502_that_does_not_name_the_other(ask, store, fleet):
    store.artifacts["customer_0040"] = fleet["customer_0002"]
    answer = ask("customer_0040")
    assert answer.status_code == 502
    assert "customer_0002" not in answer.text


def test_a_store_that_is_down_is_a_503_that_a_retry_cures(ask, store, warm_answer):
    store.down = True
    answer = ask("customer_0003")
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert "127.0.0.1" not in answer.text, "the answer tells where the store is"
    assert ask(WARM).content == warm_answer, "a model in memory stopped answering"
    store.down = False
    assert ask("customer_0003").status_code == 200


def test_a_store_that_takes_30_s_is_a_503_long_before(ask, store, warm_answer):
    store.delay_s = 30
    start = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, "customer_0004")
        while "customer_0004" not in store.reads:
            assert time.monotonic() - start < 30, "the store was never asked"
        assert ask(WARM).content == warm_answer, "a model in memory waits for the store"
        assert not slow.done(), "the slow request did not outlast the warm one: nothing was shown"
        assert slow.result().status_code == 503
    assert time.monotonic() - start < 30, f"the limit of {STORE_TIMEOUT_S} s did not hold"


def test_cold_customers_do_not_wait_for_one_another(ask, store):
    cold = [f"customer_{number:04d}" for number in range(10, 20)]
    store.delay_s = 0.5
    start = time.monotonic()
    assert ask("customer_0009").status_code == 200
    one_s = time.monotonic() - start
    with ThreadPoolExecutor(len(cold)) as pool:
        start = time.monotonic()
        assert {answer.status_code for answer in pool.map(ask, cold)} == {200}
    assert time.monotonic() - start < 3 * one_s


def test_requests_for_one_cold_customer_share_one_read_and_get_one_answer(ask, store):
    store.delay_s = 0.5
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, ["customer_0021"] * 20))
    assert store.reads["customer_0021"] == 1
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1


def test_a_client_that_gives_up_does_not_stop_the_load_for_others(ask, store):
    store.delay_s = 0.3 * STORE_TIMEOUT_S
    with pytest.raises(requests.Timeout):
        ask("customer_0022", timeout=0.1)
    assert ask("customer_0022").status_code == 200
    assert store.reads["customer_0022"] == 1, "the load was started over"


def test_the_cache_evicts_the_least_recently_used_model(ask, store):
    first, second, third, fourth, fifth = NAMED[:5]
    for customer_id in (first, second, third, fourth, first, fifth):
        ask(customer_id)
    store.reads.clear()
    for customer_id in (first, third, fourth, fifth):
        ask(customer_id)
    assert not store.reads
    ask(second)
    assert store.reads == {second: 1}


@pytest.mark.skipif(FAST, reason="with it, Ray writes a log in blocks of 1000 lines")
def test_a_cold_load_is_logged_once_with_customer_bytes_and_time(ask, store, fleet):
    replica_id = coldly_ask(ask, "customer_0023").headers["X-Replica-Id"]
    ask("customer_0023")
    (node,) = ray.nodes()
    (name,) = list_logs(node_id=node["NodeID"], glob_filter=f"serve/*{replica_id}*")["internal"]
    log = "".join(get_log(node_id=node["NodeID"], filename=name, tail=-1)).splitlines()
    (line,) = [line for line in log if "Cold load of customer_0023" in line]
    assert line.startswith("INFO")
    assert f"{len(fleet['customer_0023'])} bytes" in line
    assert line.endswith(" ms.")


@pytest.mark.skipif(FAST, reason="with it, Ray wants handles used inside an event loop")
def test_the_handle_gives_the_http_answer_and_raises_its_errors_by_type(ask, store, histories):
    handle = serve.get_app_handle("default")

    def forecast(model_id: str, history: list) -> dict:
        return (
            handle.options(multiplexed_model_id=model_id)
            .forecast.remote(history)
            .result(timeout_s=30)
        )

    history = histories["customer_123"]
    assert forecast("customer_123", history) == ask("customer_123", history).json()
    with pytest.raises(UnknownCustomerError):
        forecast("customer_000", history)
    with pytest.raises(InvalidCustomerIdError):
        forecast("../customer_123", history)
    with pytest.raises(InvalidCustomerIdError):
        forecast("", history)
    with pytest.raises(ValueError, match="at least 7"):
        forecast("customer_123", history[:6])
