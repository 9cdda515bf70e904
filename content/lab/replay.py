"""Replay a year: what a fleet would have served, had it been kept up in one way or another.

The calendar is data: a day has come when a column of the counts is looked at.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import ray

from forecast_service.judge import ALARM_P, WINDOW_WEEKS, alarm_p, by_day, by_week
from forecast_service.mend import (
    BLOCKS,
    TRIAL_DAYS,
    YEAR_DAYS,
    cross_fitted_errors,
    interval_scores,
    mend,
    recalibrate,
    refit,
)
from forecast_service.model import (
    COVERAGE,
    HORIZON,
    LAGS,
    SEASON,
    Forecast,
    ForecastModel,
    fit,
    seasonal_naive,
    windows,
)

BATCH_SIZE = 32  # customers a task
STEP_SIZE = 0.05  # of adaptive conformal inference: how far a week of misses moves the quantile


class Scores(NamedTuple):
    """How a year of forecasts did, customer by customer, each of shape (customers,)."""

    error: np.ndarray  # mean absolute error, over that of the seasonal naive forecast
    coverage: np.ndarray  # share of forecasts whose interval held
    width: np.ndarray  # of the interval, over the customer's mean count before the year
    score: np.ndarray  # interval score, over the same


class Made(NamedTuple):
    """A model to serve, or None to leave the one that is served; and the regressions it took."""

    model: ForecastModel | None
    fits: int


How = Callable[[ForecastModel, np.ndarray, str], Made]


def recalibrated(model: ForecastModel, counts: np.ndarray, until: str) -> Made:
    """Measure the interval anew, and leave the weights."""
    return Made(recalibrate(model, counts, until), BLOCKS)


def split(model: ForecastModel, counts: np.ndarray, until: str) -> Made:
    """Make both anew as train_models.py does: the last half year is for the interval alone."""
    return Made(fit(model.customer_id, counts, until), 1)


def refitted(model: ForecastModel, counts: np.ndarray, until: str) -> Made:
    """Make weights and interval anew."""
    return Made(refit(model.customer_id, counts, until), BLOCKS + 1)


def mended(model: ForecastModel, counts: np.ndarray, until: str) -> Made:
    """Try both, and take what is better on days that it has not seen, as upkeep does."""
    winner, _ = mend(model, counts, until)
    keeps_weights = winner is not None and np.array_equal(winner.weights, model.weights)
    return Made(winner, BLOCKS + 1 + (winner is not None) * (BLOCKS + 1 - keeps_weights))


class Replay:
    """A fleet that forecasts every day of a year, which begins with the `start`-th of `dates`.

    `counts` has the shape (customers, days). `models` serve until others take their place. Days of
    the year are counted from 0.
    """

    def __init__(
        self, models: list[ForecastModel], dates: np.ndarray, counts: np.ndarray, start: int
    ):
        self.models, self.dates, self.counts, self.start = list(models), dates, counts, start
        pairs = [windows(series[start - LAGS :]) for series in counts]
        self.lags, self.future = (np.array(parts) for parts in zip(*pairs, strict=True))
        self.served = np.empty((len(Forecast._fields), *self.future.shape))
        self.since = np.zeros(len(models), int)  # the day from which a customer's model serves
        self.fits, self.promoted = len(models), 0
        for row, model in enumerate(models):
            self._serve(row, model, 0)

    def keep_up(self, how: How, day: int, rows: Iterable[int] | None = None) -> "Replay":
        """Make models for all customers, or some, of all that is known as a day begins."""
        rows = range(len(self.models)) if rows is None else list(rows)
        end = self.start + day
        until = str(self.dates[end - 1])
        known = [(self.models[row], self.counts[row, :end], until) for row in rows]
        for row, made in zip(rows, in_batches(how, known), strict=True):
            self.fits += made.fits
            if made.model is not None:
                self.promoted += 1
                self._serve(row, made.model, day)
        return self

    def monthly(self, how: How) -> "Replay":
        """Keep all customers up on the first day of each further month of the year."""
        months = self.dates[self.start :].astype("datetime64[M]")
        for day in np.flatnonzero(months[1:] != months[:-1]) + 1:
            self.keep_up(how, day)
        return self

    def on_alarm(self, how: How, reference: np.ndarray) -> "Replay":
        """Keep up, each week, the customers for whom the alarm rings.

        `reference`, shape (customers, REFERENCE_WEEKS), is what was outside in the weeks before.
        """
        weeks = (self.lags.shape[1] - HORIZON + 1) // SEASON
        for week in range(WINDOW_WEEKS, weeks):
            outside = np.concatenate([reference, self.outside(week)], axis=1)
            rings = alarm_p(outside[:, week - WINDOW_WEEKS :]) <= ALARM_P
            day = week * SEASON + HORIZON - 1  # the weeks' forecasts are known as it begins
            rows = np.flatnonzero(rings & (day - self.since >= TRIAL_DAYS))
            self.keep_up(how, day, rows)
        return self

    def outside(self, weeks: int) -> np.ndarray:
        """Return the share of forecasts outside their intervals, shape (customers, weeks).

        The weeks begin with the first day that was forecast from all HORIZON days before.
        """
        days = weeks * SEASON + HORIZON - 1
        return np.stack([1 - by_week(by_day(each[:days]), weeks) for each in self.held()])

    def scores(self) -> Scores:
        """Return how the year was."""
        forecast = Forecast(*self.served)
        error, naive_error = (
            np.abs(self.future - guess).mean(axis=(1, 2))
            for guess in (forecast.forecast, seasonal_naive(self.lags))
        )
        level = self.counts[:, : self.start].mean(axis=1)
        return Scores(
            error / naive_error,
            self.held().mean(axis=(1, 2)),
            (forecast.upper - forecast.lower).mean(axis=(1, 2)) / level,
            interval_scores(forecast, self.future).mean(axis=(1, 2)) / level,
        )

    def held(self) -> np.ndarray:
        """Return which intervals held, shape (customers, days, HORIZON)."""
        _, lower, upper = self.served
        return (lower <= self.future) & (self.future <= upper)

    def held_by_quarter(self) -> np.ndarray:
        """Return the share of intervals that held in each quarter of the year, shape (4,)."""
        held = self.held()
        months = self.dates[self.start :][: held.shape[1]].astype("datetime64[M]").astype(int) % 12
        return np.array([held[:, months // 3 == quarter].mean() for quarter in range(4)])

    def _serve(self, row: int, model: ForecastModel, day: int) -> None:
        self.models[row], self.since[row] = model, day
        self.served[:, row, day:] = model.predict(self.lags[row, day:])


def adapt(replay: Replay, step: float = STEP_SIZE) -> Replay:
    """Measure each interval anew every week, let it follow its misses, and leave the weights.

    After Gibbs & Candès (2021, "Adaptive Conformal Inference Under Distribution Shift"), by weeks:
    the share of errors of the last year that an interval is to leave out goes down after a week
    with more misses than promised, and up after one with fewer, by `step` times the difference. It
    is one share for all HORIZON days ahead, and no interval is wider than the year's largest error.
    With a step of 0 it is the one promised, and the interval does not follow its misses.
    """
    rows = range(len(replay.models))
    known = [(replay.models[row], replay.counts[row], replay.start, step) for row in rows]
    for row, half_width in zip(rows, in_batches(_adaptive_half_width, known), strict=True):
        forecast = replay.served[0, row]
        replay.served[:, row] = Forecast.around(forecast, half_width)
    replay.fits += len(rows) * BLOCKS
    return replay


def _adaptive_half_width(
    model: ForecastModel, counts: np.ndarray, start: int, step: float
) -> np.ndarray:
    """Return the half width of each day of the year, shape (days, HORIZON)."""
    lags, future = windows(counts)
    first = start - LAGS - HORIZON + 1  # window whose future is not yet known as the year begins
    errors = np.concatenate(
        [
            cross_fitted_errors(lags[:first], future[:first]),
            np.abs(future[first:] - model.predict(lags[first:]).forecast),
        ]
    )
    spread = np.sqrt(np.maximum(lags[first - YEAR_DAYS :].mean(axis=1), 1))[:, None]
    relative = errors / spread
    year = YEAR_DAYS + HORIZON - 1  # where its first window is, of those of which errors are here
    promised = alpha = 1 - COVERAGE
    half_width = np.empty((len(errors) - year, HORIZON))
    for day in range(0, len(half_width), SEASON):
        if day:  # the futures of these have become known within the week
            new = slice(max(day - SEASON - HORIZON + 1, 0), day - HORIZON + 1)
            alpha += step * (promised - (errors[year:][new] > half_width[new]).mean())
        past = np.sort(relative[day : day + YEAR_DAYS], axis=0)  # all whose futures are known
        rank = min(max(math.ceil((1 - alpha) * (YEAR_DAYS + 1)), 1), YEAR_DAYS)
        half_width[day : day + SEASON] = past[rank - 1] * spread[year + day]
    return half_width


def in_batches(work: Callable, arguments: list[tuple]) -> list:
    """Return what a function returns for each tuple of arguments: a Ray task for each batch."""
    batches = [arguments[at : at + BATCH_SIZE] for at in range(0, len(arguments), BATCH_SIZE)]
    found = ray.get([_run.remote(work, batch) for batch in batches])
    return [one for batch in found for one in batch]


@ray.remote
def _run(work: Callable, batch: list[tuple]) -> list:
    return [work(*arguments) for arguments in batch]
