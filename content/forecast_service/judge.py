"""Compare what was served with what happened, and find those for whom it is unusually bad."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from forecast_service.mend import cross_fitted_errors
from forecast_service.model import HORIZON, SEASON, ForecastModel, seasonal_naive, windows

WINDOW_WEEKS = 4  # that are judged
REFERENCE_WEEKS = 52  # before those, that they are compared with
PERMUTATIONS = 1999  # of a customer's weeks
ALARM_P = 0.002  # share of them whose last weeks may look as bad as the real ones


class Judgement(NamedTuple):
    """How a customer's forecasts for the last weeks did; NaN where nothing was served."""

    error: float  # mean absolute error, over that of the seasonal naive forecast
    coverage: float  # share of the forecasts whose interval held
    outside: np.ndarray  # (REFERENCE_WEEKS + weeks,): share of those whose did not, by week


def by_day(values: np.ndarray) -> np.ndarray:
    """Arrange what windows that begin a day apart have, by the day that was forecast.

    `values` has the shape (n, HORIZON). A day has HORIZON of them, the first from the window that
    begins with it. Returns the days that have all, shape (n - HORIZON + 1, HORIZON).
    """
    days = len(values) - HORIZON + 1
    return np.stack([values[HORIZON - 1 - step :, step][:days] for step in range(HORIZON)], axis=1)


def by_week(values: np.ndarray, weeks: int) -> np.ndarray:
    """Return the means of the last weeks, shape (weeks,), of values by day, shape (days, HORIZON).

    NaN are left out; where nothing is left, the mean is NaN.
    """
    whole = min(len(values) // SEASON, weeks)
    values = values[len(values) - whole * SEASON :].reshape(whole, -1)
    known = np.isfinite(values)
    means = np.full(weeks, np.nan)
    sums, counts = values.sum(axis=1, where=known), known.sum(axis=1)
    np.divide(sums, counts, out=means[weeks - whole :], where=counts > 0)
    return means


def judge(
    served: Sequence[ForecastModel], counts: np.ndarray, until: str, weeks: int = WINDOW_WEEKS
) -> Judgement:
    """Judge the forecasts for the last weeks of a series, shape (days,), that ends `until`.

    Each day was forecast on each of the HORIZON days before. `served` are the models that the store
    has of the customer, the one that serves first: each forecast is made anew by the first that was
    there by then, from the counts as they are known now. The weeks before are the reference: not
    what was served, but what weights made in the same way would have forecast without having seen
    it, within the interval of the model that is judged most. That interval was measured on some of
    those weeks, and holds more often there than elsewhere.
    """
    made = weeks * SEASON + HORIZON - 1  # windows, of which the last end after the series
    lags, future = (part[-made:] for part in windows(np.append(counts, [np.nan] * (HORIZON - 1))))
    first_day = np.datetime64(until) + 1 - np.arange(made, 0, -1)
    forecast, width = np.full((2, *future.shape), np.nan)
    maker = np.zeros(made, int)  # of each window's forecast: its place in `served`
    for place, model in reversed(list(enumerate(served))):
        there = first_day > np.datetime64(model.trained_until)
        forecast[there] = model.predict(lags[there]).forecast
        width[there], maker[there] = model.half_width, place
    error, naive_error, width = (
        by_day(values)
        for values in (np.abs(future - forecast), np.abs(future - seasonal_naive(lags)), width)
    )
    known = np.isfinite(error)
    outside = np.where(known, error > width, np.nan)
    reference = cross_fitted_errors(
        *windows(counts[: -weeks * SEASON]), last=REFERENCE_WEEKS * SEASON + HORIZON - 1
    )
    judged = served[np.bincount(maker).argmax()]
    before = by_week(by_day(reference) > judged.half_width, REFERENCE_WEEKS)
    naive_sum = naive_error.sum(where=known)
    return Judgement(
        float(error.sum(where=known) / naive_sum) if naive_sum else np.nan,
        float(1 - outside.mean(where=known)) if known.any() else np.nan,
        np.concatenate([before, by_week(outside, weeks)]),
    )


def alarm_p(outside: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return how unusual each customer's last WINDOW_WEEKS are for it, shape (customers,).

    `outside`, shape (customers, weeks), is the share of forecasts outside their intervals. The
    fleet's mean of each week is taken off: a holiday is everybody's. What is left of a customer's
    weeks is permuted. Returned is the share of PERMUTATIONS, the real order counted as one, whose
    last weeks are no better than the real ones; NaN for a customer of whom a week is not known.

    It would be how likely such weeks are by chance, were weeks independent. They are not: a bad one
    is followed by a bad one, and low values come several times as often as they say. So they tell
    where to look first, not that something broke.
    """
    p = np.full(len(outside), np.nan)
    known = ~np.isnan(outside).any(axis=1)
    if not known.any():
        return p
    alone = outside[known] - outside[known].mean(axis=0)
    weeks = alone.shape[1]
    order = np.random.default_rng(seed).random((weeks, PERMUTATIONS)).argsort(axis=0)
    permuted = alone @ (order < WINDOW_WEEKS)  # sums over as many weeks, drawn without replacement
    real = alone[:, -WINDOW_WEEKS:].sum(axis=1, keepdims=True)
    as_bad = (permuted >= real - 1e-9).sum(axis=1)  # but for rounding
    p[known] = (1 + as_bad) / (1 + PERMUTATIONS)
    return p


def walk(outside: np.ndarray) -> np.ndarray:
    """Return alarm_p() at the end of each week that has REFERENCE_WEEKS + WINDOW_WEEKS behind it.

    `outside` has the shape (customers, weeks), what is returned (customers, weeks - 55).
    """
    width = REFERENCE_WEEKS + WINDOW_WEEKS
    ends = range(width, outside.shape[1] + 1)
    return np.stack([alarm_p(outside[:, end - width : end]) for end in ends], axis=1)
