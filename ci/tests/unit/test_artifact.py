"""An artifact is read as it was written, or not at all."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from forecast_service.artifact import _checksum, _split, from_bytes, to_bytes
from forecast_service.errors import CorruptModelError
from forecast_service.model import HORIZON, LAGS, ForecastModel, Scores

SCORES = Scores(0.8, 1.0, 0.2, 0.8)


def make_model(**changes) -> ForecastModel:
    rng = np.random.default_rng(0)
    model = ForecastModel(
        "customer_123",
        "2025-07-02",
        weights=rng.normal(size=(LAGS, HORIZON)).astype(np.float32),
        bias=rng.normal(size=HORIZON).astype(np.float32),
        half_width=np.ones(HORIZON, np.float32),
    )
    return replace(model, **changes)


ARTIFACT = to_bytes(make_model(), SCORES)


def test_a_model_comes_back_as_it_was():
    model = from_bytes(ARTIFACT, "customer_123")
    assert (model.customer_id, model.trained_until) == ("customer_123", "2025-07-02")
    for name in "weights", "bias", "half_width":
        np.testing.assert_array_equal(getattr(model, name), getattr(make_model(), name))


def test_any_safetensors_reader_sees_what_it_is_and_how_it_scored():
    header = json.loads(ARTIFACT[8 : 8 + int.from_bytes(ARTIFACT[:8], "little")])
    about = header["__metadata__"]
    assert about["format_version"] == "1"
    assert (about["customer_id"], about["lags"], about["horizon"]) == ("customer_123", "28", "7")
    assert (about["trained_until"], about["holdout_mase"]) == ("2025-07-02", "0.8")
    assert set(load(ARTIFACT)) == {"weights", "bias", "half_width"}


def signed(about: dict[str, str], **more: np.ndarray) -> bytes:
    """Return make_model()'s artifact with other metadata, more tensors, and a right checksum."""
    tensors = load(ARTIFACT) | more
    return save(tensors, about | {"sha256": _checksum(about, tensors)})


def metadata() -> dict[str, str]:
    about = dict(_split(ARTIFACT)[0]["__metadata__"])
    del about["sha256"]
    return about


@pytest.mark.parametrize("missing", [np.nan, np.inf])
def test_scores_that_do_not_exist_are_left_out(missing):
    artifact = to_bytes(make_model(), SCORES._replace(mase=missing, wape=missing))
    about = _split(artifact)[0]["__metadata__"]
    scores = {name: value for name, value in about.items() if name.startswith("holdout_")}
    assert scores == {"holdout_naive_mase": "1.0", "holdout_coverage": "0.8"}
    assert (
        from_bytes(artifact, "customer_123").version != from_bytes(ARTIFACT, "customer_123").version
    )


@pytest.mark.parametrize("score", ["nan", "inf"])
def test_an_artifact_of_earlier_training_that_says_nan_is_still_read(score):
    old = signed(metadata() | {"holdout_mase": score, "holdout_naive_mase": score})
    np.testing.assert_array_equal(from_bytes(old, "customer_123").weights, make_model().weights)


def test_the_version_names_the_content():
    version = from_bytes(ARTIFACT, "customer_123").version
    other = to_bytes(make_model(bias=np.zeros(HORIZON, np.float32)), SCORES)
    assert version == from_bytes(to_bytes(make_model(), SCORES), "customer_123").version
    assert version != from_bytes(other, "customer_123").version


@given(st.integers(0, len(ARTIFACT) * 8 - 1))
def test_every_flipped_bit_is_noticed(bit):
    data = bytearray(ARTIFACT)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptModelError, match="customer_123"):
        from_bytes(bytes(data), "customer_123")


@pytest.mark.parametrize("length", range(0, len(ARTIFACT), 7))
def test_every_truncation_is_noticed(length):
    with pytest.raises(CorruptModelError):
        from_bytes(ARTIFACT[:length], "customer_123")


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_model_or_one_kind_of_error(data):
    with pytest.raises(CorruptModelError):
        from_bytes(data, "customer_123")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["weights", "bias", "half_width"])
def test_a_number_that_is_not_finite_is_refused_although_the_checksum_is_right(name, value):
    part = getattr(make_model(), name).copy()
    part.flat[-1] = value
    with pytest.raises(CorruptModelError, match="finite"):
        from_bytes(to_bytes(make_model(**{name: part}), SCORES), "customer_123")


def test_an_interval_that_ends_before_it_begins_is_refused_although_the_checksum_is_right():
    half_width = np.ones(HORIZON, np.float32)
    half_width[3] = -0.01
    with pytest.raises(CorruptModelError, match="interval"):
        from_bytes(to_bytes(make_model(half_width=half_width), SCORES), "customer_123")


def test_another_customers_model_is_refused():
    with pytest.raises(CorruptModelError, match="another customer"):
        from_bytes(ARTIFACT, "customer_456")


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": np.zeros((HORIZON, LAGS), np.float32)},
        {"bias": np.zeros(HORIZON, np.float64)},
        {"bias": np.zeros(HORIZON - 1, np.float32)},
    ],
)
def test_other_shapes_and_types_are_refused_although_the_checksum_is_right(changes):
    with pytest.raises(CorruptModelError, match="tensors"):
        from_bytes(to_bytes(make_model(**changes), SCORES), "customer_123")


@pytest.mark.parametrize("extra", [np.zeros(1, np.float32), np.zeros(1, np.uint8)])
def test_a_tensor_too_many_is_refused_although_the_checksum_is_right(extra):
    with pytest.raises(CorruptModelError, match="tensors"):
        from_bytes(signed(metadata(), extra=extra), "customer_123")


def test_another_format_version_is_refused(monkeypatch):
    monkeypatch.setattr("forecast_service.artifact.FORMAT_VERSION", "2")
    newer = to_bytes(make_model(), SCORES)
    monkeypatch.undo()
    with pytest.raises(CorruptModelError, match="format version is 2"):
        from_bytes(newer, "customer_123")


def test_safetensors_without_our_metadata_are_refused():
    with pytest.raises(CorruptModelError):
        from_bytes(save({"weights": np.zeros((LAGS, HORIZON), np.float32)}), "customer_123")


def test_a_pickle_is_refused_and_never_opened(tmp_path):
    witness = tmp_path / "opened"

    class Attack:
        def __reduce__(self):
            return witness.touch, ()

    attack = pickle.dumps(Attack())
    with pytest.raises(CorruptModelError):
        from_bytes(attack, "customer_123")
    assert not witness.exists()
    pickle.loads(attack)
    assert witness.exists(), "the attack was none: nothing was shown"
