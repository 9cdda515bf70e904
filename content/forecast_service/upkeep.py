"""Keep the forecasts of a fleet good: judge what was served, and mend what can be done better.

    MODEL_STORE=s3://my-bucket/forecast-models python -m forecast_service.upkeep actuals/
    python -m forecast_service.upkeep actuals/ --report upkeep.csv
    python -m forecast_service.upkeep --roll-back customer_123 customer_456

A scheduler runs the first daily, when the actuals of a day have come: tables as long_table.py reads
them, with all days of each customer. A model that would have been better in the last four weeks
than the one that serves takes its place, and services reload it. The one before is kept, and the
last command swaps the two: given again, it goes forward again. Whichever serves then stays for
the four weeks that a next trial takes.

The report has a row for each customer: what was done, how its forecasts did, which model serves. It
must not lie in the folder of the tables.

It may run at any time, also again: the same actuals lead to the same models. A customer whose last
days are missing is not judged by days that were filled in: it is left as it is until they come.

Exits with 0; with 1 if a customer could not be kept up, or rolled back: each is named; with 2 if
nothing could be done, or a run stopped half-way; with 3 if another process is at work on the same
store, or may be by now. An alarm does not change this: the summary and the report say it.
"""

import argparse
import asyncio
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from forecast_service.errors import ServiceError
from forecast_service.fleet_upkeep import HalfwayError, keep_up
from forecast_service.lease import Lease, LeaseHeldError
from forecast_service.settings import StoreSettings
from forecast_service.upkeep_report import summarize, why_not, write_report
from forecast_service.versions import Versions

if TYPE_CHECKING:  # it takes polars
    from forecast_service.long_table import Problem

ENDED = re.compile(r"ended on (\S+), ")  # a fault that long_table.py finds
KEPT_UP, SOME_NOT, NOTHING_DONE, ANOTHER_AT_WORK = range(4)  # exit codes


def roll_back(customer_ids: Sequence[str], settings: StoreSettings) -> int:
    """Let the previous models of some customers serve. Returns the exit code.

    Raises LeaseHeldError if a process is at work, which could lose a model of theirs.
    """
    versions, code = Versions(settings), KEPT_UP
    with Lease(settings).held():
        for customer_id in customer_ids:
            try:
                model = asyncio.run(versions.roll_back(customer_id))
            except ServiceError as error:
                print(f"{customer_id}: not rolled back: {error}", file=sys.stderr)
                code = SOME_NOT
            else:
                until = model.trained_until
                print(f"{customer_id}: {model.version} serves, of the days until {until}")
    return code


def rows_ahead(left_out: Mapping[str, "Problem"], customers: int) -> str:
    """Say what stops a fleet: a table whose last days only few of its customers have; or "".

    `left_out` is that of a DailyTable, which has so many customers besides.
    """
    ends = Counter(
        found[1] for problem in left_out.values() if (found := ENDED.match(problem.fault))
    )
    if 2 * ends.total() <= len(left_out) + customers:
        return ""
    day = ends.most_common(1)[0][0]
    return f"most of the tables end on {day}; rows after it are of few customers: take them out"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for. Returns the exit code."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--roll-back", nargs="+", metavar="CUSTOMER", help="serve previous models")
    own.add_argument("--report", type=Path, metavar="FILE", help="a CSV with what each one got")
    try:
        options, others = own.parse_known_args(arguments)
        if options.roll_back and not others and not options.report:
            return roll_back(options.roll_back, StoreSettings())
        return _keep_up(own, arguments)
    except HalfwayError as error:
        print(f"stopped half-way: {error}", file=sys.stderr)
        return ANOTHER_AT_WORK if isinstance(error.__cause__, LeaseHeldError) else NOTHING_DONE
    except LeaseHeldError as error:
        print(f"nothing done: {error}", file=sys.stderr)
        return ANOTHER_AT_WORK
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return NOTHING_DONE
    except (OSError, ValueError, NotImplementedError, ServiceError) as error:
        print(f"nothing done: {error}", file=sys.stderr)
        return NOTHING_DONE


def _keep_up(own: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Keep up the customers of tables. Returns the exit code. Raises as keep_up()."""
    from forecast_service.long_table import add_arguments, read_table_of  # takes polars

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], parents=[own])
    add_arguments(parser, how_many="*")
    options = parser.parse_args(arguments)
    if options.roll_back or not options.tables:
        parser.error("give either tables or --roll-back")
    if options.report:
        options.report.open("a").close()  # or it says now, and not in the end, that it cannot be
    settings = StoreSettings()
    table = read_table_of(options, most_days_late=0)
    series = {name: table.series(name) for name in table.customer_ids}
    until = str(table.dates[-1])
    outcomes = keep_up(series, until, settings)
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
    if said := rows_ahead(table.left_out, len(table.names)):
        print(said)
    if options.report:
        write_report(options.report, outcomes, names)
    return SOME_NOT if any(map(why_not, outcomes.values())) else KEPT_UP


if __name__ == "__main__":
    sys.exit(main())
