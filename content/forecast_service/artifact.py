"""A model as bytes: safetensors with metadata and a checksum. Reading it never runs code."""

import hashlib
import json

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from forecast_service.errors import CorruptModelError
from forecast_service.model import HORIZON, LAGS, FoldedModel, ForecastModel, Scores

FORMAT_VERSION = "1"
SHAPES = {"weights": (LAGS, HORIZON), "bias": (HORIZON,), "half_width": (HORIZON,)}  # all float32
VERSION_DIGITS = 12  # of the checksum: a model's version


def to_bytes(model: ForecastModel, scores: Scores) -> bytes:
    """Serialize a model and those of its hold-out scores that exist.

    The same model gives the same bytes.
    """
    tensors = {name: getattr(model, name) for name in SHAPES}
    about = {
        "format_version": FORMAT_VERSION,
        "customer_id": model.customer_id,
        "lags": str(LAGS),
        "horizon": str(HORIZON),
        "trained_until": model.trained_until,
        **{f"holdout_{name}": str(value) for name, value in scores.existing().items()},
    }
    header, body = _split(save(tensors, metadata=about | {"sha256": _checksum(about, tensors)}))
    # save() writes metadata in an order that differs between processes: sort it.
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the body to 8 bytes
    return len(text).to_bytes(8, "little") + text + body


def from_bytes(data: bytes, customer_id: str) -> ForecastModel:
    """Read a customer's model.

    Raises:
        CorruptModelError: for all but an intact, finite model of this customer in this format.
    """

    def require(intact: bool, fault: str) -> None:
        if not intact:
            raise CorruptModelError(f"the model of {customer_id} cannot be used: {fault}")

    try:
        tensors = load(data)
        about = _split(data)[0]["__metadata__"] or {}  # it may be null
        checksum, trained_until = about.pop("sha256"), about["trained_until"]
    except (SafetensorError, KeyError, ValueError) as error:  # ValueError: no shape for NumPy
        raise CorruptModelError(
            f"the model of {customer_id} is not a safetensors artifact: {error!r}"
        ) from None
    found = about.get("format_version")
    require(
        found == FORMAT_VERSION, f"its format version is {found}, this code reads {FORMAT_VERSION}"
    )
    require(about.get("customer_id") == customer_id, "it belongs to another customer")
    layout = {name: tensor.shape for name, tensor in tensors.items() if tensor.dtype == np.float32}
    require(
        layout == SHAPES and len(tensors) == len(SHAPES), f"its tensors are not {SHAPES} in float32"
    )
    require(
        all(np.isfinite(tensor).all() for tensor in tensors.values()),
        "a number in it is not finite",
    )
    require((tensors["half_width"] >= 0).all(), "its interval ends before it begins")
    require(checksum == _checksum(about, tensors), "its content does not match its checksum")
    return ForecastModel(customer_id, trained_until, **tensors, version=checksum[:VERSION_DIGITS])


def folded_from_bytes(data: bytes, customer_id: str) -> FoldedModel:
    """Read a customer's model as a service keeps it. Raises CorruptModelError, as from_bytes()."""
    return from_bytes(data, customer_id).fold()


def _split(data: bytes) -> tuple[dict, bytes]:
    """Split a safetensors file into its header and its body."""
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]


def _checksum(about: dict[str, str], tensors: dict[str, np.ndarray]) -> str:
    """Return a SHA-256 of all that a model says, so that no flipped bit passes for a model."""
    content = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        content.update(tensors[name].tobytes())
    return content.hexdigest()
