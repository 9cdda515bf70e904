"""A model made anew: what its interval may see, what it holds, and what a trial lets through."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecast_service.mend import (
    BLOCKS,
    TRIAL_DAYS,
    YEAR_DAYS,
    Trial,
    conformal_half_width,
    cross_fitted_errors,
    interval_scores,
    mend,
    recalibrate,
    refit,
)
from forecast_service.model import (
    CALIBRATION_DAYS,
    COVERAGE,
    HORIZON,
    LAGS,
    Forecast,
    ForecastModel,
    fit,
    regress,
    windows,
)

UNTIL = "2025-12-31"


@pytest.fixture
def series(footfall) -> np.ndarray:
    return footfall[2][0].astype(float)


# the last ones are forecast from either side of where two blocks meet
@pytest.mark.parametrize("day", [-1, -100, -YEAR_DAYS, -92, -97, -183, -188, -274, -277, -279])
def test_no_error_is_of_a_fit_that_has_seen_a_day_of_it(series, day):
    """Change a day: forecasts of it and of others change, its block's weights do not."""
    lags, future = windows(series)
    before = cross_fitted_errors(lags, future)
    changed = series.copy()
    changed[day] += 1000
    after = cross_fitted_errors(*windows(changed))
    first = len(series) - len(before) - HORIZON + 1  # day that the first error's window begins with
    # Where the day is forecast, and is no lag, the error moves by what was added: same weights.
    for window, error in enumerate(before):
        step = len(series) + day - (first + window)
        if 0 <= step < HORIZON:
            moved = abs(after[window, step] - error[step])
            signed = {1000 - 2 * error[step], 1000.0}
            assert min(abs(moved - each) for each in signed) < 0.02, (window, step)
            others = np.arange(HORIZON) != step
            np.testing.assert_allclose(after[window, others], error[others], atol=0.02)


def test_every_window_of_the_year_has_an_error_and_each_is_of_nearly_all_other_days(
    series, monkeypatch
):
    seen = []

    def count(lags: np.ndarray, future: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(len(lags))
        return regress(lags, future)

    monkeypatch.setattr("forecast_service.mend.regress", count)
    lags, future = windows(series)
    assert cross_fitted_errors(lags, future).shape == (YEAR_DAYS, HORIZON)
    assert len(seen) == BLOCKS
    left_out = YEAR_DAYS // BLOCKS + 2 * (LAGS + HORIZON)
    assert all(len(lags) - left_out <= windows_seen < len(lags) for windows_seen in seen)


def test_the_shortest_series_that_can_be_fitted_can_be_refitted(series):
    fewest = LAGS + HORIZON + CALIBRATION_DAYS
    assert (refit("c", series[-fewest:], UNTIL).half_width > 0).all()
    with pytest.raises(ValueError, match=f"c: {fewest - 1} days are too few"):
        refit("c", series[-fewest + 1 :], UNTIL)


def test_the_half_width_is_the_conformal_quantile_of_errors():
    """The 81st of 100, not the 80th: the next day may be in any of 101 places."""
    errors = np.random.default_rng(0).permutation(np.arange(1.0, 101))[:, None] * np.ones(HORIZON)
    np.testing.assert_array_equal(
        conformal_half_width(errors, np.full(100, 9.0), 9.0), np.full(HORIZON, 81, np.float32)
    )


@given(growth=st.floats(0.1, 10))
def test_a_customer_who_grows_gets_an_interval_that_grows_by_the_root(growth):
    errors, levels = np.linspace(1, 50, 70).reshape(10, HORIZON), np.full(10, 100.0)
    same = conformal_half_width(errors, levels, 100.0)
    grown = conformal_half_width(errors, levels, 100.0 * growth)
    np.testing.assert_allclose(grown, same * np.sqrt(growth), rtol=1e-5)


def test_a_customer_with_nobody_has_an_interval_of_what_was_missed():
    errors, levels = np.ones((10, HORIZON)), np.zeros(10)
    np.testing.assert_array_equal(conformal_half_width(errors, levels, 0.0), np.ones(HORIZON))


def test_the_weights_have_seen_all_days_and_the_intervals_hold_on_days_to_come(footfall):
    """The promise, kept over half a year that nothing saw, by sixty customers on average."""
    held = []
    for counts in footfall[2][:60]:
        past = counts[:-CALIBRATION_DAYS]
        model = refit("c", past, UNTIL)
        np.testing.assert_array_equal(model.weights, regress(*windows(past))[0])
        lags, future = windows(counts[-CALIBRATION_DAYS - LAGS :])
        forecast = model.predict(lags)
        held.append(((forecast.lower <= future) & (future <= forecast.upper)).mean())
    assert abs(np.mean(held) - COVERAGE) < 0.04


def test_recalibrating_changes_no_forecast(series):
    model = fit("c", series[:-TRIAL_DAYS], "2025-12-03")
    other = recalibrate(model, series, UNTIL)
    lags = series[-LAGS:]
    np.testing.assert_array_equal(model.predict(lags).forecast, other.predict(lags).forecast)
    assert (model.half_width != other.half_width).all() and other.trained_until == UNTIL
    np.testing.assert_array_equal(other.half_width, refit("c", series, UNTIL).half_width)


def quantiles(values: np.ndarray) -> tuple[float, float]:
    return tuple(np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]))


