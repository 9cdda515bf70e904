"""Two kinds of models, to be exchanged for yours: how each is fitted, and becomes an ONNX graph.

A family is a function from windows of counts, and what followed them, to a graph's bytes. Add yours
to FAMILIES. Of an estimator it returns

    around_level(convert(MyRegressor().fit(*standardize(lags, future)))).SerializeToString()
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from lightgbm import LGBMRegressor
from onnx import ModelProto, TensorProto, helper
from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm
from skl2onnx import to_onnx, update_registered_converter
from skl2onnx.common.shape_calculator import calculate_linear_regressor_output_shapes
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline

from forecast_service import model as linear
from forecast_service.contract import Forecaster
from forecast_service.model import (
    CALIBRATION_DAYS,
    COVERAGE,
    HORIZON,
    LAGS,
    check_series,
    windows,
)
from own_models.forecaster import OnnxForecaster

OPSET = {"": 21, "ai.onnx.ml": 3}  # of ONNX's operators: the oldest that the converters need
COMPONENTS, NEIGHBOURS = 8, 40
FEWEST_WINDOWS = NEIGHBOURS  # to fit a family to; the linear model takes one
TREES, LEAVES = 60, 31  # a step ahead
LINEAR = "linear"
Family = Callable[[np.ndarray, np.ndarray], bytes]

update_registered_converter(
    LGBMRegressor,
    "LightGbmLGBMRegressor",
    calculate_linear_regressor_output_shapes,
    convert_lightgbm,
    options={"split": None},
)


class Fitted(NamedTuple):
    """A model, and its mean absolute error on the calibration days."""

    model: Forecaster
    calibration_error: float


def nearest_weeks(lags: np.ndarray, future: np.ndarray) -> bytes:
    """Forecast the mean of what followed the NEIGHBOURS most similar windows.

    Similar in their first principal components: a scikit-learn pipeline.
    """
    pipeline = make_pipeline(PCA(COMPONENTS), KNeighborsRegressor(NEIGHBOURS))
    pipeline.fit(*standardize(lags, future))
    # onnxruntime's own operator for distances: in ONNX's, a forecast takes tens of times as long
    options = {KNeighborsRegressor: {"optim": "cdist"}}
    return around_level(convert(pipeline, options)).SerializeToString()


def boosted_trees(lags: np.ndarray, future: np.ndarray) -> bytes:
    """Forecast each step ahead with gradient-boosted trees of its own: LightGBM, for medians."""
    trees = LGBMRegressor(
        objective="l1", n_estimators=TREES, num_leaves=LEAVES, n_jobs=1, verbose=-1, random_state=0
    )
    ensemble = MultiOutputRegressor(trees).fit(*standardize(lags, future))
    return around_level(convert(ensemble)).SerializeToString()


FAMILIES: dict[str, Family] = {"nearest weeks": nearest_weeks, "boosted trees": boosted_trees}


def fit(family: str, customer_id: str, counts: np.ndarray, trained_until: str) -> Fitted:
    """Fit a model of a family, or LINEAR, to daily counts, shape (days,), up to `trained_until`.

    As in forecast_service.model.fit, the last CALIBRATION_DAYS give the interval alone.

    Raises:
        ValueError: as forecast_service.model.fit; if there are fewer than FEWEST_WINDOWS; if what
            the family returns is no graph, or one that cannot be used.
        KeyError: if there is no such family.
    """
    counts = check_series(customer_id, counts)
    if family == LINEAR:
        model = linear.fit(customer_id, counts, trained_until)
        return Fitted(model, float(calibration_errors(model, counts).mean()))
    lags, future = windows(counts[:-CALIBRATION_DAYS])
    if len(lags) < FEWEST_WINDOWS:
        raise ValueError(
            f"{customer_id}: {len(lags)} windows to fit {family} to are too few, at least "
            f"{FEWEST_WINDOWS} are wanted: wait for more days, or take the {LINEAR} model"
        )
    graph = FAMILIES[family](lags, future)
    if not isinstance(graph, bytes):
        raise ValueError(
            f"the family {family} returned {type(graph).__name__}, and not bytes: a graph's are "
            "those of its SerializeToString()"
        )
    model = OnnxForecaster(graph, np.zeros(HORIZON, np.float32), customer_id)
    errors = calibration_errors(model, counts)
    model.half_width = conformal_half_width(errors)
    return Fitted(model, float(errors.mean()))


def calibration_errors(model: Forecaster, counts: np.ndarray) -> np.ndarray:
    """Return a model's absolute errors on the last CALIBRATION_DAYS, shape (n, HORIZON)."""
    lags, future = windows(counts[-CALIBRATION_DAYS - LAGS :])
    return np.abs(future - model.predict(lags).forecast)


def conformal_half_width(errors: np.ndarray) -> np.ndarray:
    """Return, for each step ahead, what a share COVERAGE of errors (n, HORIZON) stays under.

    It is the split conformal step of forecast_service.model.fit, whatever the model.
    """
    rank = math.ceil(COVERAGE * (len(errors) + 1))
    return np.sort(errors, axis=0)[rank - 1].astype(np.float32)


def standardize(lags: np.ndarray, future: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale windows by their own mean and spread, as the graph of around_level() does."""
    level = lags.mean(axis=1, keepdims=True)
    spread = np.maximum(lags.std(axis=1, keepdims=True), 1)  # 1 person or more, to divide by
    return ((lags - level) / spread).astype(np.float32), (future - level) / spread


def convert(estimator: BaseEstimator, options: dict | None = None) -> ModelProto:
    """Make a graph of an estimator that was fitted to what standardize() returns."""
    one_window = np.zeros((1, LAGS), np.float32)
    return to_onnx(estimator, one_window, target_opset=OPSET, options=options)


def around_level(graph: ModelProto) -> ModelProto:
    """Put the scaling around a converted model, so that its graph takes counts, and gives some."""
    inside = graph.graph
    old_input, old_output = inside.input[0].name, inside.output[0].name
    before = [
        helper.make_node("ReduceMean", ["counts", "axis"], ["level"], keepdims=1),
        helper.make_node("Sub", ["counts", "level"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "axis"], ["variance"], keepdims=1),
        helper.make_node("Sqrt", ["variance"], ["deviation"]),
        helper.make_node("Max", ["deviation", "one"], ["spread"]),
        helper.make_node("Div", ["centred", "spread"], [old_input]),
    ]
    after = [
        helper.make_node("Mul", [old_output, "spread"], ["scaled"]),
        helper.make_node("Add", ["scaled", "level"], ["forecast"]),
    ]
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [1], [-1]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1]),
    ]
    whole = helper.make_graph(
        [*before, *inside.node, *after],
        "forecast",
        [helper.make_tensor_value_info("counts", TensorProto.FLOAT, ["n", LAGS])],
        [helper.make_tensor_value_info("forecast", TensorProto.FLOAT, ["n", HORIZON])],
        [*inside.initializer, *constants],
    )
    return helper.make_model(whole, opset_imports=graph.opset_import, ir_version=graph.ir_version)
