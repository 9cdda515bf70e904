"""The model: what it may see, what it promises, and how it is scored."""

import numpy as np
import pytest

from forecast_service.model import (
    CALIBRATION_DAYS,
    COVERAGE,
    HOLDOUT_DAYS,
    HORIZON,
    LAGS,
    SEASON,
    extend_history,
    fit,
    score,
    windows,
)


@pytest.fixture
def series(footfall) -> np.ndarray:
    return footfall[2][0]


def test_the_windows_are_every_pair_of_past_and_future():
    counts = np.arange(LAGS + HORIZON + 2)
    lags, future = windows(counts)
    assert lags.shape == (3, LAGS) and future.shape == (3, HORIZON)
    assert (
        lags[0, 0] == 0
        and lags[-1, -1] == LAGS + 1
        and future[0, 0] == LAGS
        and future[-1, -1] == counts[-1]
    )


def test_the_regression_does_not_see_the_calibration_days(series):
    changed = series.copy()
    changed[-CALIBRATION_DAYS:] = 0
    one, other = fit("c", series, ""), fit("c", changed, "")
    np.testing.assert_array_equal(one.weights, other.weights)
    assert (one.half_width != other.half_width).any()


def test_no_forecast_of_the_score_sees_its_own_future(series):
    model = fit("c", series[:-HOLDOUT_DAYS], "")
    later = series.copy()
    later[-1] += 1000
    lags, future = windows(later[-HOLDOUT_DAYS - LAGS :])
    assert len(lags) == HOLDOUT_DAYS - HORIZON + 1
    assert not (lags == later[-1]).any() and (future == later[-1]).any()
    assert score(model, later).mase > score(model, series).mase


def test_the_seasonal_naive_forecast_scores_as_by_hand(series):
    scores = score(fit("c", series[:-HOLDOUT_DAYS], ""), series)
    values = series.astype(float)
    first = len(values) - HOLDOUT_DAYS
    errors = [
        abs(values[origin + step] - values[origin + step - SEASON])
        for origin in range(first, len(values) - HORIZON + 1)
        for step in range(HORIZON)
    ]
    regressed = values[: first - CALIBRATION_DAYS]
    scale = np.mean(
        [abs(regressed[day] - regressed[day - SEASON]) for day in range(SEASON, len(regressed))]
    )
    assert scores.naive_mase == pytest.approx(np.mean(errors) / scale, abs=1e-4)


def test_a_series_that_repeats_weekly_is_forecast_to_within_the_ridges_shrinkage():
    counts = np.tile([10, 20, 30, 40, 50, 60, 70], 80)
    model = fit("c", counts, "")
    np.testing.assert_allclose(
        model.predict(counts[-LAGS:].astype(float)).forecast, counts[:HORIZON], atol=1
    )


def test_a_series_that_never_changes_is_forecast_and_has_no_mase():
    counts = np.full(1000, 5)
    model = fit("c", counts[:-HOLDOUT_DAYS], "")
    np.testing.assert_allclose(model.predict(np.full(LAGS, 5.0)).forecast, 5)
    assert np.isnan(score(model, counts).mase)


def test_the_interval_keeps_its_promise_on_exchangeable_days():
    noise = np.random.default_rng(0).normal(100, 10, size=(40, 1000))
    coverages = [score(fit("c", row[:-HOLDOUT_DAYS], ""), row).coverage for row in noise]
    assert np.mean(coverages) == pytest.approx(COVERAGE, abs=0.02)


def test_counts_are_never_negative_and_lie_in_their_interval(footfall):
    for row in footfall[2][::10]:
        model = fit("c", row[:-HOLDOUT_DAYS], "")
        forecast, lower, upper = model.predict(windows(row)[0])
        assert (lower >= 0).all() and (lower <= forecast).all() and (forecast <= upper).all()


@pytest.mark.parametrize("days", range(SEASON, 40))
def test_a_short_history_is_extended_week_by_week(days):
    history = np.arange(100.0, 100 + days)
    extended = extend_history(history)
    assert len(extended) == LAGS
    kept = min(days, LAGS)
    np.testing.assert_array_equal(extended[-kept:], history[-kept:])
    for day in range(LAGS - kept):
        assert extended[day] == extended[day + SEASON]


@pytest.mark.parametrize("counts", [np.ones(100), np.r_[np.ones(999), np.nan]])
def test_a_series_that_cannot_be_fitted_is_refused_with_its_customer(counts):
    with pytest.raises(ValueError, match="customer_1"):
        fit("customer_1", counts, "")
