"""More requests than a service takes, and replicas that die with requests in their hands."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import requests
from live_service import FAST, SERVICE, STORE_DELAY_S, replica_pid
from ray import serve

from forecast_service.errors import RETRY_AFTER_S
from lab.serving import wait_until, wait_until_running

AT_ONCE = 12


@pytest.fixture(scope="module")
def narrow(live_store, launch_production) -> str:
    """A service that takes one request at a time and keeps one waiting."""
    launch_production("narrow", {"max_ongoing_requests": 1, "max_queued_requests": 1})
    yield f"{SERVICE}/narrow"
    serve.delete("narrow")


def test_who_is_one_too_many_is_told_when_to_try_again(narrow, ask, store):
    """The 503 is JSON where Ray's proxy is guarded: not on Anyscale, and not behind HAProxy.

    `Retry-After` is there in any case: Ray sends it, as the deployment's backpressure_config says.
    """
    store.delay_s = STORE_DELAY_S
    cold = [f"customer_{number:04d}" for number in range(1, 1 + AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda name: ask(name, url=narrow), cold))
    assert {answer.status_code for answer in answers} == {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert answer.headers["Retry-After"] == str(RETRY_AFTER_S)
            assert FAST or "try again" in answer.json()["detail"]
            assert "Traceback" not in answer.text
    store.delay_s = 0
    assert [ask(name, url=narrow).status_code for name in cold] == [200] * AT_ONCE


def test_who_was_waiting_for_a_replica_that_dies_is_told_to_try_again_and_then_served(
    ask, ask_grpc, store, histories
):
    """Over HTTP: where Ray's proxy is guarded, 503 with Retry-After; behind HAProxy, a bare 5xx."""
    history = histories["customer_123"]
    direct, by_portfolio, by_grpc = "customer_0058", "customer_0059", "customer_0060"

    def ask_portfolio() -> dict:
        body = {"histories": {by_portfolio: history}}
        answer = requests.post(f"{SERVICE}/portfolio", json=body, timeout=30)
        return answer.json()["parts"][by_portfolio]

    store.delay_s = 30
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(ask, direct)
        portfolio = pool.submit(ask_portfolio)
        call = pool.submit(ask_grpc, by_grpc, history)
        wait_until(lambda: {direct, by_portfolio, by_grpc} <= store.reads.keys(), "all wait")
        os.kill(replica_pid("default"), signal.SIGKILL)
        with pytest.raises(grpc.RpcError) as raised:
            call.result()
    part, answer = portfolio.result(), waiting.result()
    assert answer.status_code == 503 or (FAST and answer.status_code >= 500)
    if not FAST:
        assert answer.headers["Retry-After"] == str(RETRY_AFTER_S)
        assert "try again" in answer.json()["detail"]
    assert part["status"] == 503 and "try again" in part["detail"]
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "try again" in raised.value.details()
    store.delay_s = 0
    wait_until_running()
    wait_until(lambda: ask(direct).ok, "the new replica answers")
    assert "forecast" in ask_portfolio()
    assert len(ask_grpc(by_grpc, history).forecast) == 7
