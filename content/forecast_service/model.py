"""One customer's forecasting model: fit it, predict with an interval, score it on unseen days."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SEASON = 7  # days: the series repeat weekly
LAGS = 4 * SEASON  # days of history that a forecast uses
HORIZON = 7  # days ahead
COVERAGE = 0.8  # share of days that the interval is built to contain
CALIBRATION_DAYS = 26 * 7  # kept out of the regression, to measure how wrong it is
HOLDOUT_DAYS = 26 * 7  # after the training cut, seen by the score alone
RIDGE_PENALTY = 0.1  # times the variance of the lags; best of 0.001 to 3 on the calibration days


class Forecast(NamedTuple):
    """Counts for the next HORIZON days, each array of shape (..., HORIZON)."""

    forecast: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class Scores(NamedTuple):
    """How a model does on its hold-out; `naive_mase` is the MASE of the seasonal naive forecast."""

    mase: float
    naive_mase: float
    wape: float
    coverage: float


@dataclass(frozen=True, eq=False)
class ForecastModel:
    """A linear map from the last LAGS days to the next HORIZON, both relative to the lags' mean.

    Relative, as in NLinear (Zeng et al., 2023, "Are Transformers Effective for Time Series
    Forecasting?"), so that the same weights serve a customer whose level has moved.
    """

    customer_id: str
    trained_until: str  # ISO date of the last day that regression or calibration saw
    weights: np.ndarray  # (LAGS, HORIZON)
    bias: np.ndarray  # (HORIZON,)
    half_width: np.ndarray  # (HORIZON,), of the interval
    version: str = ""  # of the artifact that it was read from

    def predict(self, lags: np.ndarray) -> Forecast:
        """Forecast from `lags`, shape (..., LAGS), oldest day first. Counts are never below 0."""
        level = lags.mean(axis=-1, keepdims=True)
        forecast = level + (lags - level) @ self.weights + self.bias
        bounds = forecast, forecast - self.half_width, forecast + self.half_width
        return Forecast(*(np.maximum(bound, 0).round(2) for bound in bounds))


def windows(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every (lags, future) pair in a series, of shapes (n, LAGS) and (n, HORIZON)."""
    both = sliding_window_view(counts, LAGS + HORIZON).astype(float)
    return both[:, :LAGS], both[:, LAGS:]


def fit(customer_id: str, counts: np.ndarray, trained_until: str) -> ForecastModel:
    """Fit ridge regression and its interval to daily counts, shape (days,), up to `trained_until`.

    The last CALIBRATION_DAYS stay out of the regression. Their absolute errors give the interval,
    a step ahead at a time: split conformal prediction (Lei et al., 2018, "Distribution-Free
    Predictive Inference for Regression").

    Raises:
        ValueError: if the series is too short, or has a gap.
    """
    shortest = CALIBRATION_DAYS + LAGS + HORIZON
    if len(counts) < shortest or not np.isfinite(counts).all():
        raise ValueError(
            f"{customer_id}: a fit wants at least {shortest} days without a gap, not {len(counts)}"
        )
    lags, future = windows(counts[:-CALIBRATION_DAYS])
    level = lags.mean(axis=1, keepdims=True)
    x, y = lags - level, future - level
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    penalty = RIDGE_PENALTY * len(x) * (x.var() + np.finfo(float).eps) * np.eye(LAGS)
    weights = np.linalg.solve(
        (x - x_mean).T @ (x - x_mean) + penalty, (x - x_mean).T @ (y - y_mean)
    )
    model = ForecastModel(
        customer_id,
        trained_until,
        weights=weights.astype(np.float32),
        bias=(y_mean - x_mean @ weights).astype(np.float32),
        half_width=np.zeros(HORIZON, np.float32),
    )
    lags, future = windows(counts[-CALIBRATION_DAYS - LAGS :])
    errors = np.sort(np.abs(future - model.predict(lags).forecast), axis=0)
    rank = math.ceil(COVERAGE * (len(errors) + 1))  # the +1 is the price of a finite sample
    return replace(model, half_width=errors[rank - 1].astype(np.float32))


def score(model: ForecastModel, counts: np.ndarray) -> Scores:
    """Score a model on the last HOLDOUT_DAYS of a series, shape (days,), forecasting from each day.

    MASE divides the mean absolute error by the seasonal naive forecast's on the days of the
    regression (Hyndman & Koehler, 2006, "Another look at measures of forecast accuracy"); WAPE
    divides it by the mean count.
    """
    lags, future = windows(counts[-HOLDOUT_DAYS - LAGS :])
    regressed = counts[: -HOLDOUT_DAYS - CALIBRATION_DAYS].astype(float)
    naive_error = np.abs(regressed[SEASON:] - regressed[:-SEASON]).mean()
    forecast, lower, upper = model.predict(lags)
    error = np.abs(future - forecast).mean()
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # a series that never changes has no MASE: NaN
        values = (
            error / naive_error,
            np.abs(future - lags[:, -SEASON:]).mean() / naive_error,
            error / future.mean(),
            ((lower <= future) & (future <= upper)).mean(),
        )
    return Scores(*(round(float(value), 4) for value in values))


def extend_history(history: np.ndarray) -> np.ndarray:
    """Return the last LAGS days of a history of SEASON days or more.

    A short one is extended backwards by its own first week.
    """
    if len(history) >= LAGS:
        return history[-LAGS:]
    missing_weeks = math.ceil((LAGS - len(history)) / SEASON)
    return np.concatenate([np.tile(history[:SEASON], missing_weeks), history])[-LAGS:]
