"""The synthetic customers: named so, the same again, like the real ones where it matters."""

import sys

import numpy as np
import pytest

from forecast_service.model import HOLDOUT_DAYS, SEASON, Scores, fit, score
from lab import synthetic_customers
from lab.synthetic_customers import WEEKS, decompose, generate

CUSTOMERS = 10_000
DAYS = WEEKS * SEASON


@pytest.fixture(scope="module")
def real(footfall) -> np.ndarray:
    """The days of the real series that the synthetic ones have, too."""
    return footfall[2][:, -DAYS:]


@pytest.fixture(scope="module")
def synthetic() -> np.ndarray:
    return generate(CUSTOMERS)[2]


@pytest.fixture(scope="module")
def scored(synthetic) -> np.ndarray:
    """The hold-out scores, shape (300, 4), of models fitted to the first of them."""
    return scores(synthetic[:300])


def level(counts: np.ndarray) -> np.ndarray:
    return counts.mean(axis=1)


def weekday_ratio(counts: np.ndarray) -> np.ndarray:
    """Return how much busier the busiest weekday is than the quietest."""
    week = counts.reshape(len(counts), WEEKS, SEASON).mean(axis=1)
    return week.max(axis=1) / week.min(axis=1)


def weekly_autocorrelation(counts: np.ndarray) -> np.ndarray:
    centred = counts - counts.mean(axis=1, keepdims=True)
    return (centred[:, SEASON:] * centred[:, :-SEASON]).sum(axis=1) / (centred**2).sum(axis=1)


def variation(counts: np.ndarray) -> np.ndarray:
    return counts.std(axis=1) / counts.mean(axis=1)


def scores(counts: np.ndarray) -> np.ndarray:
    return np.array([score(fit("c", series[:-HOLDOUT_DAYS], ""), series) for series in counts])


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance: the largest gap between two distributions."""
    values = np.concatenate([one, other])
    shares = (np.searchsorted(np.sort(each), values, "right") / len(each) for each in (one, other))
    return np.abs(np.subtract(*shares)).max()


def test_the_same_seed_gives_the_same_customers_bit_for_bit(synthetic):
    counts = generate(CUSTOMERS)[2]
    assert counts.tobytes() == synthetic.tobytes()
    assert (counts != generate(CUSTOMERS, seed=1)[2]).any(axis=1).all()


def test_a_customer_is_the_same_however_many_are_generated(synthetic):
    np.testing.assert_array_equal(generate(3)[2], synthetic[:3])


def test_no_two_customers_are_the_same(synthetic, real):
    assert len(np.unique(np.vstack([synthetic, real]), axis=0)) == CUSTOMERS + len(real)


def test_every_id_says_that_the_customer_is_synthetic(footfall):
    ids, _, _ = generate(12)
    assert ids[0] == "synthetic_00000" and ids[11] == "synthetic_00011"
    assert len(set(ids)) == 12 and not set(ids) & set(footfall[0])


def test_counts_are_whole_and_never_negative(synthetic):
    assert synthetic.dtype.kind == "i" and synthetic.min() >= 0


def test_the_dates_are_the_last_ones_of_the_real_data(footfall):
    _, dates, counts = generate(2)
    np.testing.assert_array_equal(dates, footfall[1][-DAYS:])
    assert counts.shape == (2, DAYS)


def test_none_is_too_few():
    with pytest.raises(ValueError, match="at least one"):
        generate(0)


def test_the_parts_of_a_series_add_up_to_it(real):
    week, trend, residual = decompose(real)
    logs = week[:, None] + trend + residual
    np.testing.assert_allclose(logs.reshape(real.shape), np.log1p(real, dtype=float), atol=1e-9)


def test_weekdays_stay_in_their_places(synthetic, real):
    """The busiest weekday is as often each of the seven as among the real customers."""

    def busiest(counts: np.ndarray) -> np.ndarray:
        days = counts.reshape(len(counts), WEEKS, SEASON).mean(axis=1).argmax(axis=1)
        return np.bincount(days, minlength=SEASON) / len(counts)

    assert np.abs(busiest(synthetic) - busiest(real)).max() < 0.08


def test_holidays_stay_on_their_dates(synthetic, real, footfall):
    """The days on which the whole fleet is far from its average week are the real ones."""

    def unusual(counts: np.ndarray) -> np.ndarray:
        logs = np.log1p(counts).reshape(len(counts), WEEKS, SEASON)
        return (logs - logs.mean(axis=1, keepdims=True)).mean(axis=0).ravel()

    assert np.corrcoef(unusual(synthetic), unusual(real))[0, 1] > 0.95


@pytest.mark.parametrize("statistic", [level, weekday_ratio, weekly_autocorrelation, variation])
def test_the_fleet_is_like_the_real_one(statistic, synthetic, real):
    assert distance(statistic(synthetic), statistic(real)) < 0.15


def test_days_without_anyone_are_about_as_rare_as_in_the_real_data(synthetic, real):
    assert 0.5 < (synthetic == 0).mean() / (real == 0).mean() < 2


def test_customers_depend_on_each_other_as_the_real_ones_do(synthetic, real):
    means = [
        np.corrcoef(counts[:400])[np.triu_indices(400, 1)].mean() for counts in (synthetic, real)
    ]
    assert means[0] == pytest.approx(means[1], abs=0.1)


def test_each_has_a_model_and_a_score(scored):
    assert np.isfinite(scored).all()


def test_they_are_as_hard_to_forecast_as_the_real_ones(scored, real):
    theirs = scores(real)
    np.testing.assert_allclose(scored.mean(axis=0), theirs.mean(axis=0), rtol=0.05)
    for ours, real_ones in zip(scored.T, theirs.T, strict=True):
        assert distance(ours, real_ones) < 0.15


def test_the_script_trains_as_many_as_it_is_asked_for(monkeypatch, tmp_path, capsys):
    trained = {}

    def train(customer_ids: list[str], dates: np.ndarray, counts: np.ndarray) -> dict:
        trained.update(zip(customer_ids, counts, strict=True))
        return {customer_id: Scores(1, 1, 1, 1) for customer_id in customer_ids}

    monkeypatch.setenv("MODEL_STORE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["synthetic_customers.py", "3"])
    monkeypatch.setattr(synthetic_customers, "train", train)
    monkeypatch.setattr(synthetic_customers.ray, "is_initialized", lambda: True)
    synthetic_customers.main()
    assert list(trained) == ["synthetic_00000", "synthetic_00001", "synthetic_00002"]
    assert f"3 models of synthetic customers in {tmp_path.as_uri()}" in capsys.readouterr().out


def test_the_script_fails_and_names_whoever_has_no_model(monkeypatch, tmp_path):
    outcomes = {"synthetic_00000": Scores(1, 1, 1, 1), "synthetic_00001": "synthetic_00001: why"}
    monkeypatch.setenv("MODEL_STORE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["synthetic_customers.py", "2"])
    monkeypatch.setattr(synthetic_customers, "train", lambda *fleet: outcomes)
    monkeypatch.setattr(synthetic_customers.ray, "is_initialized", lambda: True)
    with pytest.raises(SystemExit, match="synthetic_00001: why"):
        synthetic_customers.main()


def test_the_script_refuses_to_train_none(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["synthetic_customers.py", "0"])
    with pytest.raises(SystemExit):
        synthetic_customers.main()
    assert "at least one customer" in capsys.readouterr().err
