"""A model as bytes: safetensors with metadata and a checksum. Reading it never runs code."""

import hashlib
import json
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from forecast_service.errors import CorruptModelError
from forecast_service.model import HORIZON, LAGS, FoldedModel, ForecastModel, Scores

FORMAT_VERSION = "1"
SHAPES = {"weights": (LAGS, HORIZON), "bias": (HORIZON,), "half_width": (HORIZON,)}  # all float32
VERSION_DIGITS = 12  # of the checksum: a model's version


class Content(NamedTuple):
    """What an intact artifact says, of whatever kind its model is."""

    about: dict[str, str]
    tensors: dict[str, np.ndarray]
    version: str


def to_bytes(model: ForecastModel, scores: Scores) -> bytes:
    """Serialize a model and those of its hold-out scores that exist.

    The same model gives the same bytes.
    """
    tensors = {name: getattr(model, name) for name in SHAPES}
    return pack(model.customer_id, model.trained_until, scores, tensors)


def from_bytes(data: bytes, customer_id: str) -> ForecastModel:
    """Read a customer's model.

    Raises:
        CorruptModelError: for all but an intact, finite model of this customer in this format.
    """
    about, tensors, version = unpack(data, customer_id)
    layout = {name: tensor.shape for name, tensor in tensors.items() if tensor.dtype == np.float32}
    require(
        layout == SHAPES and len(tensors) == len(SHAPES),
        customer_id,
        f"its tensors are not {SHAPES} in float32",
    )
    finite = all(np.isfinite(tensor).all() for tensor in tensors.values())
    require(finite, customer_id, "a number in it is not finite")
    require_interval(tensors["half_width"], customer_id)
    return ForecastModel(customer_id, about["trained_until"], **tensors, version=version)


def folded_from_bytes(data: bytes, customer_id: str) -> FoldedModel:
    """Read a customer's model as a service keeps it. Raises CorruptModelError, as from_bytes()."""
    return from_bytes(data, customer_id).fold()


def pack(
    customer_id: str,
    trained_until: str,
    scores: Scores,
    tensors: dict[str, np.ndarray],
    **more: str,
) -> bytes:
    """Serialize the tensors of a model, with `more` that its reader has to know of it.

    The same content gives the same bytes.
    """
    about = {
        "format_version": FORMAT_VERSION,
        "customer_id": customer_id,
        "lags": str(LAGS),
        "horizon": str(HORIZON),
        "trained_until": trained_until,
        **{f"holdout_{name}": str(value) for name, value in scores.existing().items()},
        **more,
    }
    header, body = _split(save(tensors, metadata=about | {"sha256": _checksum(about, tensors)}))
    # save() writes metadata in an order that differs between processes: sort it.
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the body to 8 bytes
    return len(text).to_bytes(8, "little") + text + body


def unpack(data: bytes, customer_id: str) -> Content:
    """Read what pack() wrote for a customer.

    Raises:
        CorruptModelError: unless it is intact, in this format, and this customer's.
    """
    try:
        tensors, about = load(data), read_about(data)
        checksum = about.pop("sha256")
        about["trained_until"]  # has to be there, too
    except (SafetensorError, KeyError, ValueError) as error:  # ValueError: no shape for NumPy
        raise CorruptModelError(
            f"the model of {customer_id} is not a safetensors artifact: {error!r}"
        ) from None
    found = about.get("format_version")
    require(
        found == FORMAT_VERSION,
        customer_id,
        f"its format version is {found}, this code reads {FORMAT_VERSION}",
    )
    require(about.get("customer_id") == customer_id, customer_id, "it belongs to another customer")
    intact = checksum == _checksum(about, tensors)
    require(intact, customer_id, "its content does not match its checksum")
    return Content(about, tensors, checksum[:VERSION_DIGITS])


def read_about(data: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file, unverified. Raises KeyError, ValueError."""
    return _split(data)[0]["__metadata__"] or {}  # it may be null


def require(usable: bool, customer_id: str, fault: str) -> None:
    """Raise CorruptModelError, which names the customer and the fault, unless a model is usable."""
    if not usable:
        raise CorruptModelError(f"the model of {customer_id} cannot be used: {fault}")


def require_interval(half_width: np.ndarray, customer_id: str) -> None:
    """Raise CorruptModelError unless these are half widths of an interval."""
    require((half_width >= 0).all(), customer_id, "its interval ends before it begins")


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
