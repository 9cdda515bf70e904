"""Models of several kinds from one pool, live."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
from live_service import SERVICE, is_hit
from onnx import TensorProto, helper, numpy_helper
from ray import serve

from forecast_service.long_table import read_long_table
from forecast_service.model import HOLDOUT_DAYS, HORIZON, LAGS, Scores, windows
from forecast_service.settings import Settings, StoreSettings
from lab import check_service
from lab.chapter import NAMED
from lab.serving import launch, wait_until
from own_models import families
from own_models.artifact import from_bytes, to_bytes
from own_models.forecaster import OnnxForecaster
from train_own_models import EVERY_FAMILY, best_on_calibration, fit_all, store_all

URL = f"{SERVICE}/own"
RELOAD_CHECK_S = 1
HEAVY = [f"trees_{number}" for number in range(3)]


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
    days = {"old": 600, "young": 410, "new": 100, "changed": 600}
    rows = [
        (name, day, float(count))
        for row, (name, number) in enumerate(days.items())
        for day, count in zip(dates[-number:].tolist(), counts[row % 3, -number:], strict=True)
    ]
    unseen = len(rows) - HOLDOUT_DAYS
    rows[unseen:] = [(name, day, 2 * count) for name, day, count in rows[unseen:]]
    path = tmp_path / "table.parquet"
    pl.DataFrame(rows, schema=["customer", "date", "value"], orient="row").write_parquet(path)
    fitted, reasons = fit_all(read_long_table(path))
    assert [model.family for model in fitted["old"]] == list(EVERY_FAMILY)
    assert [model.family for model in fitted["young"]] == [families.LINEAR]
    assert not fitted["new"] and set(reasons) == {"new", "young"}
    assert all("new: 100 days are too few" in reasons["new"][family] for family in EVERY_FAMILY)
    assert set(reasons["young"]) == set(families.FAMILIES)
    for model, same in zip(fitted["old"], fitted["changed"], strict=True):
        history = counts[0, :LAGS].astype(float)
        pair = from_bytes(model.artifact, "old"), from_bytes(same.artifact, "changed")
        forecast, other = (forecaster.predict(history) for forecaster in pair)
        assert [*map(list, forecast)] == [*map(list, other)], "the hold-out has been seen"
        assert model.scores != same.scores
    chosen = {name: best_on_calibration(fitted[name]) for name in ("old", "young")}
    place = StoreSettings(model_store=str(tmp_path / "models"))
    asyncio.run(store_all(chosen, place))
    for name in chosen:
        data = (tmp_path / "models" / name / "model.safetensors").read_bytes()
        assert data == chosen[name].artifact and from_bytes(data, name)


def test_a_service_of_all_kinds_passes_the_check_for_a_customer_of_each(mixed, monkeypatch):
    quick = [check for check in check_service.CHECKS if check not in check_service.SLOW]
    monkeypatch.setattr(check_service, "CHECKS", quick)  # the other one looks at no model
    with ThreadPoolExecutor() as pool:
        for found in pool.map(check_service.check_service, [URL] * 2, (NAMED[0], HEAVY[0])):
            assert not {name: faults for name, faults in found.items() if faults}


def test_each_customer_gets_its_own_models_forecast_of_whatever_kind(mixed, ask, histories):
    for name, data in mixed.artifacts.items():
        expected = from_bytes(data, name).predict(np.array(histories["customer_123"], float))
        assert ask(name, url=URL).json()["forecast"] == list(expected.forecast)


def mean_graph(
    op: str = "MatMul", domain: str = "", opset: int = 21, days: int = LAGS
) -> onnx.ModelProto:
    """Return the graph of a mean, which can be used as long as nothing else is said."""
    weights = numpy_helper.from_array(np.full((days, HORIZON), 1 / days, np.float32), "weights")
    node = helper.make_node(op, ["counts", "weights"], ["forecast"], domain=domain)
    lags = helper.make_tensor_value_info("counts", TensorProto.FLOAT, ["n", days])
    week = helper.make_tensor_value_info("forecast", TensorProto.FLOAT, ["n", HORIZON])
    body = helper.make_graph([node], "mean", [lags], [week], [weights])
    imports = [helper.make_opsetid(name, opset) for name in {"", domain}]
    return helper.make_model(body, opset_imports=imports, ir_version=10)


def weights_apart(folder: Path) -> onnx.ModelProto:
    """Return a graph whose weights are in a file, which is there."""
    path, weights = folder / "apart.onnx", folder / "weights.bin"
    apart = {"save_as_external_data": True, "location": weights.name, "size_threshold": 0}
    onnx.save(mean_graph(), path, **apart)
    graph = onnx.load(path, load_external_data=False)
    for entry in graph.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = str(weights)
    return graph


def test_what_cannot_be_used_is_a_502_with_the_reason_and_costs_nobody_a_model(
    mixed, ask, tmp_path
):
    def artifact_of(customer_id: str, graph: onnx.ModelProto) -> bytes:
        """Return an artifact that is what it says, but for the graph in it."""
        model = OnnxForecaster(mean_graph().SerializeToString(), np.ones(HORIZON), customer_id)
        model.graph = graph.SerializeToString()
        return to_bytes(model, "", Scores(*np.ones(4)))

    graphs = {
        "operator": (mean_graph("Rain", "my.company"), "my.company:Rain"),
        "opset": (mean_graph(opset=99), "Opset 99"),
        "shape": (mean_graph(days=14), "wanted is tensor(float) ['n', 28]"),
        "apart": (weights_apart(tmp_path), "keeps weights in another file; save all in one"),
    }
    damaged = bytearray(mixed.artifacts[HEAVY[1]])
    damaged[-1] ^= 1
    others = {
        HEAVY[1]: (bytes(damaged), "does not match its checksum"),
        "stolen": (mixed.artifacts[HEAVY[2]], "belongs to another customer"),
        "kind": (
            mixed.artifacts[HEAVY[2]].replace(b'"kind":"onnx"', b'"kind":"yaml"'),
            "of the kind 'yaml': this code reads linear, onnx",
        ),
        "cut": (mixed.artifacts[HEAVY[2]][:-100], "is not a safetensors artifact"),
    }
    unusable = {name: (artifact_of(name, graph), why) for name, (graph, why) in graphs.items()}
    mixed.artifacts |= {name: data for name, (data, _) in (unusable | others).items()}
    assert ask(HEAVY[0], url=URL).ok
    mixed.artifacts["good"] = artifact_of("good", mean_graph())
    assert ask("good", url=URL).ok, "the graph is refused for another reason"
    for name, (_, reason) in (unusable | others).items():
        answer = ask(name, url=URL)
        assert answer.status_code == 502 and f"the model of {name} " in answer.json()["detail"]
        assert reason in answer.json()["detail"]
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
