"""Whatever bytes are in the store: they are read as a sound model, or refused with one error."""

import json
import string
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_artifact import ARTIFACT, SCORES, make_model

from forecast_service.artifact import SHAPES, _checksum, from_bytes, to_bytes
from forecast_service.errors import CorruptModelError
from fuzzing import fuzz, json_values

MODEL = from_bytes(ARTIFACT, "customer_123")
HEADER_END = 8 + int.from_bytes(ARTIFACT[:8], "little")
HEADER, BODY = json.loads(ARTIFACT[8:HEADER_END]), ARTIFACT[HEADER_END:]
END = len(BODY)
BYTES_PER_BYTE, BYTES_ASIDE = 50, 100_000  # of memory, that reading an artifact may take
DIMENSIONS = st.sampled_from([0, 1, 7, 28, 2**31, 2**62, 2**63, 2**64 - 1, 2**64, -1])
DTYPES = "BOOL", "U8", "F4", "F8_E8M0", "I16", "F16", "I32", "F32", "C64", "F64", "none"


def is_read_or_corrupt(data: bytes) -> bool:
    """Return whether bytes are read as customer_123's model, and require that it is a sound one."""
    tracemalloc.start()
    try:
        model = from_bytes(data, "customer_123")
    except CorruptModelError as error:
        assert "customer_123" in str(error)
        return False
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < BYTES_ASIDE + BYTES_PER_BYTE * len(data)
    assert model.customer_id == "customer_123"
    for name, shape in SHAPES.items():
        tensor = getattr(model, name)
        assert tensor.shape == shape and tensor.dtype == np.float32 and np.isfinite(tensor).all()
    assert (model.half_width >= 0).all()
    return True


def assemble(header: object, body: bytes = BODY, declared: int | None = None) -> bytes:
    """Return an artifact with any header, and any length declared for it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if declared is None else declared).to_bytes(8, "little") + text + body


def same_numbers(model) -> bool:
    return all(np.array_equal(getattr(model, name), getattr(MODEL, name)) for name in SHAPES)


@fuzz
@given(st.data())
def test_a_spliced_artifact_is_refused_or_still_says_the_same(data):
    other = to_bytes(make_model(customer_id="customer_456"), SCORES)
    spliced = ARTIFACT
    for _ in range(data.draw(st.integers(1, 3))):
        start, end = sorted(data.draw(st.integers(0, len(spliced))) for _ in range(2))
        pieces = st.binary(max_size=64) | st.integers(0, len(other)).map(lambda at: other[at:])
        pieces |= st.just(spliced[start:end] * 2) | st.just(b" " * 8)
        spliced = spliced[:start] + data.draw(pieces) + spliced[end:]
    if is_read_or_corrupt(spliced):
        model = from_bytes(spliced, "customer_123")
        assert same_numbers(model) and model.version == MODEL.version


@st.composite
def odd_headers(draw) -> dict:
    """A good header in which something is missing, more, or another thing."""
    header = json.loads(json.dumps(HEADER))
    for _ in range(draw(st.integers(1, 3))):
        tensors = [name for name, value in header.items() if isinstance(value, dict)]
        part = header[draw(st.sampled_from(tensors))] if tensors else header
        at = draw(st.sampled_from([header, part]))
        key = draw(st.sampled_from([*at, "x"]))
        shapes = st.lists(DIMENSIONS, max_size=4) | st.just([1] * 70)
        what = draw(st.sampled_from(["drop", "null", "shape", "dtype", "offsets", "any", "tensor"]))
        if what == "drop":
            at.pop(key, None)
        elif what in ("shape", "dtype", "offsets"):
            values = {"shape": shapes, "dtype": st.sampled_from(DTYPES)}
            values["offsets"] = st.lists(DIMENSIONS, min_size=2, max_size=2)
            part["data_offsets" if what == "offsets" else what] = draw(values[what])
        elif what == "tensor":
            empty = {"dtype": draw(st.sampled_from(DTYPES)), "shape": draw(shapes)}
            header["x"] = empty | {"data_offsets": [len(BODY), len(BODY)]}
        else:
            at[key] = None if what == "null" else draw(json_values)
    return header


@fuzz
@given(odd_headers(), st.binary(max_size=8).map(lambda more: BODY + more) | st.just(BODY))
def test_an_artifact_with_an_odd_header_is_a_sound_model_or_refused(header, body):
    is_read_or_corrupt(assemble(header, body))


@pytest.mark.parametrize(
    "header",
    [
        HEADER | {"__metadata__": None},
        HEADER | {"x": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [END, END]}},
        HEADER | {"x": {"dtype": "U8", "shape": [1] * 70, "data_offsets": [END, END + 1]}},
    ],
    ids=["no metadata", "a shape too large", "a shape of too many dimensions"],
)
def test_a_header_that_safetensors_takes_and_numpy_or_we_do_not_is_refused(header):
    assert not is_read_or_corrupt(assemble(header, BODY + b" "))
    assert not is_read_or_corrupt(assemble(header, BODY))


@fuzz
@given(
    st.dictionaries(st.text(string.ascii_uppercase), st.text(max_size=9), max_size=3),
    st.sampled_from([*HEADER["__metadata__"], ""]),
)
def test_a_right_checksum_does_not_make_up_for_what_is_missing(more, missing):
    about = HEADER["__metadata__"] | more
    about.pop("sha256")
    about.pop(missing, None)
    tensors = {name: getattr(MODEL, name) for name in SHAPES}
    if missing != "sha256":
        about["sha256"] = _checksum(about, tensors)
    read = is_read_or_corrupt(assemble(HEADER | {"__metadata__": about}))
    needed = "sha256", "format_version", "customer_id", "trained_until"
    assert read == (missing not in needed)


@fuzz
@given(st.integers(0, 2**64 - 1) | st.sampled_from([2**31, 10**8, 2**40, 2**63, 2**64 - 1]))
def test_a_header_of_any_declared_length_takes_no_more_memory(length):
    is_read_or_corrupt(assemble(HEADER, declared=length))


def numbers(shape: tuple) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float32, shape, elements=st.floats(width=32, allow_nan=False))


@fuzz
@given(*map(numbers, SHAPES.values()), st.text(max_size=20))
def test_any_sound_model_comes_back_bit_by_bit_and_no_other(weights, bias, half_width, until):
    tensors = {"weights": weights, "bias": bias, "half_width": half_width}
    data = to_bytes(make_model(trained_until=until, **tensors), SCORES)
    if not all(map(np.all, map(np.isfinite, tensors.values()))) or (half_width < 0).any():
        assert not is_read_or_corrupt(data)
        return
    model = from_bytes(data, "customer_123")
    assert model.trained_until == until
    for name, tensor in tensors.items():
        assert getattr(model, name).tobytes() == tensor.tobytes()
