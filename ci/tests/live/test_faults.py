"""What broken artifacts, a broken store and impatient clients do to both services."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from live_service import ON_BOTH, STORE_DELAY_S, artifact_of, is_hit

from forecast_service.artifact import from_bytes
from lab.chapter import NAMED
from lab.serving import wait_until

pytestmark = ON_BOTH
WAITERS = 50
WARM = NAMED[0]


def flip_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def with_nan_weights(data: bytes) -> bytes:
    """Return a well-formed artifact, checksum included, whose weights are not numbers."""
    model = from_bytes(data, BROKEN["NaN weights"])
    return artifact_of(model, weights=np.full_like(model.weights, np.nan))


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
    assert is_hit(again), "a warm model was evicted"
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


def test_a_store_that_takes_30_s_is_a_503_and_a_warm_neighbour_does_not_wait(
    ask, store, warm_answer
):
    store.delay_s = 30  # as long as the client waits
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, "customer_0004")
        wait_until(lambda: "customer_0004" in store.reads, "the store is asked")
        assert ask(WARM).content == warm_answer, "a model in memory waits for the store"
        assert not slow.done(), "the slow request did not outlast the warm one: nothing was shown"
        assert slow.result().status_code == 503
    assert "Retry-After" in slow.result().headers


def test_cold_customers_do_not_wait_for_one_another(ask, store):
    cold = [f"customer_{number:04d}" for number in range(10, 20)]
    store.delay_s = STORE_DELAY_S
    with ThreadPoolExecutor(len(cold)) as pool:
        assert {answer.status_code for answer in pool.map(ask, cold)} == {200}
    assert store.most_at_once > 1, "models are read one after another"


def test_requests_for_one_cold_customer_share_one_read_and_get_one_answer(ask, store):
    store.delay_s = STORE_DELAY_S
    with ThreadPoolExecutor(WAITERS) as pool:
        answers = list(pool.map(ask, ["customer_0021"] * WAITERS))
    assert store.reads["customer_0021"] == 1
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    waited = [answer for answer in answers if not is_hit(answer)]
    assert len(waited) > 1, "nobody else waited for the read: nothing was shown"


def test_a_client_that_gives_up_does_not_stop_the_load_for_others(ask, store):
    store.delay_s = STORE_DELAY_S
    with ThreadPoolExecutor(1) as pool:
        impatient = pool.submit(ask, "customer_0022", timeout=STORE_DELAY_S / 2)
        wait_until(lambda: "customer_0022" in store.reads, "the store is asked")
        assert ask("customer_0022").status_code == 200
        with pytest.raises(requests.Timeout):
            impatient.result()
    assert store.reads["customer_0022"] == 1, "the load was started over"


def test_the_cache_evicts_the_least_recently_used_model(ask, store):
    first, second, third, fourth, fifth = NAMED[:5]
    for customer_id in (first, second, third, fourth, first, fifth):
        ask(customer_id)
    store.reads.clear()
    for customer_id in (first, third, fourth, fifth):
        assert is_hit(ask(customer_id)), "the wrong model was evicted"
    assert not store.reads
    assert not is_hit(ask(second)) and store.reads == {second: 1}
