"""Keep the forecasts of a fleet good: judge what was served, and mend what can be done better.

    MODEL_STORE=s3://my-bucket/forecast-models python -m forecast_service.upkeep actuals/
    python -m forecast_service.upkeep --roll-back customer_123 customer_456

A scheduler runs the first daily, when the actuals of a day have come: tables as long_table.py reads
them, with all days of each customer. A model that would have been better in the last four weeks
than the one that serves takes its place, and services reload it. The one before is kept, and the
second command lets it serve again. Whichever serves then stays for the four weeks that a next trial
takes.

It may run at any time, also again: the same actuals lead to the same models. A customer whose last
days are missing is not judged by days that were filled in: it is left as it is until they come.

Exits with 0; with 1 if a customer could not be kept up, or rolled back: each is named; with 2 if
nothing could be done; with 3 if another process keeps up the same store.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from forecast_service.customer_upkeep import Outcome
from forecast_service.errors import ServiceError
from forecast_service.fleet_upkeep import keep_up
from forecast_service.judge import ALARM_P, WINDOW_WEEKS, Judgement, alarm_p
from forecast_service.lease import LeaseHeldError
from forecast_service.settings import StoreSettings
from forecast_service.versions import Versions

MOST_NAMED = 10  # customers in a list
KEPT_UP, SOME_NOT, NOTHING_DONE, ANOTHER_AT_WORK = range(4)  # exit codes


def why_not(found: Outcome | str) -> str:
    """Return why a customer was not kept up, or ""."""
    return found if isinstance(found, str) else found.doubt


def summarize(
    outcomes: Mapping[str, Outcome | str],
    until: str,
    names: Mapping[str, str] | None = None,
    guesses: Sequence[str] = (),
) -> str:
    """Say how a fleet does, what was mended, for whom the alarm rings, and who was left out.

    `outcomes` are by customer id, and so are the `names` that tables have for customers. `guesses`
    are what was done about days that tables lack.
    """
    called = {customer_id: customer_id for customer_id in outcomes}
    for customer_id, name in (names or {}).items():
        if name != customer_id:
            called[customer_id] = f"{customer_id} ({name})"
    found = {called[name]: one for name, one in outcomes.items() if isinstance(one, Outcome)}
    reasons = sorted(
        f"{called[name]}: {reason.removeprefix(f'{name}: ')}"
        for name, one in outcomes.items()
        if (reason := why_not(one))
    )
    lines = [f"{until}: {len(outcomes) - len(reasons)} of {len(outcomes)} customers kept up"]
    if found:
        best = Counter(
            one.trial.best if one.trial else "untried" for one in found.values() if not one.doubt
        )
        lines.append(
            f"recalibrated {best['recalibrated']}, refitted {best['refitted']}, "
            f"kept {best['champion']}, too new for a trial {best['untried']}"
        )
        judged = {name: one.judgement for name, one in found.items() if one.judgement.coverage >= 0}
        lines += _health(judged) if judged else []
    if guesses:
        lines += _listed(f"days that the tables lack: {len(guesses)}", guesses)
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
    try:
        from forecast_service.long_table import add_arguments, read_table_of
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return NOTHING_DONE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, how_many="*")
    parser.add_argument("--roll-back", nargs="+", metavar="CUSTOMER", help="serve previous models")
    options = parser.parse_args(arguments)
    if bool(options.tables) == bool(options.roll_back):
        parser.error("give either tables or --roll-back")
    try:
        settings = StoreSettings()
        if options.roll_back:
            return roll_back(options.roll_back, settings)
        table = read_table_of(options, most_days_late=0)
        series = {name: table.series(name) for name in table.customer_ids}
        until = str(table.dates[-1])
        outcomes = keep_up(series, until, settings)
    except LeaseHeldError as error:
        print(f"nothing done: {error}", file=sys.stderr)
        return ANOTHER_AT_WORK
    except (OSError, ValueError, NotImplementedError, ServiceError) as error:
        print(f"nothing done: {error}", file=sys.stderr)
        return NOTHING_DONE
    names = dict(zip(table.customer_ids, table.names, strict=True))
    for name, problem in table.left_out.items():
        names[name] = problem.customer
        outcomes[name] = f"{name}: {problem.fault}: {problem.advice}"
    guesses = [
        str(problem)
        for problem in table.problems
        if problem.guessed and problem.customer in table.names
    ]
    print(summarize(outcomes, until, names, guesses))
    return SOME_NOT if any(map(why_not, outcomes.values())) else KEPT_UP


if __name__ == "__main__":
    sys.exit(main())
