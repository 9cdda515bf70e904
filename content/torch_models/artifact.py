"""A PyTorch model as bytes, a `model.pt`: weights and text, read without running what is in it."""

import hashlib
import io
import json

import torch
from torch import Tensor

from forecast_service.errors import CorruptModelError
from forecast_service.model import Scores
from torch_models.forecaster import TorchForecaster

FORMAT_VERSION = "1"
VERSION_DIGITS = 12  # of the checksum: a model's version


def to_bytes(model: TorchForecaster, model_id: str, scores: Scores) -> bytes:
    """Serialize a model and those of its hold-out scores that exist.

    The same model gives the same bytes.
    """
    state = dict(model.state_dict())
    about = {"format_version": FORMAT_VERSION, "model_id": model_id}
    about |= {f"holdout_{name}": str(value) for name, value in scores.existing().items()}
    file = io.BytesIO()  # not a path: torch.save would write its name into the bytes
    torch.save({"state_dict": state, "about": about | {"sha256": _checksum(about, state)}}, file)
    return file.getvalue()


def from_bytes(data: bytes, model_id: str) -> TorchForecaster:
    """Read a model that to_bytes wrote. A pickle in it that calls foreign code is refused, unrun.

    Raises:
        CorruptModelError: for anything but an intact and finite model, of this id, in this format.
    """

    def require(intact: bool, fault: str) -> None:
        if not intact:
            raise CorruptModelError(f"model {model_id} cannot be used: {fault}")

    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        state, about = dict(content["state_dict"]), dict(content["about"])
        checksum = about.pop("sha256")
    except Exception as error:  # bad bytes make torch.load raise many types, none documented
        raise CorruptModelError(
            f"model {model_id} is no model.pt: {type(error).__name__}"
        ) from error
    require(all(type(text) is str for pair in about.items() for text in pair), "not all is text")
    found = about.get("format_version")
    require(found == FORMAT_VERSION, f"its version is {found}, this code reads {FORMAT_VERSION}")
    require(about.get("model_id") == model_id, "it belongs to another id")
    with torch.device("meta"):  # no memory, no random numbers for weights about to be replaced
        model = TorchForecaster()
    require(_layout(state) == _layout(model.state_dict()), "its tensors are not a TorchForecaster")
    require(all(tensor.device.type == "cpu" for tensor in state.values()), "it has no numbers")
    require(all(tensor.isfinite().all() for tensor in state.values()), "a number is not finite")
    require((state["half_width"] >= 0).all(), "its interval ends before it begins")
    require(checksum == _checksum(about, state), "its content does not match its checksum")
    model.load_state_dict(state, assign=True)
    model.customer_id, model.version = model_id, checksum[:VERSION_DIGITS]
    return model.eval().requires_grad_(False)


def _layout(state: dict[str, Tensor]) -> dict[str, tuple]:
    """Return what each value is: its type and, of a tensor, shape, element type and layout."""
    named = ("shape", "dtype", "layout")
    return {
        name: (type(value), *(getattr(value, field, None) for field in named))
        for name, value in state.items()
    }


def _checksum(about: dict[str, str], state: dict[str, Tensor]) -> str:
    """Return a SHA-256 of all that a model says: torch.load lets a flipped bit in a weight pass."""
    content = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(state):
        content.update(state[name].contiguous().numpy(force=True))
    return content.hexdigest()
