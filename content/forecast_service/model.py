"""One customer's forecasting model: fit it, predict with an interval, score it on unseen days."""

import math
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import mul
from typing import NamedTuple, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SEASON = 7  # days: the series repeat weekly
LAGS = 4 * SEASON  # days of history that a forecast uses
HORIZON = 7  # days ahead
COVERAGE = 0.8  # share of days that the interval is built to contain
CALIBRATION_DAYS = 26 * 7  # kept out of the regression, to measure how wrong it is
HOLDOUT_DAYS = 26 * 7  # after the training cut, seen by the score alone
FLOOR = 0.0  # the models are of counts: no forecast is lower; -math.inf if yours may be negative
MAX_COUNT = 1e12  # beyond it a value is a mistake, and sums of squares near what a float can hold
NOISE = 1e-9  # of a series' largest value: what changes less from week to week does not change
RIDGE_PENALTY = 0.1  # times the variance of the lags; best of 0.001 to 3 on the calibration days


class Forecast(NamedTuple):
    """Counts for the next HORIZON days, to two decimals, each part of shape (..., HORIZON).

    On every day, FLOOR <= lower <= forecast <= upper.
    """

    forecast: np.ndarray | list[float]
    lower: np.ndarray | list[float]
    upper: np.ndarray | list[float]

    @classmethod
    def around(cls, forecast: np.ndarray, half_width: np.ndarray) -> "Forecast":
        """Raise a model's forecast to FLOOR, and put the interval around what is then answered.

        Calibration measures the errors of the forecast that is answered: `half_width`, 0 or more,
        holds around that one. Below FLOOR the interval is cut.
        """
        forecast = np.maximum(forecast, FLOOR)
        bounds = forecast, np.maximum(forecast - half_width, FLOOR), forecast + half_width
        return cls(*(bound.round(2) for bound in bounds))


class Scores(NamedTuple):
    """How a model does on its hold-out; `naive_mase` is the MASE of the seasonal naive forecast.

    A score that does not exist is NaN: see score().
    """

    mase: float
    naive_mase: float
    wape: float
    coverage: float

    def existing(self) -> dict[str, float]:
        """Return the scores that exist, by name."""
        return {name: value for name, value in self._asdict().items() if math.isfinite(value)}


class Forecaster(Protocol):
    """What score() can score."""

    def predict(self, lags: np.ndarray) -> Forecast: ...


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
        """Forecast from `lags`, shape (..., LAGS), oldest day first. Nothing is below FLOOR."""
        level = lags.mean(axis=-1, keepdims=True)
        forecast = level + (lags - level) @ self.weights + self.bias
        return Forecast.around(forecast, self.half_width)

    def fold(self) -> "FoldedModel":
        """Return what a service keeps of the model: all that forecasts one window at a time."""
        weights = self.weights.astype(float)
        weights += (1 - weights.sum(axis=0)) / LAGS  # adding the level, and taking it off
        parts = (array("d", part.ravel()) for part in (weights.T, self.bias, self.half_width))
        return FoldedModel(self.customer_id, self.version, *parts)


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class FoldedModel:
    """A ForecastModel as one affine map, in plain numbers: for one window, NumPy costs more."""

    customer_id: str
    version: str
    weights: array  # HORIZON times LAGS, for one day ahead after the other
    bias: array  # HORIZON
    half_width: array  # HORIZON

    @property
    def size_bytes(self) -> int:
        """Bytes of memory that the model takes."""
        parts = (getattr(self, name) for name in self.__dataclass_fields__)
        return sys.getsizeof(self) + sum(map(sys.getsizeof, parts))

    def predict(self, lags: Sequence[float]) -> Forecast:
        """Forecast from LAGS values, oldest first, as ForecastModel.predict() but for rounding."""
        weights = iter(self.weights)  # map() takes LAGS of them, and leaves the others
        forecast = [max(sum(map(mul, lags, weights)) + bias, FLOOR) for bias in self.bias]
        pairs = list(zip(forecast, self.half_width, strict=True))
        bounds = forecast, [max(f - w, FLOOR) for f, w in pairs], [f + w for f, w in pairs]
        return Forecast(*([round(day * 100) / 100 for day in bound] for bound in bounds))


