"""Keep one customer's forecasts good: judge what was served, and let what is better serve."""

from typing import NamedTuple

import numpy as np

from forecast_service.errors import ServiceError
from forecast_service.judge import Judgement, judge
from forecast_service.mend import TRIAL_DAYS, YEAR_DAYS, Trial, mend
from forecast_service.model import check_series
from forecast_service.versions import Versions

DAY = np.timedelta64(1, "D")
MOST_LEVEL_CHANGE = 3  # times: counts that come are within it of a year's mean, or in doubt


class Outcome(NamedTuple):
    """What was found about a customer."""

    judgement: Judgement
    trial: Trial | None  # what is best of it serves now; None if a model has seen the days for it
    doubt: str = ""  # why the days for a trial were not used, which names the customer
    versions: tuple[str, ...] = ()  # of the model that serves now, and of the previous one


async def keep_up_customer(
    versions: Versions, customer_id: str, counts: np.ndarray, until: str
) -> Outcome | str:
    """Judge and mend a customer, by daily counts, shape (days,), that end on the day `until`.

    There is a trial if neither of the two models has seen the last TRIAL_DAYS. So the same counts
    lead to the same model, however often this runs, and whichever of two models serves after a
    roll-back stays for that many days. Nor is there one on counts that doubt_level() doubts.

    Returns what was found, or why nothing was: the model that served goes on then.
    """
    try:
        counts = check_series(customer_id, counts, TRIAL_DAYS)
        served = await versions.read(customer_id)
    except ValueError as error:
        return str(error)  # names the customer
    except ServiceError as error:
        return f"{customer_id}: {error}"
    seen = max(np.datetime64(model.trained_until) for model in served)
    unseen_days = (np.datetime64(until) - seen) // DAY
    if unseen_days < 0:
        return (
            f"{customer_id}: the actuals end on {until}, and a model of it has seen {seen}: give "
            "those until then"
        )
    judgement, there = judge(served, counts, until), tuple(model.version for model in served)
    if unseen_days < TRIAL_DAYS:
        return Outcome(judgement, None, versions=there)
    if doubt := doubt_level(counts):
        return Outcome(judgement, None, f"{customer_id}: {doubt}", there)
    winner, trial = mend(served[0], counts, until)
    if winner:
        try:
            winner = await versions.promote(winner)
        except ServiceError as error:
            return f"{customer_id}: a better model could not be stored: {error}"
        there = winner.version, there[0]
    return Outcome(judgement, trial, versions=there)


def doubt_level(counts: np.ndarray) -> str:
    """Say why a trial on the last TRIAL_DAYS of a series, shape (days,), shows nothing, or "".

    Where a counter begins to miss most of what passes, whatever learns from its errors wins: the
    trial is as wrong as they are. Values below zero are no counts, and have no such level.
    """
    before, last = counts[-TRIAL_DAYS - YEAR_DAYS : -TRIAL_DAYS].mean(), counts[-TRIAL_DAYS:].mean()
    if counts.min() < 0 or before / MOST_LEVEL_CHANGE <= last <= before * MOST_LEVEL_CHANGE:
        return ""
    level = f"at {last / before:.0%} of the year before" if before else "the first that are not 0"
    return (
        f"its last {TRIAL_DAYS} days are {level}: if that is real, train it anew; if not, correct "
        "the actuals"
    )
