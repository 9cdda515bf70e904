"""Keep one customer's forecasts good: judge what was served, and let what is better serve."""

from typing import NamedTuple

import numpy as np

from forecast_service.errors import ServiceError
from forecast_service.judge import Judgement, judge
from forecast_service.mend import TRIAL_DAYS, Trial, mend
from forecast_service.model import check_series
from forecast_service.versions import Versions

DAY = np.timedelta64(1, "D")


class Outcome(NamedTuple):
    """What was found about a customer."""

    judgement: Judgement
    trial: Trial | None  # what is best of it serves now; None if a model has seen the days for it


async def keep_up_customer(
    versions: Versions, customer_id: str, counts: np.ndarray, until: str
) -> Outcome | str:
    """Judge and mend a customer, by daily counts, shape (days,), that end on the day `until`.

    There is a trial if neither of the two models has seen the last TRIAL_DAYS. So the same counts
    lead to the same model, however often this runs, and whichever of two models serves after a
    roll-back stays for that many days.

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
    judgement = judge(served, counts, until)
    if unseen_days < TRIAL_DAYS:
        return Outcome(judgement, None)
    winner, trial = mend(served[0], counts, until)
    if winner:
        try:
            await versions.promote(winner)
        except ServiceError as error:
            return f"{customer_id}: a better model could not be stored: {error}"
    return Outcome(judgement, trial)
