"""A PyTorch model is read as it was written, or not at all, and nothing in it is ever run."""

import io
import math
import pickle

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forecast_service import model as linear
from forecast_service.errors import CorruptModelError
from forecast_service.model import (
    FLOOR,
    HOLDOUT_DAYS,
    HORIZON,
    LAGS,
    MAX_COUNT,
    Scores,
    mean_scores,
)
from fuzzing import fuzz
from train_models import load_footfall

torch = pytest.importorskip("torch", reason="pip install -r chapters/requirements_pytorch_s3.txt")

from torch_models.artifact import from_bytes, to_bytes  # noqa: E402
from torch_models.forecaster import TorchForecaster, fit, score, spread  # noqa: E402

SCORES = Scores(0.8, 1.0, 0.2, 0.8)


@pytest.fixture(scope="module")
def model() -> TorchForecaster:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TorchForecaster().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def artifact(model) -> bytes:
    return to_bytes(model, "1", SCORES)


@pytest.fixture
def content(artifact) -> dict:
    """What is in the artifact, to be changed by a test."""
    return torch.load(io.BytesIO(artifact), weights_only=True)


@pytest.fixture(scope="module")
def district() -> np.ndarray:
    """Three series, and one that falls to nothing each month."""
    counts = load_footfall()[2][:3, :800]
    season = np.maximum(100 * np.sin(2 * np.pi * np.arange(800) / 28), 0).round()
    return np.vstack([counts, season])


@pytest.fixture(scope="module")
def fitted(district) -> TorchForecaster:
    torch.set_num_threads(1)
    return fit(district[:, :-HOLDOUT_DAYS], seed=1)


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_a_model_comes_back_as_it_was(model, artifact):
    restored = from_bytes(artifact, "1")
    lags = np.arange(100.0, 100 + LAGS)
    np.testing.assert_array_equal(restored.predict(lags), model.predict(lags))
    assert restored.customer_id == "1"
    assert to_bytes(restored, "1", SCORES) == artifact


def test_reading_draws_no_random_numbers(artifact):
    before = torch.random.get_rng_state()
    from_bytes(artifact, "1")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "changed",
    [
        lambda state: {name: state[name] for name in state if name != "linear.bias"},
        lambda state: state | {"extra": torch.zeros(1)},
        lambda state: state | {"linear.bias": torch.zeros(HORIZON + 1)},
        lambda state: state | {"linear.bias": torch.zeros(HORIZON).double()},
        lambda state: state | {"linear.bias": torch.zeros(HORIZON).to_sparse()},
        lambda state: state | {"linear.bias": torch.zeros(HORIZON, device="meta")},
        lambda state: state | {"linear.bias": torch.full((HORIZON,), torch.nan)},
        lambda state: state | {"linear.bias": torch.ones(HORIZON)},
        lambda state: state | {"linear.bias": [0.0] * HORIZON},
        lambda state: [],
    ],
    ids=["missing", "extra", "shape", "type", "sparse", "meta", "nan", "other", "list", "none"],
)
def test_a_changed_state_is_refused(content, changed):
    content["state_dict"] = changed(dict(content["state_dict"]))
    with pytest.raises(CorruptModelError, match="model 1"):
        from_bytes(saved(content), "1")


@pytest.mark.parametrize(
    "data", [b"", b"<html>404</html>", pickle.dumps({}), b"PK\x03\x04" + b"\0" * 100]
)
def test_what_is_no_model_is_refused(data):
    with pytest.raises(CorruptModelError):
        from_bytes(data, "1")


def test_a_truncated_or_flipped_or_swapped_model_is_refused(artifact):
    middle = len(artifact) // 2
    flipped = artifact[:middle] + bytes([artifact[middle] ^ 1]) + artifact[middle + 1 :]
    for data, model_id in (artifact[:middle], "1"), (flipped, "1"), (artifact, "2"):
        with pytest.raises(CorruptModelError):
            from_bytes(data, model_id)


def test_a_pickle_in_its_place_is_refused_and_never_opened(content, tmp_path):
    witness = tmp_path / "opened"

    class Attack:
        def __reduce__(self):
            return witness.touch, ()

    for data in pickle.dumps(Attack()), saved(Attack()), saved(content | {"x": Attack()}):
        with pytest.raises(CorruptModelError):
            from_bytes(data, "1")
        assert not witness.exists()
    torch.load(io.BytesIO(saved(Attack())), weights_only=False)
    assert witness.exists(), "the attack was none: nothing was shown"


def test_a_fit_sees_nothing_after_its_days_and_leaves_the_random_state_alone():
    torch.set_num_threads(1)
    rows = load_footfall()[2][:3, :700]
    before = torch.random.get_rng_state()
    one, same = fit(rows, seed=1), fit(rows.copy(), seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert to_bytes(one, "1", SCORES) == to_bytes(same, "1", SCORES)
    assert to_bytes(one, "1", SCORES) != to_bytes(fit(rows, seed=2), "1", SCORES)


values = st.floats(-MAX_COUNT, MAX_COUNT) | st.floats(-100, 100)


@fuzz
@given(st.lists(values, min_size=LAGS, max_size=LAGS))
@example([0.0] * LAGS)
@example([1000.0 - 40 * day for day in range(LAGS)])
def test_any_forecast_lies_in_its_interval_and_both_lie_above_the_floor(fitted, history):
    lags = np.array(history)
    forecast, lower, upper = fitted.predict(lags)
    assert (lower >= FLOOR).all() and (lower <= forecast).all() and (forecast <= upper).all()
    reach = (spread(torch.tensor(lags, dtype=torch.float32)) * fitted.half_width).numpy()
    cent = 0.01 + 1e-6 * np.abs(upper)  # of rounding
    assert (np.abs(upper - forecast - reach) <= cent).all()
    assert (np.abs(lower - np.maximum(forecast - reach, FLOOR)) <= cent).all()


def test_scores_are_those_of_the_single_models_over_the_series_that_have_them(fitted, district):
    weekly = np.resize([10, 20, 30, 40, 50, 60, 70], (1, district.shape[1]))
    scores = score(fitted, np.vstack([district[:3], weekly]))
    singly = [linear.score(fitted, series) for series in (*district[:3], weekly[0])]
    assert math.isnan(singly[-1].mase) and scores == mean_scores(singly)
    assert scores.mase == mean_scores(singly[:3]).mase


def test_scores_that_do_not_exist_are_left_out(model):
    about = torch.load(io.BytesIO(to_bytes(model, "1", SCORES._replace(mase=math.nan))))["about"]
    scores = {name for name in about if name.startswith("holdout_")}
    assert scores == {"holdout_naive_mase", "holdout_wape", "holdout_coverage"}


@pytest.mark.parametrize("value", [-1.0, math.nan, 2 * MAX_COUNT])
def test_a_district_with_a_series_that_cannot_be_fitted_is_refused_and_the_series_named(
    district, value
):
    broken = district.astype(float)
    broken[2, 50] = value
    with pytest.raises(ValueError, match=r"series 2: .*day 51"):
        fit(broken, seed=1)


def test_an_interval_that_ends_before_it_begins_is_refused_although_the_checksum_is_right(fitted):
    inverted = TorchForecaster().requires_grad_(False)
    inverted.load_state_dict(fitted.state_dict())
    inverted.half_width[3] = -0.01
    with pytest.raises(CorruptModelError, match="interval"):
        from_bytes(to_bytes(inverted, "1", SCORES), "1")
