"""A replayed year: no policy knows what has not yet come, and what it serves is what is scored."""

import numpy as np
import pytest
from live_service import FAST

from forecast_service.judge import REFERENCE_WEEKS, judge
from forecast_service.mend import interval_scores
from forecast_service.model import COVERAGE, HORIZON, LAGS, Forecast, ForecastModel, fit
from lab.replay import STEP_SIZE, Replay, adapt, mended, recalibrated, refitted, split

CUSTOMERS = 6
CHANGED = 200  # day of the year from which on another future is replayed
pytestmark = [
    pytest.mark.skipif(FAST, reason="asks no service"),
    pytest.mark.usefixtures("session_dir"),
]


@pytest.fixture(scope="module")
def start(footfall) -> int:
    return int(np.searchsorted(footfall[1], np.datetime64("2025-01-01")))


@pytest.fixture(scope="module")
def counts(footfall) -> np.ndarray:
    return footfall[2][:CUSTOMERS].astype(float)


@pytest.fixture(scope="module")
def january(footfall, counts, start) -> list[ForecastModel]:
    until = str(footfall[1][start - 1])
    return [fit(f"c{row}", series[:start], until) for row, series in enumerate(counts)]


@pytest.fixture(scope="module")
def begin(footfall, january, start):
    return lambda counts: Replay(january, footfall[1], counts, start)


@pytest.fixture(scope="module")
def reference(footfall, counts, january, start) -> np.ndarray:
    """Intervals that do not hold now ring: it was never so bad before."""
    return np.zeros((CUSTOMERS, REFERENCE_WEEKS))


POLICIES = {
    "split": lambda replay, _: replay.monthly(split),
    "refitted": lambda replay, _: replay.monthly(refitted),
    "recalibrated": lambda replay, _: replay.monthly(recalibrated),
    "mended": lambda replay, _: replay.monthly(mended),
    "on alarm": lambda replay, reference: replay.on_alarm(mended, reference),
    "once": lambda replay, _: replay.keep_up(recalibrated, 0),
    "weekly": lambda replay, _: adapt(replay, step=0),
    "adaptive": lambda replay, _: adapt(replay),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_nothing_is_served_that_knows_a_day_to_come(begin, counts, start, policy, reference):
    other = counts.copy()
    other[:, start + CHANGED :] = other[:, start + CHANGED :][:, ::-1] * 3
    one, two = (policy(begin(each), reference) for each in (counts, other))
    np.testing.assert_array_equal(one.served[:, :, : CHANGED + 1], two.served[:, :, : CHANGED + 1])
    assert (one.served[:, :, CHANGED + 60 :] != two.served[:, :, CHANGED + 60 :]).any()


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_every_policy_does_something_and_counts_it(begin, counts, policy, reference):
    never, kept_up = begin(counts), policy(begin(counts), reference)
    assert (never.served != kept_up.served).any()
    assert kept_up.fits > never.fits == CUSTOMERS
    if policy not in (POLICIES["weekly"], POLICIES["adaptive"]):  # which promote no model
        assert 0 < kept_up.promoted <= (kept_up.fits - never.fits)


def test_recalibrating_and_adapting_change_no_forecast(begin, counts):
    never = begin(counts)
    once = begin(counts).keep_up(recalibrated, 0)
    for replay in once, begin(counts).monthly(recalibrated), adapt(begin(counts)):
        np.testing.assert_array_equal(replay.served[0], never.served[0])
        assert (replay.served[1:] != never.served[1:]).any()


@pytest.mark.parametrize("step", [0, STEP_SIZE])
def test_adapting_begins_with_the_interval_of_the_year_before(begin, counts, step):
    """By another way: the one that the command takes."""
    once, adaptive = begin(counts).keep_up(recalibrated, 0), adapt(begin(counts), step)
    off = np.abs(adaptive.served - once.served).max(axis=(0, 1, 3))  # by day
    assert off[0] < 0.015  # of counts: what is served is rounded to hundredths
    assert off[100] > 1


def test_what_is_outside_is_what_judge_finds_outside(begin, counts, january, footfall, start):
    """By another way: the one that the command takes."""
    weeks = 10
    end = start + weeks * 7 + HORIZON - 1
    until = str(footfall[1][end - 1])
    by_replay = begin(counts).outside(weeks)
    for row, model in enumerate(january):
        found = judge([model], counts[row, :end], until, weeks=weeks)
        np.testing.assert_allclose(by_replay[row], found.outside[REFERENCE_WEEKS:])


def test_scores_are_of_the_forecasts_that_were_served(begin, counts, january, start):
    """By hand, for a customer: every window of the year, with the model of January."""
    scores, row = begin(counts).scores(), 3
    series, errors, naive, held, widths, points = counts[row], [], [], [], [], []
    for day in range(start, len(series) - HORIZON + 1):
        lags, future = series[day - LAGS : day], series[day : day + HORIZON]
        forecast = january[row].predict(lags)
        errors.append(np.abs(future - forecast.forecast))
        naive.append(np.abs(future - lags[-7:]))
        held.append((forecast.lower <= future) & (future <= forecast.upper))
        widths.append(forecast.upper - forecast.lower)
        points.append(interval_scores(Forecast(*forecast), future))
    level = series[:start].mean()
    assert scores.error[row] == pytest.approx(np.sum(errors) / np.sum(naive))
    assert scores.coverage[row] == pytest.approx(np.mean(held))
    assert scores.width[row] == pytest.approx(np.mean(widths) / level)
    assert scores.score[row] == pytest.approx(np.mean(points) / level)


def test_adapting_keeps_the_promise_though_a_customer_changes(begin, counts, start):
    """Counts become three times as noisy in summer: what was measured before is too narrow.

    A year of errors is slow to show it; to follow misses is faster.
    """
    rng, wild = np.random.default_rng(0), counts.copy()
    late = wild[:, start + 150 :]
    late *= rng.lognormal(0, 0.6, late.shape)
    held = {
        name: replay.held()[:, 250:].mean()
        for name, replay in (
            ("never", begin(wild)),
            ("weekly", adapt(begin(wild), step=0)),
            ("adaptive", adapt(begin(wild))),
        )
    }
    assert held["never"] < COVERAGE - 0.15
    assert held["never"] + 0.05 < held["weekly"] < held["adaptive"] - 0.01, held
    assert abs(held["adaptive"] - COVERAGE) < 0.07, held
