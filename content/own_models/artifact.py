"""Models of several kinds as bytes, in one store: the artifact says which kind it is.

All are safetensors with the metadata and the checksum of forecast_service/artifact.py. A linear
model has its tensors, as ever; any other has its ONNX graph, as bytes, and its interval.
"""

import hashlib
import json
from collections.abc import Callable

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from forecast_service import artifact as linear
from forecast_service.contract import Forecaster
from forecast_service.errors import CorruptModelError
from forecast_service.model import HORIZON, LAGS, ForecastModel, Scores
from own_models.forecaster import OnnxForecaster, UnusableGraphError

FORMAT_VERSION = "1"
LINEAR = "linear"  # what an artifact without a kind is
ONNX = "onnx"


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
    about = {
        "format_version": FORMAT_VERSION,
        "kind": ONNX,
        "customer_id": model.customer_id,
        "lags": str(LAGS),
        "horizon": str(HORIZON),
        "trained_until": trained_until,
        **{f"holdout_{name}": str(value) for name, value in scores.existing().items()},
    }
    data = save(tensors, metadata=about | {"sha256": _checksum(about, tensors)})
    end = _header_end(data)  # save() writes metadata in an order that differs between processes
    text = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the body to 8 bytes
    return len(text).to_bytes(8, "little") + text + data[end:]


def from_bytes(data: bytes, customer_id: str) -> Forecaster:
    """Read a customer's model, of whatever kind, as a service keeps it.

    Raises:
        CorruptModelError: for all but an intact model of this customer, of a kind in READERS.
    """
    try:
        about = json.loads(data[8 : _header_end(data)])["__metadata__"] or {}
    except (KeyError, ValueError, TypeError):
        about = {}  # the linear model's reader says what is wrong
    kind = about.get("kind", LINEAR)
    if kind not in READERS:
        raise CorruptModelError(
            f"the model of {customer_id} is of the kind {kind!r}: this code reads "
            f"{', '.join(READERS)}"
        )
    return READERS[kind](data, customer_id)


def _read_onnx(data: bytes, customer_id: str) -> OnnxForecaster:
    """Read an ONNX graph: whose it is and its checksum are verified before it is opened."""

    def require(intact: bool, fault: str) -> None:
        if not intact:
            raise CorruptModelError(f"the model of {customer_id} cannot be used: {fault}")

    try:
        tensors = load(data)
        about = json.loads(data[8 : _header_end(data)])["__metadata__"]
        checksum = about.pop("sha256")
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptModelError(
            f"the model of {customer_id} is not a safetensors artifact: {error!r}"
        ) from None
    found = about.get("format_version")
    require(
        found == FORMAT_VERSION, f"its format version is {found}, this code reads {FORMAT_VERSION}"
    )
    require(about.get("customer_id") == customer_id, "it belongs to another customer")
    layout = {name: (tensor.dtype, tensor.ndim) for name, tensor in tensors.items()}
    wanted = {"graph": (np.uint8, 1), "half_width": (np.float32, 1)}
    require(layout == wanted, "it is no graph with an interval")
    half_width = tensors["half_width"]
    require(half_width.shape == (HORIZON,), f"its interval has the shape {half_width.shape}")
    require(np.isfinite(half_width).all(), "a number in it is not finite")
    require((half_width >= 0).all(), "its interval ends before it begins")
    require(checksum == _checksum(about, tensors), "its content does not match its checksum")
    version = checksum[: linear.VERSION_DIGITS]
    try:
        return OnnxForecaster(tensors["graph"].tobytes(), half_width, customer_id, version)
    except UnusableGraphError as error:
        raise CorruptModelError(f"the model of {customer_id} cannot be used: {error}") from None


READERS: dict[str, Callable[[bytes, str], Forecaster]] = {
    LINEAR: linear.folded_from_bytes,
    ONNX: _read_onnx,
}


def _header_end(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def _checksum(about: dict[str, str], tensors: dict[str, np.ndarray]) -> str:
    """Return a SHA-256 of all that a model says, as forecast_service/artifact.py makes it."""
    content = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        content.update(tensors[name].tobytes())
    return content.hexdigest()
