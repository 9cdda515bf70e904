"""Make a served model anew, and find out if the new one is better on days that neither saw."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from forecast_service.model import (
    COVERAGE,
    HORIZON,
    LAGS,
    Forecast,
    ForecastModel,
    check_series,
    regress,
    windows,
)

YEAR_DAYS = 52 * 7  # of forecasts that an interval is measured on: all seasons, each holiday once
BLOCKS = 4  # that they are cut into; each is forecast by a fit to all other days
TRIAL_DAYS = 4 * 7  # on which a challenger is compared with the model that is served


class Trial(NamedTuple):
    """Mean interval scores of what might be served, on days that none of them saw: less is better.

    Each is in the unit of the counts; see interval_scores().
    """

    champion: float  # as it is served
    recalibrated: float  # its weights, with the interval of the new ones
    refitted: float  # new weights, and their interval

    @property
    def best(self) -> str:
        """Return the name of the best; of equals, of the one that changes least."""
        return self._fields[self.index(min(self))]


def cross_fitted_errors(lags: np.ndarray, future: np.ndarray, last: int = YEAR_DAYS) -> np.ndarray:
    """Return absolute errors on the last windows of a series, each by a fit that had not seen it.

    The windows, of shapes (n, LAGS) and (n, HORIZON), begin a day apart. The `last` of them are cut
    into BLOCKS, and each is forecast by a regression on those windows that share no day with what
    is forecast in it: those before, and those after. The errors have the shape (at most `last`,
    HORIZON).
    """
    count = len(lags)
    edges = np.linspace(max(count - last, 0), count, BLOCKS + 1).astype(int)
    errors = []
    for start, end in pairwise(edges):
        before, after = max(start - HORIZON + 1, 0), end + LAGS + HORIZON - 1
        seen = [np.concatenate([part[:before], part[after:]]) for part in (lags, future)]
        model = ForecastModel("", "", *regress(*seen), half_width=np.zeros(HORIZON))
        errors.append(np.abs(future[start:end] - model.predict(lags[start:end]).forecast))
    return np.concatenate(errors)


def conformal_half_width(errors: np.ndarray, levels: np.ndarray, level: float) -> np.ndarray:
    """Return the half width of an interval, shape (HORIZON,), after LAGS days of a mean `level`.

    It is the quantile of absolute errors, shape (n, HORIZON), at the rank that split conformal
    prediction takes. They were made where that mean was
    `levels`, shape (n,). The spread of counts grows with the root of their level, and errors are
    compared by that: a customer who has grown since gets a wider interval.
    """
    spread = np.sqrt(np.maximum(levels, 1))[:, None]
    rank = min(math.ceil(COVERAGE * (len(errors) + 1)), len(errors))
    relative = np.sort(errors / spread, axis=0)[rank - 1]
    return (relative * math.sqrt(max(level, 1))).astype(np.float32)


def honest_half_width(counts: np.ndarray) -> np.ndarray:
    """Return the half width of an interval after a series, shape (days,), for a model of all of it.

    No day is left to measure the errors of its very weights on: those of cross_fitted_errors() are
    of weights that are made the same way, each from nearly all days, and never from those judged.
    A quantile of them around one model is the simpler relative of CV+ (Barber et al., 2021,
    "Predictive inference with the jackknife+"), without its guarantee. And those weights have seen
    days after the ones they are judged on, which weights that serve have not: how often such an
    interval holds is to be measured.
    """
    lags, future = windows(counts)
    errors = cross_fitted_errors(lags, future)
    levels = lags[-len(errors) :].mean(axis=1)
    return conformal_half_width(errors, levels, counts[-LAGS:].mean())


def refit(customer_id: str, counts: np.ndarray, trained_until: str) -> ForecastModel:
    """Fit a model to all days of a series, shape (days,), with honest_half_width().

    Raises:
        ValueError: if the series is too short, has a gap, or a value that is no count.
    """
    counts = check_series(customer_id, counts)
    weights = regress(*windows(counts))
    return ForecastModel(customer_id, trained_until, *weights, honest_half_width(counts))


def recalibrate(model: ForecastModel, counts: np.ndarray, until: str) -> ForecastModel:
    """Return a model with its weights, and honest_half_width() after a series that ends `until`.

    The interval is that of weights made anew, as refit() has it: what it measures is not the
    model's own errors.

    Raises ValueError: as refit().
    """
    counts = check_series(model.customer_id, counts)
    return replace(model, half_width=honest_half_width(counts), trained_until=until, version="")


def interval_scores(forecast: Forecast, future: np.ndarray) -> np.ndarray:
    """Return the interval score of each forecast, of the shape of `future`: less is better.

    It is the width of the interval, plus 2 / (1 - COVERAGE) = 10 times the distance by which a day
    falls outside (Gneiting & Raftery, 2007, "Strictly Proper Scoring Rules, Prediction, and
    Estimation"). On average neither an interval that is too wide gains by it, nor one that is too
    narrow.
    """
    below, above = forecast.lower - future, future - forecast.upper
    outside = np.maximum(np.maximum(below, above), 0)
    return forecast.upper - forecast.lower + 2 / (1 - COVERAGE) * outside


def mend(
    champion: ForecastModel, counts: np.ndarray, until: str
) -> tuple[ForecastModel | None, Trial]:
    """Return what is to be served in place of the champion, or None, and the trial that says so.

    `counts`, shape (days,), end on the day `until`, and the champion must not have seen their last
    TRIAL_DAYS. Challengers are made without those days, and compared with it on them. The best is
    made anew, the same way, from all days: so its own weights are not those that were compared, but
    those of four more weeks. A trial is as good as its days: if they are wrong, so is the winner.

    Raises ValueError: as refit().
    """
    customer_id = champion.customer_id
    counts = check_series(customer_id, counts)
    refitted = refit(customer_id, counts[:-TRIAL_DAYS], "")
    recalibrated = replace(champion, half_width=refitted.half_width)
    lags, future = windows(counts[-TRIAL_DAYS - LAGS :])
    contestants = champion, recalibrated, refitted
    trial = Trial(
        *(float(interval_scores(model.predict(lags), future).mean()) for model in contestants)
    )
    if trial.best == "champion":
        return None, trial
    if trial.best == "recalibrated":
        return recalibrate(champion, counts, until), trial
    return refit(customer_id, counts, until), trial
