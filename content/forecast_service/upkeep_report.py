"""What an upkeep found: a summary for people, and a table with each customer."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from forecast_service.customer_upkeep import Outcome
from forecast_service.judge import ALARM_P, REFERENCE_WEEKS, WINDOW_WEEKS, alarm_p

MOST_NAMED = 10  # customers in a list
COLUMNS = (
    "customer",
    "name",  # in the tables of actuals
    "outcome",  # refitted, recalibrated, kept, untried, not kept up
    "error",  # of the last weeks, over that of the seasonal naive forecast
    "coverage",  # share of their forecasts whose interval held
    "chance",  # that they are as bad by chance; the alarm rings up to ALARM_P
    "serving",  # the version of the model
    "previous",
    "reason",  # why it was not kept up
)


def why_not(found: Outcome | str) -> str:
    """Return why a customer was not kept up, which begins with its id, or ""."""
    return found if isinstance(found, str) else found.doubt


def what_was_done(found: Outcome | str) -> str:
    """Return what an upkeep did about a customer, in a word or three."""
    if why_not(found):
        return "not kept up"
    if not found.trial:
        return "untried"
    return "kept" if found.trial.best == "champion" else found.trial.best


def alarm_chances(outcomes: Mapping[str, Outcome | str]) -> dict[str, float]:
    """Return alarm_p() of those who were judged, by customer id; NaN is for who can ring none."""
    found = {name: one.judgement for name, one in outcomes.items() if isinstance(one, Outcome)}
    if not found:
        return {}
    p = alarm_p(np.array([one.outside for one in found.values()]))
    return dict(zip(found, p.tolist(), strict=True))


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
    reasons = sorted(
        f"{called[name]}: {reason.removeprefix(f'{name}: ')}"
        for name, one in outcomes.items()
        if (reason := why_not(one))
    )
    done = Counter(map(what_was_done, outcomes.values()))
    lines = [f"{until}: {len(outcomes) - len(reasons)} of {len(outcomes)} customers kept up"]
    if len(reasons) < len(outcomes):
        lines.append(
            f"recalibrated {done['recalibrated']}, refitted {done['refitted']}, "
            f"kept {done['kept']}, too new for a trial {done['untried']}"
        )
    lines += _health(outcomes, called)
    if guesses:
        lines += _listed(f"days that the tables lack: {len(guesses)}", guesses)
    if reasons:
        lines += _listed(f"not kept up: {len(reasons)}", reasons)
    return "\n".join(lines)


def _health(outcomes: Mapping[str, Outcome | str], called: Mapping[str, str]) -> list[str]:
    """Say how a fleet did on average, and name those for whom the alarm rings, the worst first."""
    chances, lines = alarm_chances(outcomes), []
    judged = {
        name: outcomes[name].judgement for name in chances if outcomes[name].judgement.coverage >= 0
    }
    if judged:
        ratios = [one.error for one in judged.values() if one.error >= 0]  # a constant one has none
        error = f"error {np.mean(ratios):.3f} of the seasonal naive forecast's, " if ratios else ""
        coverage = np.mean([one.coverage for one in judged.values()])
        rings = [name for name, chance in chances.items() if chance <= ALARM_P]
        told = [
            f"{called[name]}: {judged[name].coverage:.0%} held, error {judged[name].error:.2f}"
            for name in sorted(rings, key=lambda name: judged[name].coverage)
        ]
        are = "customer is" if len(told) == 1 else "customers are"
        lines += [
            f"last {WINDOW_WEEKS} weeks: {error}intervals held {coverage:.1%} of the time",
            *_listed(f"alarm: {len(told)} {are} unlike the rest of the fleet", told),
        ]
    if silent := sum(np.isnan(chance) for chance in chances.values()):
        weeks = REFERENCE_WEEKS + WINDOW_WEEKS
        lines.append(f"no alarm for {silent}: less than {weeks} weeks of errors")
    return lines


def _listed(title: str, items: Sequence[str]) -> list[str]:
    more = [f"  and {len(items) - MOST_NAMED} more"] if len(items) > MOST_NAMED else []
    return [title, *(f"  {item}" for item in items[:MOST_NAMED]), *more]


def write_report(
    path: Path, outcomes: Mapping[str, Outcome | str], names: Mapping[str, str]
) -> None:
    """Write a CSV file with a row for each customer: see COLUMNS. What is not known is empty.

    `outcomes` and `names` are those that summarize() takes. Raises OSError if it cannot be written.
    """
    chances = alarm_chances(outcomes)
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS)
        rows.writeheader()
        for name, found in sorted(outcomes.items()):
            row = {
                "customer": name,
                "name": names.get(name),
                "outcome": what_was_done(found),
                "reason": why_not(found).removeprefix(f"{name}: "),
            }
            if isinstance(found, Outcome):
                measured = {
                    "error": found.judgement.error,
                    "coverage": found.judgement.coverage,
                    "chance": chances[name],
                }
                row |= {key: f"{one:.4f}" for key, one in measured.items() if not np.isnan(one)}
                row |= zip(("serving", "previous"), found.versions, strict=False)
            rows.writerow(row)
