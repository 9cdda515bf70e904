"""The portfolio endpoint: the same answers and errors as from the service behind it."""

import asyncio
import json
import time

import aiohttp
import numpy as np
import pytest
import requests
from live_service import SERVICE, STORE_DELAY_S

from lab.chapter import NAMED

COLD_CALLS = 200
FIVE_AT_ONCE = COLD_CALLS / 5  # loads in a row, with Ray's default limit
pytestmark = pytest.mark.usefixtures("endpoints")


def ask_portfolio(histories: dict) -> requests.Response:
    return requests.post(f"{SERVICE}/portfolio", json={"histories": histories}, timeout=30)


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


def test_cold_customers_of_a_portfolio_do_not_wait_for_one_another(store, histories):
    store.delay_s = STORE_DELAY_S
    cold = {f"customer_{number:04d}": histories["customer_123"] for number in range(40, 60)}
    portfolio = ask_portfolio(cold).json()
    assert all("forecast" in part for part in portfolio["parts"].values())
    assert store.most_at_once > 1, "models are read one after another"


def test_cold_calls_at_once_take_about_one_load(store, histories):
    """With Ray's default of five requests at a time, they take forty."""
    history = histories["customer_123"]

    async def ask_cold(numbers: range) -> float:
        """Ask for one customer in each request, all at once. Returns the seconds it took."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def ask_one(name: str) -> int:
                body = {"histories": {name: history}}
                async with session.post(f"{SERVICE}/portfolio/", json=body) as answer:
                    return (await answer.json())["parts"][name]["status"]

            started = time.perf_counter()
            statuses = await asyncio.gather(*(ask_one(f"nobody_{number}") for number in numbers))
            assert set(statuses) == {404}
            return time.perf_counter() - started

    asyncio.run(ask_cold(range(-2, -1)))
    store.delay_s = STORE_DELAY_S
    one_s = asyncio.run(ask_cold(range(-1, 0)))
    all_s = asyncio.run(ask_cold(range(COLD_CALLS)))
    assert all_s < FIVE_AT_ONCE / 2 * one_s, f"{all_s / one_s:.1f} loads"


def test_a_portfolio_of_a_thousand_customers_at_full_length_has_room(store):
    histories = {f"nobody_{number}": [-2.2250738585072014e-308] * 28 for number in range(1000)}
    assert {part["status"] for part in ask_portfolio(histories).json()["parts"].values()} == {404}


@pytest.mark.parametrize(
    ("unknown", "faults"), [(50, 10), (100_000, 1)], ids=["few fields", "many fields"]
)
def test_unknown_fields_are_named_in_part_and_without_number_not_at_all(store, unknown, faults):
    body = {"histories": {"a": [1]}} | {f"{number}": 1 for number in range(unknown)}
    text = json.dumps(body, separators=(",", ":"))
    answer = requests.post(f"{SERVICE}/portfolio", data=text, timeout=30)
    assert answer.status_code == 422
    assert len(answer.json()["detail"]) == faults


def test_the_largest_portfolio_finds_the_queue_of_the_forecasters_long_enough(store, histories):
    history = histories["customer_123"]
    portfolio = ask_portfolio({f"nobody_{number}": history for number in range(1000)}).json()
    assert {part["status"] for part in portfolio["parts"].values()} == {404}
