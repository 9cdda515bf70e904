"""Models of several kinds from one store: read as they were written, or refused with the reason."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import timeit

import numpy as np
import onnx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load, save
from sklearn.linear_model import Ridge

from forecast_service import model as linear
from forecast_service.artifact import VERSION_DIGITS, _checksum
from forecast_service.artifact import from_bytes as linear_from_bytes
from forecast_service.artifact import to_bytes as linear_to_bytes
from forecast_service.errors import CorruptModelError
from forecast_service.model import FLOOR, HOLDOUT_DAYS, HORIZON, LAGS, MAX_COUNT, Scores, windows
from fuzzing import fuzz
from lab.traffic import FOOTFALL
from own_models import artifact, families, forecaster
from own_models.artifact import from_bytes, to_bytes
from own_models.forecaster import OnnxForecaster

CONTENT = FOOTFALL.parents[1]
SCORES = Scores(0.8, 1.0, 0.2, 0.8)
WEIGHTS = np.full((LAGS, HORIZON), 1 / LAGS, np.float32)
HALF_WIDTH = np.arange(1, HORIZON + 1, dtype=np.float32)
MULTIPLY = helper.make_node("MatMul", ["counts", "weights"], ["forecast"])


def graph(
    *nodes: onnx.NodeProto,
    weights: np.ndarray = WEIGHTS,
    inputs: tuple = ("n", LAGS),
    outputs: tuple = ("n", HORIZON),
    kind: int = TensorProto.FLOAT,
    opset: int = 21,
    ir_version: int = 10,
    more: tuple = (),
) -> onnx.ModelProto:
    """Return the graph of a mean, unless something else is said."""
    body = helper.make_graph(
        list(nodes) or [MULTIPLY],
        "forecast",
        [helper.make_tensor_value_info("counts", kind, inputs)],
        [helper.make_tensor_value_info("forecast", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(weights, "weights"), *more],
    )
    domains = {node.domain for node in nodes} - {""}
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(body, opset_imports=imports, ir_version=ir_version)


def sealed(
    model: onnx.ModelProto | bytes, half_width: np.ndarray = HALF_WIDTH, **about: str
) -> bytes:
    """Return an artifact with a right checksum, whatever is in it."""
    data = model if isinstance(model, bytes) else model.SerializeToString()
    tensors = {"graph": np.frombuffer(data, np.uint8), "half_width": half_width}
    known = {"format_version": "1", "kind": "onnx", "customer_id": "shop", "trained_until": ""}
    about = known | about
    return save(tensors, about | {"sha256": _checksum(about, tensors)})


MEAN = sealed(graph())


@pytest.fixture(scope="module")
def series(footfall) -> np.ndarray:
    return footfall[2][3].astype(float)


@pytest.fixture(scope="module")
def fitted(series) -> dict[str, families.Fitted]:
    return {
        family: families.fit(family, "shop", series[:-HOLDOUT_DAYS], "2025-07-02")
        for family in (families.LINEAR, *families.FAMILIES)
    }


def test_a_graph_forecasts_with_the_interval_around_it():
    model = from_bytes(MEAN, "shop")
    lags = np.arange(100.0, 100 + LAGS)
    forecast, lower, upper = model.predict(lags)
    assert forecast.tolist() == [113.5] * HORIZON and forecast.dtype == float
    assert (upper - forecast == HALF_WIDTH).all() and (forecast - lower == HALF_WIDTH).all()
    assert model.predict(np.stack([lags, lags + 1])).forecast[:, 0].tolist() == [113.5, 114.5]
    assert model.predict(-lags).forecast.tolist() == [FLOOR] * HORIZON


@pytest.mark.parametrize("family", [families.LINEAR, *families.FAMILIES])
def test_each_family_comes_back_as_it_was_and_the_same_model_gives_the_same_bytes(
    fitted, series, family
):
    model = fitted[family].model
    data = to_bytes(model, "2025-07-02", SCORES)
    restored = from_bytes(data, "shop")
    cent = 0.011 if family == families.LINEAR else 0  # it is folded, which rounds otherwise
    for lags in windows(series)[0][::50]:
        np.testing.assert_allclose(restored.predict(lags.tolist()), model.predict(lags), atol=cent)
    assert restored.customer_id == "shop" and restored.size_bytes > 0
    assert len(restored.version) == VERSION_DIGITS and restored.version.encode() in data
    again = linear_from_bytes(data, "shop") if family == families.LINEAR else restored
    assert to_bytes(again, "2025-07-02", SCORES) == data


@pytest.mark.parametrize("family", [families.LINEAR, *families.FAMILIES])
def test_fitting_twice_gives_the_same_artifact(fitted, series, family):
    """So one with another checksum is another model."""
    again = families.fit(family, "shop", series[:-HOLDOUT_DAYS], "2025-07-02").model
    assert to_bytes(again, "", SCORES) == to_bytes(fitted[family].model, "", SCORES)


@pytest.mark.parametrize("returned", [graph(), None, "graph"], ids=["proto", "none", "text"])
def test_a_family_that_returns_no_bytes_is_named(series, monkeypatch, returned):
    monkeypatch.setitem(families.FAMILIES, "mine", lambda lags, future: returned)
    said = f"the family mine returned {type(returned).__name__}, and not bytes: .*Serialize"
    with pytest.raises(ValueError, match=said):
        families.fit("mine", "shop", series, "")


def test_an_estimator_becomes_a_family_as_the_template_says(series, monkeypatch):
    def ridge(lags: np.ndarray, future: np.ndarray) -> bytes:
        estimator = Ridge().fit(*families.standardize(lags, future))
        return families.around_level(families.convert(estimator)).SerializeToString()

    monkeypatch.setitem(families.FAMILIES, "ridge", ridge)
    model = families.fit("ridge", "shop", series[:-HOLDOUT_DAYS], "").model
    scores = linear.score(model, series)
    assert scores.mase < scores.naive_mase


def test_any_safetensors_reader_sees_of_what_kind_it_is_and_how_it_scored(fitted):
    data = to_bytes(fitted["nearest weeks"].model, "2025-07-02", SCORES)
    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert (about["kind"], about["customer_id"]) == ("onnx", "shop")
    assert (about["lags"], about["horizon"]) == (str(LAGS), str(HORIZON))
    assert (about["trained_until"], about["holdout_mase"]) == ("2025-07-02", "0.8")


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_family_beats_last_weeks_values_and_its_interval_holds(fitted, series, family):
    scores = linear.score(fitted[family].model, series)
    assert scores.mase < scores.naive_mase and 0.7 < scores.coverage < 0.9


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_graph_forecasts_what_the_estimator_does(series, monkeypatch, family):
    """Scaled by hand, and asked in double precision."""
    estimators, convert = [], families.convert
    monkeypatch.setattr(
        families, "convert", lambda e, *rest: estimators.append(e) or convert(e, *rest)
    )
    lags, future = windows(series[:400])
    model = OnnxForecaster(families.FAMILIES[family](lags, future), HALF_WIDTH)
    lags = np.concatenate([lags, np.full((1, LAGS), 50)])  # the last has no spread
    level, spread = lags.mean(1, keepdims=True), np.maximum(lags.std(1, keepdims=True), 1)
    x = ((lags - level) / spread).astype(np.float32)
    expected = np.maximum(level + spread * estimators[0].predict(x), FLOOR)
    difference = np.abs(model.predict(lags).forecast - expected)
    assert np.quantile(difference, 0.99) < 0.01, "the graph forecasts otherwise than its estimator"
    assert difference[-1].max() < 0.01, "it does so for a history that does not change"


def test_distances_by_onnxruntimes_own_operator_take_a_fraction_of_the_time(series, monkeypatch):
    def typical_s() -> float:
        lags, future = windows(series[:800])
        model = OnnxForecaster(families.nearest_weeks(lags, future), HALF_WIDTH)
        return np.median(timeit.repeat(lambda: model.predict(lags[0]), number=1, repeat=50))

    own_s, convert = typical_s(), families.convert
    monkeypatch.setattr(families, "convert", lambda estimator, _: convert(estimator))
    assert typical_s() > 5 * own_s


def test_the_interval_is_made_by_the_linear_models_own_step(fitted, series):
    model = fitted[families.LINEAR].model
    errors = families.calibration_errors(model, series[:-HOLDOUT_DAYS])
    np.testing.assert_array_equal(families.conformal_half_width(errors), model.half_width)
    assert fitted[families.LINEAR].calibration_error == pytest.approx(errors.mean())


def test_a_fit_sees_nothing_of_the_calibration_days_but_in_its_interval(series, fitted):
    changed = series[:-HOLDOUT_DAYS].copy()
    changed[-linear.CALIBRATION_DAYS :] *= 2
    model = families.fit("nearest weeks", "shop", changed, "").model
    assert model.graph == fitted["nearest weeks"].model.graph
    assert (model.half_width > fitted["nearest weeks"].model.half_width).all()


def test_a_series_with_few_windows_is_for_the_linear_model_alone(series):
    young = series[: LAGS + HORIZON + linear.CALIBRATION_DAYS + 10]
    assert families.fit(families.LINEAR, "shop", young, "").model
    for family in families.FAMILIES:
        with pytest.raises(ValueError, match=f"shop: 11 windows to fit {family} to are too few"):
            families.fit(family, "shop", young, "")


def test_an_artifact_without_a_kind_is_a_linear_model(fitted):
    model = fitted[families.LINEAR].model
    data = linear_to_bytes(model, SCORES)
    assert data == to_bytes(model, "", SCORES)
    assert type(from_bytes(data, "shop")) is linear.FoldedModel


def test_the_linear_models_own_service_refuses_another_kind():
    with pytest.raises(CorruptModelError, match="shop cannot be used: its tensors are not"):
        linear_from_bytes(MEAN, "shop")


ADD = helper.make_node("Add", ["s", "s"], ["s_out"])
KEEP = helper.make_node("Identity", ["go"], ["go_out"])
LOOP_BODY = helper.make_graph(
    [KEEP, ADD],
    "body",
    [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
    ],
    [
        helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
        helper.make_tensor_value_info("s_out", TensorProto.FLOAT, None),
    ],
)
ENDLESS = graph(
    helper.make_node("Loop", ["trips", "true", "counts"], ["looped"], body=LOOP_BODY),
    helper.make_node("MatMul", ["looped", "weights"], ["forecast"]),
    more=(
        numpy_helper.from_array(np.array(2**62), "trips"),
        numpy_helper.from_array(np.array(True), "true"),
    ),
)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            graph(helper.make_node("Weather", ["counts"], ["forecast"], domain="my.company")),
            "my.company:Weather.*is not a registered function",
        ),
        (graph(helper.make_node("Nope", ["counts"], ["forecast"])), "No Op registered for Nope"),
        (graph(opset=99), "Opset 99 is under development"),
        (graph(ir_version=99), "Unsupported model IR version: 99"),
        (graph(inputs=("n", 14), weights=WEIGHTS[:14]), r"\['n', 14\].*wanted is .*\['n', 28\]"),
        (
            graph(outputs=("n", 3), weights=WEIGHTS[:, :3]),
            r"to forecast .*\['n', 3\]; wanted is .*\['n', 7\]",
        ),
        (graph(inputs=(1, LAGS)), "took|Got invalid dimensions"),
        (graph(weights=WEIGHTS[:14]), "[Ii]ncompatible dimensions"),
        (graph(weights=WEIGHTS * np.nan), "not finite"),
        (graph(kind=TensorProto.DOUBLE), "Type Error|tensor\\(double\\)"),
        (ENDLESS, "two forecasts took more than"),
        (b"no graph", "protobuf parsing failed"),
        (b"", "No graph was found"),
    ],
)
def test_a_graph_that_does_not_do_is_refused_with_the_reason(model, reason, monkeypatch):
    monkeypatch.setattr(forecaster, "TRIAL_TIMEOUT_S", 0.2)
    with pytest.raises(
        CorruptModelError, match=f"(?s)the model of shop cannot be used: .*{reason}"
    ) as e:
        from_bytes(sealed(model), "shop")
    assert "onnxruntime_src" not in str(e.value) and len(str(e.value)) < 700


def test_weights_in_another_file_are_refused_wherever_it_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(graph(), "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert os.path.getsize("w.bin")
    for place in "w.bin", "../w.bin", str(tmp_path / "w.bin"):
        model = onnx.load("m.onnx", load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = place
        with pytest.raises(CorruptModelError, match="keeps weights in another file; save all in"):
            from_bytes(sealed(model), "shop")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (sealed(graph(), customer_id="other"), "another customer"),
        (sealed(graph(), kind="pickle"), "of the kind 'pickle': this code reads linear, onnx"),
        (sealed(graph(), format_version="2"), "format version is 2"),
        (sealed(graph(), HALF_WIDTH[:3]), "its interval has the shape"),
        (sealed(graph(), -HALF_WIDTH), "ends before it begins"),
        (sealed(graph(), HALF_WIDTH * np.nan), "not finite"),
        (sealed(graph(), HALF_WIDTH.astype(float)), "no graph with an interval"),
        (
            sealed(graph(), trained_until="2025-07-02").replace(b"2025-07-02", b"2025-07-03"),
            "does not match its checksum",
        ),
        (MEAN[:-1], "not a safetensors artifact"),
        (b"", "not a safetensors artifact"),
        (b"<html>404</html>", "not a safetensors artifact"),
    ],
)
def test_an_artifact_that_is_not_what_it_says_is_refused(data, reason):
    with pytest.raises(CorruptModelError, match=f"shop .*{reason}"):
        from_bytes(data, "shop")


@fuzz
@given(st.integers(0, len(MEAN) - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed_before_the_graph_is_opened(place, change):
    data = MEAN[:place] + bytes([MEAN[place] ^ change]) + MEAN[place + 1 :]
    with pytest.MonkeyPatch.context() as patch:
        opened = []
        patch.setattr(artifact, "OnnxForecaster", lambda *args: opened.append(args))
        try:
            from_bytes(data, "shop")
        except CorruptModelError as error:
            assert "shop" in str(error)
        else:  # only the order of the text, or its blanks, can have changed
            assert load(data)["graph"].tobytes() == load(MEAN)["graph"].tobytes()
    assert not opened or opened[0][0] == load(MEAN)["graph"].tobytes()


values = st.floats(-MAX_COUNT, MAX_COUNT) | st.floats(-100, 100)


@fuzz
@given(st.lists(values, min_size=LAGS, max_size=LAGS), st.sampled_from(list(families.FAMILIES)))
def test_any_forecast_lies_in_its_interval_and_both_lie_above_the_floor(fitted, history, family):
    forecast, lower, upper = fitted[family].model.predict(np.array(history))
    assert (lower >= FLOOR).all() and (lower <= forecast).all() and (forecast <= upper).all()


def test_a_forecast_that_is_not_finite_is_an_error_of_the_model_and_no_answer():
    root = graph(
        helper.make_node("Sqrt", ["counts"], ["roots"]),
        helper.make_node("MatMul", ["roots", "weights"], ["forecast"]),
    )
    model = from_bytes(sealed(root), "shop")
    assert np.isfinite(model.predict(np.ones(LAGS)).forecast).all()
    with pytest.raises(CorruptModelError, match="model of shop has no finite forecast"):
        model.predict(-np.ones(LAGS))


def test_a_graph_that_fails_at_a_history_is_an_error_of_the_model():
    """It looks up what is not there, but for the histories that it is tried on."""
    table = numpy_helper.from_array(np.ones((100, HORIZON), np.float32), "table")
    lookup = graph(
        helper.make_node("ReduceMax", ["counts", "axis"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "row"], ["forecast"], axis=0),
        more=(table, numpy_helper.from_array(np.array([1]), "axis")),
    )
    model = from_bytes(sealed(lookup), "shop")
    assert model.predict(np.ones(LAGS)).forecast.tolist() == [1] * HORIZON
    with pytest.raises(CorruptModelError, match=r"model of shop fails at this history: .*Gather"):
        model.predict(np.full(LAGS, 1000.0))


def test_a_models_size_is_about_what_it_takes_in_memory(fitted):
    """Of trees; others take less than they say."""
    for family, least in ("boosted trees", 0.6), ("nearest weeks", 0.05):
        data = to_bytes(fitted[family].model, "", SCORES)
        from_bytes(data, "shop")
        before = psutil.Process().memory_info().rss
        models = [from_bytes(data, "shop") for _ in range(20)]
        # the graph's own bytes, kept for to_bytes(), are counted too
        taken = (psutil.Process().memory_info().rss - before) / len(models)
        assert least < taken / models[0].size_bytes < 1.3, family


def test_a_model_has_no_threads_of_its_own(fitted):
    """A thousand models would have a thousand pools of them."""
    data = to_bytes(fitted["nearest weeks"].model, "", SCORES)
    before = psutil.Process().num_threads()
    models = [from_bytes(data, "shop") for _ in range(10)]
    assert psutil.Process().num_threads() - before < len(models)


ANOTHER_HORIZON = {
    "LAGS = 4 * SEASON": "LAGS = 5 * SEASON",
    "HORIZON = 7": "HORIZON = 10",
    "FLOOR = 0.0": "FLOOR = -math.inf",
}
FIT_EACH_FAMILY = """
import json, sys
from forecast_service.model import HOLDOUT_DAYS, LAGS, score
from own_models import families
from own_models.artifact import from_bytes, to_bytes

