"""Keep the forecasts of a fleet good: judge what was served, and mend what can be done better.

    MODEL_STORE=s3://my-bucket/forecast-models python -m forecast_service.upkeep actuals/
    python -m forecast_service.upkeep --roll-back customer_123 customer_456

A scheduler runs the first daily, when the actuals of a day have come: CSV files, or a folder of
them, with the columns customer, date and value, and with all days of each customer. A model that
would have been better in the last four weeks than the one that serves takes its place, and services
reload it. The one before is kept, and the second command lets it serve again. Whichever serves then
stays for the four weeks that a next trial takes.

It may run at any time, also again: the same actuals lead to the same models.

Exits with 0; with 1 if a customer could not be kept up, or rolled back: each is named; with 2 if
nothing could be done; with 3 if another process keeps up the same store.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import ray

from forecast_service.actuals import read_actuals
from forecast_service.customer_upkeep import Outcome
from forecast_service.errors import ServiceError
from forecast_service.fleet_upkeep import keep_up
from forecast_service.judge import ALARM_P, WINDOW_WEEKS, Judgement, alarm_p
from forecast_service.lease import LeaseHeldError
from forecast_service.settings import StoreSettings
from forecast_service.versions import Versions

MOST_NAMED = 10  # customers in a list
KEPT_UP, SOME_NOT, NOTHING_DONE, ANOTHER_AT_WORK = range(4)  # exit codes


def summarize(outcomes: Mapping[str, Outcome | str], until: str) -> str:
    """Say how a fleet does, what was mended, for whom the alarm rings, and who was left out."""
    found = {name: one for name, one in outcomes.items() if isinstance(one, Outcome)}
    reasons = sorted(one for one in outcomes.values() if isinstance(one, str))
    lines = [f"{until}: {len(found)} of {len(outcomes)} customers kept up"]
    if found:
        best = Counter(one.trial.best if one.trial else "untried" for one in found.values())
        lines.append(
            f"recalibrated {best['recalibrated']}, refitted {best['refitted']}, "
            f"kept {best['champion']}, too new for a trial {best['untried']}"
        )
        judged = {name: one.judgement for name, one in found.items() if one.judgement.coverage >= 0}
        lines += _health(judged) if judged else []
    if reasons:
        lines += _listed(f"not kept up: {len(reasons)}", reasons)
    return "\n".join(lines)


def _health(judged: Mapping[str, Judgement]) -> list[str]:
    """Say how a fleet did on average, and name those for whom the alarm rings, the worst first."""
    ratios = [one.error for one in judged.values() if one.error >= 0]  # a constant series has none
    error = f"error {np.mean(ratios):.3f} of the seasonal naive forecast's, " if ratios else ""
    coverage = np.mean([one.coverage for one in judged.values()])
    p = alarm_p(np.array([one.outside for one in judged.values()]))
    rings = [name for name, chance in zip(judged, p, strict=True) if chance <= ALARM_P]
    told = [
        f"{name}: {judged[name].coverage:.0%} held, error {judged[name].error:.2f}"
        for name in sorted(rings, key=lambda name: judged[name].coverage)
    ]
    return [
        f"last {WINDOW_WEEKS} weeks: {error}intervals held {coverage:.1%} of the time",
        *_listed(f"alarm: {len(told)} went wrong alone", told),
    ]


def _listed(title: str, items: Sequence[str]) -> list[str]:
    more = [f"  and {len(items) - MOST_NAMED} more"] if len(items) > MOST_NAMED else []
    return [title, *(f"  {item}" for item in items[:MOST_NAMED]), *more]


def roll_back(customer_ids: Sequence[str], settings: StoreSettings) -> int:
    """Let the previous models of some customers serve. Returns the exit code."""
    versions, code = Versions(settings), KEPT_UP
    for customer_id in customer_ids:
        try:
            model = asyncio.run(versions.roll_back(customer_id))
        except ServiceError as error:
            print(f"{customer_id}: not rolled back: {error}", file=sys.stderr)
            code = SOME_NOT
        else:
            print(f"{customer_id}: {model.version} serves, of the days until {model.trained_until}")
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("actuals", nargs="*", help="CSV files, or folders of them")
    parser.add_argument("--roll-back", nargs="+", metavar="CUSTOMER", help="serve previous models")
    options = parser.parse_args(arguments)
    if bool(options.actuals) == bool(options.roll_back):
        parser.error("give either actuals or --roll-back")
    try:
        settings = StoreSettings()
        if options.roll_back:
            return roll_back(options.roll_back, settings)
        actuals = read_actuals(options.actuals)
        if not ray.is_initialized():
            ray.init(logging_level="error")
        outcomes = keep_up(actuals.series, actuals.until, settings)
    except LeaseHeldError as error:
        print(f"nothing done: {error}", file=sys.stderr)
        return ANOTHER_AT_WORK
    except (OSError, ValueError, NotImplementedError, ServiceError) as error:
        print(f"nothing done: {error}", file=sys.stderr)
        return NOTHING_DONE
    outcomes |= actuals.problems
    print(summarize(outcomes, actuals.until))
    return SOME_NOT if any(isinstance(found, str) for found in outcomes.values()) else KEPT_UP


if __name__ == "__main__":
    sys.exit(main())
