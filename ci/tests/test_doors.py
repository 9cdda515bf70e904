"""The other doors, portfolio and gRPC: the same answers and errors as over HTTP."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import requests
from conftest import GRPC_PORT, NAMED, SERVICE
from ray.util.state import list_actors

from notebook_tools import wait_until, wait_until_running


def ask_portfolio(histories: dict) -> requests.Response:
    return requests.post(f"{SERVICE}/portfolio", json={"histories": histories}, timeout=30)


@pytest.fixture
def ask_grpc(store):
    import forecast_pb2
    import forecast_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{GRPC_PORT}") as channel:
        stub = forecast_pb2_grpc.ForecastServiceStub(channel)

        def ask(history: list, *metadata: tuple[str, str]):
            request = forecast_pb2.ForecastRequest(sequence_data=history)
            return stub.Forecast(request, metadata=(("application", "grpc"), *metadata), timeout=30)

        yield ask


def test_the_parts_of_a_portfolio_are_the_direct_answers_and_the_total_is_their_sum(ask, histories):
    portfolio = ask_portfolio({name: histories[name] for name in NAMED}).json()
    assert portfolio["parts"] == {name: ask(name, histories[name]).json() for name in NAMED}
    forecasts = [part["forecast"] for part in portfolio["parts"].values()]
    np.testing.assert_allclose(portfolio["total"], np.sum(forecasts, axis=0), atol=0.005)


def test_a_bad_customer_has_an_error_for_its_part_and_costs_the_others_nothing(
    ask, store, fleet, histories
):
    good = histories["customer_123"]
    store.artifacts["customer_0050"] = fleet["customer_0050"][:-1]
    bad = {
        "customer_000": (good, 404),
        "../etc": (good, 400),
        "": (good, 400),
        "customer_0050": (good, 502),
        "customer_456": ([1, 2, 3], 422),
        "customer_789": ("many", 422),
        "customer_abc": (None, 422),
    }
    histories = {name: history for name, (history, _) in bad.items()} | {"customer_123": good}
    portfolio = ask_portfolio(histories).json()
    assert {name: portfolio["parts"][name]["status"] for name in bad} == {
        name: status for name, (_, status) in bad.items()
    }
    assert all("Traceback" not in portfolio["parts"][name]["detail"] for name in bad)
    assert portfolio["parts"]["customer_123"] == ask("customer_123", good).json()
    assert portfolio["total"] == portfolio["parts"]["customer_123"]["forecast"]


def test_a_portfolio_of_nobody_that_has_a_model_totals_zero(store, histories):
    portfolio = ask_portfolio({"customer_000": histories["customer_123"]}).json()
    assert portfolio["total"] == [0.0] * 7


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"histories": {}}', b'{"histories": [1]}', b'{"histories": 1, "x": NaN}', b"{", b""],
)
def test_a_wrong_portfolio_is_a_422(store, body):
    answer = requests.post(f"{SERVICE}/portfolio", data=body, timeout=30)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][0] == "body"


def test_a_portfolio_of_cold_customers_waits_for_the_store_once(store, histories):
    store.delay_s = 0.5
    history = histories["customer_123"]
    start = time.monotonic()
    ask_portfolio({"customer_0024": history})
    one_s = time.monotonic() - start
    cold = {f"customer_{number:04d}": history for number in range(40, 60)}
    start = time.monotonic()
    portfolio = ask_portfolio(cold).json()
    assert time.monotonic() - start < 3 * one_s
    assert all("forecast" in part for part in portfolio["parts"].values())


def test_grpc_gives_the_http_answer(ask, ask_grpc, histories):
    for name in NAMED:
        answer = ask_grpc(histories[name], ("multiplexed_model_id", name))
        expected = ask(name, histories[name]).json()
        fields = {field.name: value for field, value in answer.ListFields()}
        assert {
            name: list(value) if name in ("forecast", "lower", "upper") else value
            for name, value in fields.items()
        } == expected


@pytest.mark.parametrize(
    ("model_id", "days", "code"),
    [
        ("customer_000", 28, grpc.StatusCode.NOT_FOUND),
        ("../etc", 28, grpc.StatusCode.INVALID_ARGUMENT),
        (None, 28, grpc.StatusCode.INVALID_ARGUMENT),
        ("customer_123", 6, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_grpc_names_an_error_by_its_code_and_says_what_is_wrong(
    ask_grpc, histories, model_id, days, code
):
    metadata = [("multiplexed_model_id", model_id)] if model_id else []
    with pytest.raises(grpc.RpcError) as raised:
        ask_grpc(histories["customer_123"][:days], *metadata)
    assert raised.value.code() == code
    assert "Traceback" not in raised.value.details()


def test_grpc_calls_a_broken_store_unavailable_and_a_broken_model_lost(ask_grpc, store, fleet):
    store.artifacts["customer_0051"] = b"broken"
    store.artifacts["customer_0052"] = fleet["customer_0052"]
    with pytest.raises(grpc.RpcError) as raised:
        ask_grpc([1] * 28, ("multiplexed_model_id", "customer_0051"))
    assert raised.value.code() == grpc.StatusCode.DATA_LOSS
    store.down = True
    with pytest.raises(grpc.RpcError) as raised:
        ask_grpc([1] * 28, ("multiplexed_model_id", "customer_0058"))
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


def test_the_largest_portfolio_finds_the_queue_of_the_forecasters_long_enough(store, histories):
    history = histories["customer_123"]
    portfolio = ask_portfolio({f"nobody_{number}": history for number in range(1000)}).json()
    assert {part["status"] for part in portfolio["parts"].values()} == {404}


def test_who_was_waiting_for_a_replica_that_dies_is_told_to_try_again_and_then_served(
    ask_grpc, store, histories
):
    history, by_portfolio, by_grpc = histories["customer_123"], "customer_0059", "customer_0060"
    metadata = "multiplexed_model_id", by_grpc
    actors = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
    (pid,) = (actor.pid for actor in actors if actor.class_name.startswith("ServeReplica:default:"))
    store.delay_s = 1.5
    with ThreadPoolExecutor() as pool:
        portfolio = pool.submit(ask_portfolio, {by_portfolio: history})
        call = pool.submit(ask_grpc, history, metadata)
        wait_until(lambda: {by_portfolio, by_grpc} <= store.reads.keys(), "both wait for the store")
        os.kill(pid, signal.SIGKILL)
        part = portfolio.result().json()["parts"][by_portfolio]
        with pytest.raises(grpc.RpcError) as raised:
            call.result()
    assert part["status"] == 503 and "try again" in part["detail"]
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "try again" in raised.value.details()
    store.delay_s = 0
    wait_until_running()
    assert "forecast" in ask_portfolio({by_portfolio: history}).json()["parts"][by_portfolio]
    assert len(ask_grpc(history, metadata).forecast) == 7