def windows(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every (lags, future) pair in a series, of shapes (n, LAGS) and (n, HORIZON)."""
    both = sliding_window_view(counts, LAGS + HORIZON).astype(float)
    return both[:, :LAGS], both[:, LAGS:]


def seasonal_naive(lags: np.ndarray) -> np.ndarray:
    """Return the last week of windows, (…, LAGS), again for each day ahead: (…, HORIZON)."""
    return lags[..., np.arange(HORIZON) % SEASON - SEASON]


def check_series(name: str, counts: np.ndarray, holdout_days: int = 0) -> np.ndarray:
    """Return daily counts, shape (days,), as floats, if a model can be fitted to them.

    `name` is whose they are. The last `holdout_days` are for the score alone.

    Raises:
        ValueError: naming whose they are, what is wrong, and what is wanted.
    """
    try:
        series = np.asarray(counts, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: a series is numbers, one a day: {error}") from None
    if series.ndim != 1:
        raise ValueError(f"{name}: a series has the shape (days,), not {series.shape}")
    regression_days = LAGS + HORIZON
    fewest = regression_days + CALIBRATION_DAYS + holdout_days
    if len(series) < fewest:
        parts = f"{regression_days} for the regression, {CALIBRATION_DAYS} to calibrate it"
        parts += f", {holdout_days} held out to score it" if holdout_days else ""
        raise ValueError(
            f"{name}: {len(series)} days are too few, at least {fewest} are wanted: {parts}"
        )
    gaps = ~np.isfinite(series)
    outside = (series < FLOOR) | (np.abs(series) > MAX_COUNT)
    for faulty, fault, advice in (
        (gaps, "lack a finite value", "fill the gaps"),
        (
            outside,
            f"are outside {max(FLOOR, -MAX_COUNT):g} to {MAX_COUNT:g}",
            "correct them, or lower FLOOR in forecast_service/model.py for series of no counts",
        ),
    ):
        if faulty.any():
            first = faulty.argmax()
            raise ValueError(
                f"{name}: {faulty.sum()} of {len(series)} days {fault}, the first is day "
                f"{first + 1} ({series[first]:g}): {advice}"
            )
    return series


def regress(lags: np.ndarray, future: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit ridge regression to windows. Returns a model's weights and bias."""
    level = lags.mean(axis=1, keepdims=True)
    x, y = lags - level, future - level
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    penalty = RIDGE_PENALTY * len(x) * (x.var() + np.finfo(float).eps) * np.eye(LAGS)
    weights = np.linalg.solve(
        (x - x_mean).T @ (x - x_mean) + penalty, (x - x_mean).T @ (y - y_mean)
    )
    bias = y_mean - x_mean @ weights
    return weights.astype(np.float32), bias.astype(np.float32)


def fit(customer_id: str, counts: np.ndarray, trained_until: str) -> ForecastModel:
    """Fit ridge regression and its interval to daily counts, shape (days,), up to `trained_until`.

    The last CALIBRATION_DAYS stay out of the regression. Their absolute errors give the interval,
    a step ahead at a time: split conformal prediction (Lei et al., 2018, "Distribution-Free
    Predictive Inference for Regression").

    Raises:
        ValueError: if the series is too short, has a gap, or a value that is no count.
    """
    counts = check_series(customer_id, counts)
    weights, bias = regress(*windows(counts[:-CALIBRATION_DAYS]))
    model = ForecastModel(
        customer_id, trained_until, weights, bias, half_width=np.zeros(HORIZON, np.float32)
    )
    lags, future = windows(counts[-CALIBRATION_DAYS - LAGS :])
    errors = np.sort(np.abs(future - model.predict(lags).forecast), axis=0)
    rank = math.ceil(COVERAGE * (len(errors) + 1))  # the +1 is the price of a finite sample
    return replace(model, half_width=errors[rank - 1].astype(np.float32))


def score(model: Forecaster, counts: np.ndarray) -> Scores:
    """Score a model on the last HOLDOUT_DAYS of a series, shape (days,), forecasting from each day.

    MASE divides the mean absolute error by the seasonal naive forecast's on the days of the
    regression (Hyndman & Koehler, 2006, "Another look at measures of forecast accuracy"); WAPE
    divides it by the mean count. A series that repeats weekly has no MASE, a hold-out of zeros no
    WAPE.
    """
    lags, future = windows(counts[-HOLDOUT_DAYS - LAGS :])
    regressed = counts[: -HOLDOUT_DAYS - CALIBRATION_DAYS].astype(float)
    naive_error = np.abs(regressed[SEASON:] - regressed[:-SEASON]).mean()
    if naive_error <= NOISE * np.abs(regressed).max():
        naive_error = np.nan
    mean_count = np.abs(future).mean() or np.nan
    forecast, lower, upper = model.predict(lags)
    error = np.abs(future - forecast).mean()
    values = (
        error / naive_error,
        np.abs(future - seasonal_naive(lags)).mean() / naive_error,
        error / mean_count,
        ((lower <= future) & (future <= upper)).mean(),
    )
    return Scores(*(round(float(value), 4) if np.isfinite(value) else math.nan for value in values))


def mean_scores(fleet: Iterable[Scores]) -> Scores:
    """Average each score over the models that have it; NaN if none has."""
    columns = np.reshape(list(fleet), (-1, len(Scores._fields))).T
    existing = [column[np.isfinite(column)] for column in columns]
    return Scores(*(float(column.mean()) if column.size else math.nan for column in existing))


def extend_history(history: list[float]) -> list[float]:
    """Return the last LAGS days of a history of SEASON days or more.

    A short one is extended backwards by its own first week.
    """
    missing_weeks = max(0, math.ceil((LAGS - len(history)) / SEASON))
    return [*history[:SEASON] * missing_weeks, *history[-LAGS:]][-LAGS:]
