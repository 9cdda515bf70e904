"""The model: what it may see, what it promises, and how it is scored."""

import math
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from forecast_service import model as model_module
from forecast_service.artifact import from_bytes
from forecast_service.model import (
    CALIBRATION_DAYS,
    COVERAGE,
    FLOOR,
    HOLDOUT_DAYS,
    HORIZON,
    LAGS,
    MAX_COUNT,
    SEASON,
    ForecastModel,
    Scores,
    check_series,
    extend_history,
    fit,
    mean_scores,
    score,
    windows,
)
from fuzzing import fuzz

FEWEST_DAYS = LAGS + HORIZON + CALIBRATION_DAYS
WEEK = np.array([10, 20, 30, 40, 50, 60, 70])


@pytest.fixture
def series(footfall) -> np.ndarray:
    return footfall[2][0]


def test_a_folded_model_takes_the_memory_that_it_says(fleet):
    customer_id, artifact = next(iter(fleet.items()))
    model = from_bytes(artifact, customer_id)
    model.fold()  # what is made once
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        folded = model.fold()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    ids = sum(map(sys.getsizeof, (folded.customer_id, folded.version)))  # the loaded model has them
    assert folded.size_bytes - ids == pytest.approx(after - before, rel=0.1)
    assert folded.size_bytes < 3000


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
    counts = np.tile(WEEK, 80)
    model = fit("c", counts, "")
    np.testing.assert_allclose(
        model.predict(counts[-LAGS:].astype(float)).forecast, counts[:HORIZON], atol=1
    )


def test_a_series_that_never_changes_is_forecast():
    counts = np.full(1000, 5)
    model = fit("c", counts[:-HOLDOUT_DAYS], "")
    np.testing.assert_allclose(model.predict(np.full(LAGS, 5.0)).forecast, 5)


@pytest.mark.parametrize(
    "counts",
    [
        np.full(1000, 5),
        np.zeros(1000),
        np.tile(WEEK, 150),
        np.tile(WEEK, 150) * np.linspace(0.1, 0.1 + 1e-12, 150 * SEASON),  # but for rounding
    ],
    ids=["constant", "zero", "weekly", "nearly weekly"],
)
def test_a_series_that_repeats_weekly_has_no_mase_and_keeps_its_other_scores(counts):
    scores = score(fit("c", counts[:-HOLDOUT_DAYS], ""), counts)
    assert math.isnan(scores.mase) and math.isnan(scores.naive_mase)
    assert scores.coverage > 0 and ("wape" in scores.existing()) == counts.any()


@pytest.mark.filterwarnings("error")
def test_a_hold_out_of_zeros_has_no_wape_and_keeps_its_other_scores(series):
    closed = series.copy()
    closed[-HOLDOUT_DAYS:] = 0
    scores = score(fit("c", closed[:-HOLDOUT_DAYS], ""), closed)
    assert scores.existing().keys() == {"mase", "naive_mase", "coverage"}


def test_a_rare_event_is_no_noise():
    counts = np.zeros(1000)
    counts[[100, 500, 900]] = 1
    assert "mase" in score(fit("c", counts[:-HOLDOUT_DAYS], ""), counts).existing()


def test_the_mean_of_scores_is_over_those_that_exist():
    fleet = [Scores(1, 2, math.nan, 0.8), Scores(math.nan, 4, math.nan, 0.9)]
    assert mean_scores(fleet).existing() == pytest.approx(
        {"mase": 1, "naive_mase": 3, "coverage": 0.85}
    )
    assert not mean_scores([]).existing()


def test_the_interval_keeps_its_promise_on_exchangeable_days():
    noise = np.random.default_rng(0).normal(100, 10, size=(40, 1000))
    coverages = [score(fit("c", row[:-HOLDOUT_DAYS], ""), row).coverage for row in noise]
    assert np.mean(coverages) == pytest.approx(COVERAGE, abs=0.02)


days = st.floats(0, MAX_COUNT) | st.floats(0, 100) | st.integers(0, 3).map(float)
fitted_series = arrays(float, FEWEST_DAYS, elements=days, fill=days)
values = st.floats(-MAX_COUNT, MAX_COUNT) | st.floats(-100, 100)
histories = st.lists(values, min_size=SEASON, max_size=LAGS)


@fuzz
@given(fitted_series, histories)
def test_any_forecast_lies_in_its_interval_and_both_lie_above_the_floor(counts, history):
    model = fit("c", counts, "")
    forecast, lower, upper = model.predict(np.array(extend_history(history)))
    assert (lower >= FLOOR).all() and (lower <= forecast).all() and (forecast <= upper).all()
    cent = 0.01 + 1e-9 * np.abs(upper)  # of rounding
    assert (np.abs(upper - forecast - model.half_width) <= cent).all()
    cut = np.maximum(forecast - model.half_width, FLOOR)
    assert (np.abs(lower - cut) <= cent).all()


def test_the_interval_reaches_as_far_from_a_raised_forecast_as_from_any_other():
    zeros = np.zeros((LAGS, HORIZON), np.float32)
    bias = np.float32([-50, -12, -10, -9, -7, 0, 5])
    model = ForecastModel("c", "", zeros, bias, half_width=np.full(HORIZON, 3, np.float32))
    forecast, lower, upper = model.predict(np.full(LAGS, 10.0))
    assert forecast.tolist() == [0, 0, 0, 1, 3, 10, 15]
    assert lower.tolist() == [0, 0, 0, 0, 0, 7, 12]
    assert upper.tolist() == [3, 3, 3, 4, 6, 13, 18]