series = json.load(sys.stdin)
forecasts = {}
for family in families.LINEAR, *families.FAMILIES:
    model = families.fit(family, "shop", series[:-HOLDOUT_DAYS], "").model
    restored = from_bytes(to_bytes(model, "", score(model, families.check_series("shop", series))),
        "shop")
    forecasts[family] = list(restored.predict(series[-LAGS:]).forecast)
print(json.dumps(forecasts))
"""


def test_another_horizon_is_an_edit_of_constants(series, tmp_path):
    for package in "forecast_service", "own_models":
        shutil.copytree(CONTENT / package, tmp_path / package)
    file = tmp_path / "forecast_service" / "model.py"
    text = file.read_text()
    for old, new in ANOTHER_HORIZON.items():
        assert text.count(f"\n{old} ") == 1
        text = text.replace(f"\n{old} ", f"\n{new} ")
    file.write_text(text)
    below_zero = (series - series.mean()).tolist()
    command = [sys.executable, "-c", FIT_EACH_FAMILY]
    done = subprocess.run(
        command, cwd=tmp_path, input=json.dumps(below_zero), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    forecasts = json.loads(done.stdout)
    assert all(len(days) == 10 and min(days) < 0 for days in forecasts.values()), forecasts


def test_opening_a_model_in_a_thread_leaves_the_event_loop_to_others(fitted):
    """Onnxruntime gives Python's lock away: the longest pause is shorter than an opening."""
    data = to_bytes(fitted["boosted trees"].model, "", SCORES)
    pauses, opened = [], threading.Event()

    def open_ten() -> None:
        for _ in range(10):
            from_bytes(data, "shop")
        opened.set()

    thread = threading.Thread(target=open_ten)
    began = last = time.perf_counter()
    thread.start()
    while not opened.is_set():
        now = time.perf_counter()
        pauses.append(now - last)
        last = now
    thread.join()
    assert np.quantile(pauses, 0.999) < (last - began) / 10 / 2


TRAINING = "sklearn", "lightgbm", "skl2onnx", "onnxmltools", "onnx", "polars", "pandas"
FOUND = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps([name for name in sys.argv[2:] if name in sys.modules]))
"""


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("own_models.artifact", (*TRAINING, "mlflow")),  # serving
        ("train_own_models", ("mlflow",)),
        ("lab.check_service", (*TRAINING, "mlflow", "ray")),
    ],
)
def test_nothing_is_imported_that_is_not_needed(module, unwanted):
    done = subprocess.run(
        [sys.executable, "-c", FOUND, module, *unwanted],
        cwd=CONTENT,
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout) == []
