"""What was served is compared with what happened; an alarm rings as often as it says, or more."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecast_service.judge import (
    ALARM_P,
    PERMUTATIONS,
    REFERENCE_WEEKS,
    WINDOW_WEEKS,
    alarm_p,
    by_day,
    by_week,
    judge,
    walk,
)
from forecast_service.mend import refit
from forecast_service.model import HORIZON, LAGS, SEASON, ForecastModel

UNTIL = np.datetime64("2025-12-31")
WINDOW_DAYS = WINDOW_WEEKS * SEASON
WEEKS = REFERENCE_WEEKS + WINDOW_WEEKS


@pytest.fixture(scope="module")
def series(footfall) -> np.ndarray:
    return footfall[2][0].astype(float)


@pytest.fixture(scope="module")
def model(series) -> ForecastModel:
    """A model of all that came before the window, and a week more: it served all of it."""
    days = WINDOW_DAYS + SEASON
    return refit("c", series[:-days], str(UNTIL - days))


def by_hand(models: list[ForecastModel], series: np.ndarray) -> tuple[float, float]:
    """Return error and coverage of the window, day by day and step by step, in plain Python."""
    errors, naive_errors, held = [], [], []
    for day in range(len(series) - WINDOW_DAYS, len(series)):
        for step in range(HORIZON):
            made = day - step  # the day that its window begins with
            before = UNTIL - (len(series) - made)
            served = [m for m in models if np.datetime64(m.trained_until) <= before]
            if not served:
                continue
            lags = series[made - LAGS : made]
            forecast = served[0].predict(lags)
            errors.append(abs(series[day] - forecast.forecast[step]))
            naive_errors.append(abs(series[day] - lags[LAGS - SEASON + step]))
            held.append(errors[-1] <= served[0].half_width[step])
    return sum(errors) / sum(naive_errors), float(np.mean(held))


def test_a_judgement_is_of_each_day_as_it_was_forecast_on_each_day_before(model, series):
    found = judge([model], series, str(UNTIL))
    assert (found.error, found.coverage) == pytest.approx(by_hand([model], series))
    np.testing.assert_allclose(1 - found.outside[-WINDOW_WEEKS:].mean(), found.coverage)
    assert np.isfinite(found.outside).all() and len(found.outside) == WEEKS


@pytest.mark.parametrize("days_ago", [1, 10, 27, 40])
def test_what_was_served_before_a_promotion_is_judged_as_the_model_of_then(model, series, days_ago):
    new = replace(model, bias=model.bias + 99, trained_until=str(UNTIL - days_ago))
    found = judge([new, model], series, str(UNTIL))
    assert (found.error, found.coverage) == pytest.approx(by_hand([new, model], series))


def test_a_model_that_was_rolled_back_is_not_judged(model, series):
    """It has seen more than the one that serves, and is the second of the two."""
    gone = replace(model, bias=model.bias + 99, trained_until=str(UNTIL - 1))
    with_it, without = (judge(served, series, str(UNTIL)) for served in ([model, gone], [model]))
    assert (with_it.error, with_it.coverage) == (without.error, without.coverage)


def test_a_model_that_has_seen_all_days_is_not_judged_at_all(model, series):
    new = replace(model, trained_until=str(UNTIL))
    found = judge([new], series, str(UNTIL))
    assert np.isnan([found.error, found.coverage]).all()
    assert np.isnan(found.outside[-WINDOW_WEEKS:]).all()


def test_promoting_changes_nothing_of_what_is_judged_on_that_day(model, series):
    promoted = replace(model, half_width=model.half_width * 2, trained_until=str(UNTIL))
    before, after = (judge(served, series, str(UNTIL)) for served in ([model], [promoted, model]))
    assert before[:2] == after[:2]
    np.testing.assert_array_equal(before.outside, after.outside)


def test_the_weeks_that_are_judged_are_no_part_of_the_reference(model, series):
    changed = series.copy()
    changed[-WINDOW_DAYS:] *= 3
    before, after = (judge([model], counts, str(UNTIL)) for counts in (series, changed))
    np.testing.assert_array_equal(before.outside[:REFERENCE_WEEKS], after.outside[:REFERENCE_WEEKS])
    assert after.outside[-1] > before.outside[-1]


def test_a_series_of_less_than_a_year_is_judged_and_its_reference_is_not_known(model, series):
    found = judge([model], series[-250:], str(UNTIL))
    assert np.isfinite([found.error, found.coverage]).all() and np.isnan(found.outside[0])
    assert np.isnan(alarm_p(found.outside[None])).all()


def test_a_series_that_never_changes_has_no_relative_error(model):
    found = judge([model], np.full(500, 7.0), str(UNTIL))
    assert np.isnan(found.error) and np.isfinite(found.coverage)


def test_days_have_the_forecasts_of_the_seven_days_before():
    windows = np.arange(20)[:, None] * 100 + np.arange(HORIZON)  # window, step
    first = by_day(windows)[0]
    assert first.tolist() == [600, 501, 402, 303, 204, 105, 6]
    assert len(by_day(windows)) == 14


def test_weeks_are_counted_from_the_end_and_what_is_not_known_is_left_out():
    values = np.repeat(np.arange(23.0), HORIZON).reshape(23, HORIZON)
    values[2:9, 0] = np.nan
    assert by_week(values, 2).tolist() == [12, 19]
    assert by_week(values, 3)[0] == 5 and np.isnan(by_week(values, 4)[0])
    values[2:9] = np.nan
    assert np.isnan(by_week(values, 3)[0])


@pytest.fixture(scope="module")
def calm() -> np.ndarray:
    """The weeks of a fleet in which nothing changes, of shape (customers, weeks)."""
    rng = np.random.default_rng(0)
    own = rng.uniform(0.1, 0.4, (400, 1))  # customers differ, and weeks: a holiday is everybody's
    return np.clip(
        rng.normal(own, 0.15) + rng.normal(0, 0.1, 104) + rng.normal(0, 0.1, (400, 104)), 0, 1
    )


def test_if_weeks_are_independent_the_alarm_rings_as_often_as_it_says(calm):
    rings = walk(calm) <= ALARM_P
    assert rings.shape == (400, 104 - WEEKS + 1)
    assert 0.2 * ALARM_P < rings.mean() < 2 * ALARM_P


def test_if_a_bad_week_is_followed_by_a_bad_one_it_rings_more_often_than_it_says(calm):
    """Which is why its docstring promises nothing for them: two weeks in three are shared here."""
    alike = (calm[:, :-2] + calm[:, 1:-1] + calm[:, 2:]) / 3
    assert (walk(alike) <= ALARM_P).mean() > 3 * ALARM_P


def test_without_a_change_every_p_is_as_likely_as_any_other(calm):
    p = alarm_p(calm[:, :WEEKS])
    for bound in 0.05, 0.25, 0.5, 0.9:
        assert abs((p <= bound).mean() - bound) < 4 * np.sqrt(bound * (1 - bound) / len(p))


def test_a_customer_who_goes_wrong_alone_is_noticed_and_nobody_else(calm):
    changed = calm[:, :WEEKS].copy()
    changed[7, -WINDOW_WEEKS:] += 0.5
    p = alarm_p(changed)
    assert p[7] == 1 / (1 + PERMUTATIONS)
    others = np.delete(p, 7)
    assert (others <= ALARM_P).sum() <= (alarm_p(calm[:, :WEEKS]) <= ALARM_P).sum()


def test_what_hits_everybody_alike_is_nobodys_alarm(calm):
    changed = calm[:, :WEEKS].copy()
    changed[:, -WINDOW_WEEKS:] += 0.3
    np.testing.assert_allclose(alarm_p(changed), alarm_p(calm[:, :WEEKS]))


def test_a_customer_who_gets_better_is_no_alarm(calm):
    changed = calm[:, :WEEKS].copy()
    changed[7, -WINDOW_WEEKS:] -= 0.5
    assert alarm_p(changed)[7] > 0.9


def test_a_customer_of_whom_a_week_is_not_known_changes_nothing_for_others(calm):
    changed = np.vstack([calm[:50, :WEEKS], np.full((1, WEEKS), 0.9)])
    changed[-1, 3] = np.nan
    p = alarm_p(changed)
    assert np.isnan(p[-1])
    np.testing.assert_array_equal(p[:-1], alarm_p(calm[:50, :WEEKS]))


@given(st.integers(0, 20), st.integers(1, 3))
def test_a_p_is_a_share_and_constant_weeks_have_1(seed, customers):
    outside = np.random.default_rng(seed).random((customers, WEEKS))
    p = alarm_p(outside)
    assert ((p > 0) & (p <= 1)).all()
    assert (alarm_p(np.ones((customers, WEEKS))) == 1).all()