def test_the_interval_contains_its_share_of_calibration_days_where_forecasts_are_raised():
    """A season of 50 days, half of it closed: regression expects it to fall on below 0."""
    season = np.maximum(100 * np.sin(2 * np.pi * np.arange(1000) / 50), 0).round()
    counts = season + np.random.default_rng(0).integers(0, 3, 1000)
    model = fit("c", counts, "")
    lags, future = windows(counts[-CALIBRATION_DAYS - LAGS :])
    forecast, lower, upper = model.predict(lags)
    assert (forecast == FLOOR).mean() > 0.05, "no forecast was raised: nothing was shown"
    assert (((lower <= future) & (future <= upper)).mean(axis=0) >= COVERAGE).all()


def test_a_forecast_above_the_floor_is_answered_as_the_regression_has_it(footfall):
    """And its bounds likewise: each is rounded once, from the regression's own numbers."""
    for row in footfall[2][::10]:
        model = fit("c", row[:-HOLDOUT_DAYS], "")
        lags = windows(row)[0]
        level = lags.mean(axis=-1, keepdims=True)
        raw = level + (lags - level) @ model.weights + model.bias
        bounds = raw, np.maximum(raw - model.half_width, 0), raw + model.half_width
        above = raw >= FLOOR
        for answered, expected in zip(model.predict(lags), bounds, strict=True):
            np.testing.assert_array_equal(answered[above], expected.round(2)[above])


def test_the_floor_can_be_lowered_for_series_that_may_be_negative(series, monkeypatch):
    lags = series[-LAGS:].astype(float)
    counted = fit("c", series, "")
    monkeypatch.setattr(model_module, "FLOOR", -math.inf)
    shifted = fit("c", series - 5000.0, "")
    for one, other in zip(shifted.predict(lags - 5000), counted.predict(lags), strict=True):
        np.testing.assert_allclose(one, other - 5000, atol=0.02)
    assert (shifted.predict(lags - 5000).upper < 0).all()


@fuzz
@given(fitted_series, histories)
def test_a_folded_model_forecasts_as_the_model_but_for_rounding(counts, history):
    model, lags = fit("c", counts, ""), extend_history(history)
    folded, expected = model.fold().predict(lags), model.predict(np.array(lags))
    cent = 0.01 + 1e-9 * np.abs(expected.upper).max() + 1e-12 * np.abs(lags).max()
    for one, other in zip(folded, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=cent, rtol=0)
    days = zip(*folded, strict=True)
    assert all(FLOOR <= lower <= forecast <= upper for forecast, lower, upper in days)


def test_a_folded_model_answers_as_the_model_does_on_real_days(footfall):
    for row in footfall[2][::10]:
        model, lags = fit("c", row[:-HOLDOUT_DAYS], ""), row[-LAGS:].astype(float)
        for one, other in zip(
            model.fold().predict(lags.tolist()), model.predict(lags), strict=True
        ):
            assert one == other.tolist()


@pytest.mark.parametrize("days", range(SEASON, 40))
def test_a_short_history_is_extended_week_by_week(days):
    history = list(range(100, 100 + days))
    extended = extend_history(history)
    assert len(extended) == LAGS
    kept = min(days, LAGS)
    np.testing.assert_array_equal(extended[-kept:], history[-kept:])
    for day in range(LAGS - kept):
        assert extended[day] == extended[day + SEASON]


def broken(day: int, value: object, dtype: type = float) -> np.ndarray:
    counts = np.ones(1000, dtype)
    counts[day] = value
    return counts


@pytest.mark.parametrize(
    ("counts", "fault"),
    [
        (np.ones(100), "100 days are too few"),
        (broken(998, np.nan), "1 of 1000 days.*the first is day 999 \\(nan\\).*gap"),
        (broken(0, np.inf), "finite.*the first is day 1 \\(inf\\)"),
        (broken(5, -3), "0 to .*the first is day 6 \\(-3\\).*FLOOR"),
        (broken(5, 2e12), "to 1e\\+12.*the first is day 6 \\(2e\\+12\\)"),
        (-np.ones(1000), "1000 of 1000 days"),
        (broken(5, None, object), "the first is day 6 \\(nan\\)"),
        (broken(5, "n/a", object), "numbers"),
        (np.ones((1000, 2)), "shape"),
        (np.float64(1), "shape"),
        ([[1, 2], [3]], "numbers"),
        ([], "0 days are too few"),
    ],
)
def test_a_series_that_cannot_be_fitted_is_refused_with_its_customer(counts, fault):
    with pytest.raises(ValueError, match=f"customer_1: .*{fault}"):
        fit("customer_1", counts, "")


@pytest.mark.parametrize("holdout_days", [0, HOLDOUT_DAYS])
def test_too_short_a_series_hears_how_many_days_are_wanted_and_what_for(holdout_days):
    fewest = FEWEST_DAYS + holdout_days
    assert len(check_series("c", np.ones(fewest), holdout_days)) == fewest
    with pytest.raises(ValueError, match="too few") as raised:
        check_series("c", np.ones(fewest - 1), holdout_days)
    numbers = {int(word) for word in str(raised.value).replace(":", "").split() if word.isdigit()}
    parts = {LAGS + HORIZON, CALIBRATION_DAYS, *[holdout_days] * bool(holdout_days)}
    assert numbers == {fewest - 1, fewest, *parts}
    assert ("held out" in str(raised.value)) == bool(holdout_days)
