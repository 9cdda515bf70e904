"""Models of several kinds from one pool, and the check of a service, on live services."""

import asyncio
from collections.abc import Iterator
from functools import partial

import numpy as np
import polars as pl
import pytest
from live_service import FAST, ON_BOTH, SERVICE, is_hit
from onnx import TensorProto, helper, numpy_helper
from ray import serve

from forecast_service.long_table import read_long_table
from forecast_service.model import HOLDOUT_DAYS, HORIZON, LAGS, Scores, windows
from forecast_service.settings import Settings, StoreSettings
from lab.chapter import NAMED
from lab.check_service import check_service
from lab.serving import launch, wait_until
from lab.traffic import send
from own_models import families
from own_models.artifact import from_bytes, to_bytes
from own_models.forecaster import OnnxForecaster
from train_own_models import EVERY_FAMILY, best_on_calibration, fit_all, store_all

URL = f"{SERVICE}/own"
RELOAD_CHECK_S = 1
HEAVY = [f"trees_{number}" for number in range(8)]
ROUNDS, LOADS_PER_S = 5, 5
REQUESTS = 1500 if FAST else 300  # in a round: seconds


@pytest.fixture(scope="module")
def trees(footfall) -> dict[str, bytes]:
    """The artifacts of customers with the same trees, which are heavy to load."""
    lags, future = windows(footfall[2][0][:-HOLDOUT_DAYS].astype(float))
    graph = families.boosted_trees(lags, future)
    half_width = np.ones(HORIZON, np.float32)
    scores = Scores(*np.ones(4))
    return {name: to_bytes(OnnxForecaster(graph, half_width, name), "", scores) for name in HEAVY}


@pytest.fixture(scope="module")
def own(live_store, fleet, trees) -> Iterator[str]:
    """A service of all kinds, which keeps two models."""
    import serve_own_models

    live_store.repair(fleet | trees)
    settings = Settings(models_per_replica=2, reload_check_s=RELOAD_CHECK_S)
    launch(serve_own_models.app(settings), "own", "/own")
    yield URL
    serve.delete("own")


@pytest.fixture
def mixed(own, store, fleet, trees):
    """The store, with models of both kinds."""
    store.repair(fleet | trees)
    return store


def test_training_fits_each_customer_what_its_days_allow_and_says_who_has_too_few(
    session_dir, footfall, tmp_path
):
    _, dates, counts = footfall
    days = {"old": 600, "young": 410, "new": 100}
    rows = [
        (name, day, float(count))
        for row, (name, number) in enumerate(days.items())
        for day, count in zip(dates[-number:].tolist(), counts[row, -number:], strict=True)
    ]
    path = tmp_path / "table.parquet"
    pl.DataFrame(rows, schema=["customer", "date", "value"], orient="row").write_parquet(path)
    fitted = fit_all(read_long_table(path))
    assert [model.family for model in fitted["old"]] == list(EVERY_FAMILY)
    assert [model.family for model in fitted["young"]] == [families.LINEAR]
    assert "new: 100 days are too few" in fitted["new"]
    chosen = {name: best_on_calibration(fitted[name]) for name in ("old", "young")}
    place = StoreSettings(model_store=str(tmp_path / "models"))
    asyncio.run(store_all(chosen, place))
    for name in chosen:
        data = (tmp_path / "models" / name / "model.safetensors").read_bytes()
        assert data == chosen[name].artifact and from_bytes(data, name)


@ON_BOTH
def test_both_services_pass_the_check(url, store):
    found = check_service(url, NAMED[0])
    assert not {name: faults for name, faults in found.items() if faults}


def test_a_service_of_all_kinds_passes_the_check_for_a_customer_of_each(mixed):
    for name in NAMED[0], HEAVY[0]:
        found = check_service(URL, name)
        assert not {name: faults for name, faults in found.items() if faults}


def test_each_customer_gets_its_own_models_forecast_of_whatever_kind(mixed, ask, histories):
    for name, data in mixed.artifacts.items():
        expected = from_bytes(data, name).predict(np.array(histories["customer_123"], float))
        assert ask(name, url=URL).json()["forecast"] == list(expected.forecast)


def test_a_graph_that_cannot_run_is_a_502_with_the_reason_and_costs_nobody_a_model(mixed, ask):
    node = helper.make_node("Rain", ["counts", "w"], ["forecast"], domain="my.company")
    body = helper.make_graph(
        [node],
        "rain",
        [helper.make_tensor_value_info("counts", TensorProto.FLOAT, ["n", LAGS])],
        [helper.make_tensor_value_info("forecast", TensorProto.FLOAT, ["n", HORIZON])],
        [numpy_helper.from_array(np.ones((LAGS, HORIZON), np.float32), "w")],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("my.company", 1)]
    model = from_bytes(mixed.artifacts[HEAVY[0]], HEAVY[0])
    model.graph = helper.make_model(body, opset_imports=imports, ir_version=10).SerializeToString()
    model.customer_id = "rain"
    mixed.artifacts["rain"] = to_bytes(model, "", Scores(*np.ones(4)))
    mixed.artifacts["stolen"] = mixed.artifacts[HEAVY[1]]
    assert ask(HEAVY[0], url=URL).ok
    for name, reason in ("rain", "my.company:Rain"), ("stolen", "another customer"):
        answer = ask(name, url=URL)
        assert answer.status_code == 502 and reason in answer.json()["detail"]
    assert is_hit(ask(HEAVY[0], url=URL))


def test_a_customer_moves_from_one_kind_to_another_while_it_is_served(mixed, ask, fleet, footfall):
    ids, _, counts = footfall
    name, other = "customer_123", families.fit
    before = ask(name, url=URL).json()
    series = counts[ids.index(name)][:-HOLDOUT_DAYS]
    model = other("nearest weeks", name, series, "").model
    mixed.artifacts[name] = to_bytes(model, "", Scores(*np.ones(4)))
    expected = from_bytes(mixed.artifacts[name], name).version

    def version() -> str:
        return ask(name, url=URL).json()["model_version"]

    wait_until(lambda: version() == expected, "the other kind answers")
    mixed.artifacts[name] = fleet[name]
    wait_until(lambda: version() == before["model_version"], "the linear model answers again")
    assert ask(name, url=URL).json() == before


def test_a_warm_customer_does_not_wait_for_the_loads_of_others(mixed, histories):
    """Its p99 beside loads is at most twice its p99 alone, in turn, in one run."""
    history = [histories["customer_123"]]

    async def p99_ms(loads: int) -> float:
        trace = np.arange(loads) % len(HEAVY)
        quietly = partial(send, f"{URL}/", progress=False)
        others = quietly(HEAVY, history * len(HEAVY), trace, rate=LOADS_PER_S)
        beside = asyncio.create_task(others)
        sent = await quietly(NAMED[:1], history, [0] * REQUESTS, concurrency=1)
        beside.cancel()
        loaded = await beside
        assert bool(len(loaded.cache)) == bool(loads), "it is not what it is compared with"
        assert (loaded.cache == "miss").sum() >= 0.5 * len(loaded.cache), "nothing was loaded"
        assert set(sent.status) == {"200"} and (sent.cache == "hit").mean() > 0.9
        return sent.summary()["latency"]["warm"]["p99_ms"]

    async def in_turn() -> np.ndarray:
        return np.median([(await p99_ms(0), await p99_ms(1000)) for _ in range(ROUNDS)], axis=0)

    alone_ms, beside_ms = asyncio.run(in_turn())
    assert beside_ms < 2 * alone_ms, f"p99 {alone_ms:.1f} ms alone, {beside_ms:.1f} ms beside loads"
