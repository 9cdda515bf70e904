"""Models of several kinds as bytes, in one store: the artifact says which kind it is.

All are safetensors with the metadata and the checksum of forecast_service/artifact.py. A linear
model has its tensors, as ever; any other has its ONNX graph, as bytes, and its interval.
"""

from collections.abc import Callable

import numpy as np

from forecast_service import artifact as linear
from forecast_service.artifact import pack, read_about, require, require_interval, unpack
from forecast_service.contract import Forecaster
from forecast_service.errors import CorruptModelError
from forecast_service.model import HORIZON, ForecastModel, Scores
from own_models.forecaster import OnnxForecaster, UnusableGraphError

LINEAR = "linear"  # what an artifact without a kind is
ONNX = "onnx"
TENSORS = {"graph": (np.uint8, 1), "half_width": (np.float32, 1)}  # types and dimensions


def to_bytes(model: ForecastModel | OnnxForecaster, trained_until: str, scores: Scores) -> bytes:
    """Serialize a model and those of its hold-out scores that exist.

    The same model gives the same bytes.
    """
    if isinstance(model, ForecastModel):
        return linear.to_bytes(model, scores)
    tensors = {
        "graph": np.frombuffer(model.graph, np.uint8),
        "half_width": model.half_width.astype(np.float32),
    }
    return pack(model.customer_id, trained_until, scores, tensors, kind=ONNX)


def from_bytes(data: bytes, customer_id: str) -> Forecaster:
    """Read a customer's model, of whatever kind, as a service keeps it.

    Raises:
        CorruptModelError: for all but an intact model of this customer, of a kind in READERS.
    """
    try:
        kind = read_about(data).get("kind", LINEAR)
    except (KeyError, ValueError, TypeError, AttributeError):
        kind = LINEAR  # its reader says what is wrong
    if kind not in READERS:
        raise CorruptModelError(
            f"the model of {customer_id} is of the kind {kind!r}: this code reads "
            f"{', '.join(READERS)}"
        )
    return READERS[kind](data, customer_id)


def _read_onnx(data: bytes, customer_id: str) -> OnnxForecaster:
    """Read an ONNX graph: whose it is and its checksum are verified before it is opened."""
    _, tensors, version = unpack(data, customer_id)
    layout = {name: (tensor.dtype, tensor.ndim) for name, tensor in tensors.items()}
    require(layout == TENSORS, customer_id, "it is no graph with an interval")
    half_width = tensors["half_width"]
    shape = half_width.shape
    require(shape == (HORIZON,), customer_id, f"its interval has the shape {shape}")
    require(np.isfinite(half_width).all(), customer_id, "a number in it is not finite")
    require_interval(half_width, customer_id)
    try:
        return OnnxForecaster(tensors["graph"].tobytes(), half_width, customer_id, version)
    except UnusableGraphError as error:
        raise CorruptModelError(f"the model of {customer_id} cannot be used: {error}") from None


READERS: dict[str, Callable[[bytes, str], Forecaster]] = {
    LINEAR: linear.folded_from_bytes,
    ONNX: _read_onnx,
}