@given(lower=st.floats(-30, 30), upper=st.floats(-30, 30), seed=st.integers(0, 5))
def test_no_interval_scores_better_than_the_true_quantiles(lower, upper, seed):
    future = np.random.default_rng(seed).normal(0, 10, 500)
    lower, upper = min(lower, upper), max(lower, upper)

    def mean_score(low: float, high: float) -> float:
        return interval_scores(Forecast(0, np.float64(low), np.float64(high)), future).mean()

    assert mean_score(lower, upper) >= mean_score(*quantiles(future)) - 0.5


def test_the_score_of_an_interval_is_its_width_and_ten_times_what_a_miss_is_off():
    forecast = Forecast(*(np.array([[value]]) for value in (5.0, 4.0, 7.0)))
    for day, score in (5, 3), (4, 3), (7, 3), (9, 3 + 10 * 2), (3.5, 3 + 10 * 0.5):
        assert interval_scores(forecast, np.array([[day]]))[0, 0] == pytest.approx(score)


@given(st.tuples(*[st.floats(0, 10)] * 3))
def test_the_best_of_a_trial_is_the_lowest_and_of_equals_what_changes_least(scores):
    trial = Trial(*scores)
    assert getattr(trial, trial.best) == min(scores)
    assert Trial(1, 1, 1).best == "champion" and Trial(2, 1, 1).best == "recalibrated"


class TestTrial:
    """What mend() lets through."""

    @pytest.fixture
    def champion(self, series) -> ForecastModel:
        return refit("c", series[:-TRIAL_DAYS], "2025-12-03")

    def test_a_champion_as_good_as_its_challengers_goes_on(self, champion, series):
        """It is what a challenger would be: a draw."""
        winner, trial = mend(champion, series, UNTIL)
        assert winner is None and trial.champion == trial.recalibrated == trial.refitted

    @pytest.mark.parametrize("factor", [0.2, 5])
    def test_an_interval_that_is_off_is_recalibrated_and_the_weights_stay(
        self, champion, series, factor
    ):
        wrong = replace(champion, half_width=champion.half_width * np.float32(factor))
        winner, trial = mend(wrong, series, UNTIL)
        assert trial.best == "recalibrated" and trial.recalibrated == trial.refitted
        np.testing.assert_array_equal(winner.weights, champion.weights)
        assert winner.trained_until == UNTIL

    def test_weights_that_are_off_are_refitted_on_all_days(self, champion, series):
        wrong = replace(champion, bias=champion.bias + np.float32(series.mean()))
        winner, trial = mend(wrong, series, UNTIL)
        assert trial.best == "refitted"
        np.testing.assert_array_equal(winner.weights, refit("c", series, UNTIL).weights)

    def test_what_has_damaged_the_past_makes_no_model_that_serves(self, champion, series):
        """Zeros came in place of counts for months: a challenger has learned them."""
        damaged = series.copy()
        damaged[-300 : -TRIAL_DAYS - LAGS] = 0
        winner, trial = mend(champion, damaged, UNTIL)
        assert winner is None or trial.best != "refitted"
        assert trial.refitted > trial.champion

    def test_no_challenger_of_a_trial_has_seen_its_days(self, champion, series, monkeypatch):
        lengths = []

        def watch(customer_id: str, counts: np.ndarray, until: str) -> ForecastModel:
            lengths.append(len(counts))
            return refit(customer_id, counts, until)

        monkeypatch.setattr("forecast_service.mend.refit", watch)
        wrong = replace(champion, bias=champion.bias + np.float32(series.mean()))
        mend(wrong, series, UNTIL)
        assert lengths == [len(series) - TRIAL_DAYS, len(series)]
