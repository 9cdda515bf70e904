"""What the production service is to reach beside others of the same run, and whether it does.

Ratios, for figures depend on the machine. A missed target is reported, and fails no run. What fails
one is a request that failed, or a ratio so far from the known ones that something must be broken.
"""

import operator
from collections.abc import Callable
from typing import NamedTuple

from lab.benchmark_tables import figure

SERVICE, STOCK, BARE, CEILING = "ours, fast ingress", "stock Ray", "FastAPI", "Ray, no forecast"
RIVALS = SERVICE, BARE, CEILING, STOCK
OURS = "ours", SERVICE, "ours, 80 lines", "ours, 80 lines, fast"
OURS_FAST = OURS[1], OURS[3]
RATE, P99 = "warm.16.requests_per_s", "warm.16.p99_ms"
P50_ALONE, BURST, CROWD = "warm.1.p50_ms", "cold.burst_per_one", "crowd.model_kb"
BURST_S = "cold.burst_s"
ERRORS = "warm.1.errors", "warm.16.errors", "cold.error_share", "zipf.errors"
MIN_BURST_GAIN = 4  # times as fast as the documented pattern, which loads one after the other
MIN_FAST_GAIN = 2  # times the documented pattern's requests/s
MAX_BURST, MAX_SHORT_BURST = 1.5, 3  # times one cold customer; a single burst is noisy


class Target(NamedTuple):
    what: str
    path: str  # where a row has the figure
    peer: str | None  # whose figure it is compared with
    limit: float
    at_least: bool = False  # or at most
    compare: Callable[[float, float], float] = operator.truediv


TARGETS = (
    Target("requests/s at 16, times stock Ray's", RATE, STOCK, 15, at_least=True),
    Target("requests/s at 16, times bare FastAPI's", RATE, BARE, 0.85, at_least=True),
    Target("requests/s at 16, times what Ray allows", RATE, CEILING, 0.68, at_least=True),
    Target("p50 alone, times bare FastAPI's", P50_ALONE, BARE, 1.4),
    Target("p99 at 16, times bare FastAPI's", P99, BARE, 1.5),
    Target("a cold burst of 32, times one load", BURST, None, 1.3),
    Target("kB of a model beyond an id's, of 10 000", CROWD, CEILING, 5, compare=operator.sub),
)


def judge(rows: dict[str, dict]) -> list[dict]:
    """Return what was measured for each target, and if it is met; None where a figure lacks."""
    verdicts = []
    for target in TARGETS:
        names = [name for name in (SERVICE, target.peer) if name]
        figures = [figure(rows.get(name, {}), target.path) for name in names]
        measured = met = None
        if None not in figures:
            measured = target.compare(*figures) if target.peer else figures[0]
            met = measured >= target.limit if target.at_least else measured <= target.limit
        bound = "at_least" if target.at_least else "at_most"
        verdicts.append(
            {"what": target.what, "measured": measured, bound: target.limit, "met": met}
        )
    return verdicts


def print_verdicts(verdicts: list[dict]) -> None:
    for verdict in verdicts:
        bound = "at least" if "at_least" in verdict else "at most"
        limit = verdict.get("at_least", verdict.get("at_most"))
        measured, met = verdict["measured"], verdict["met"]
        found = "n/a" if measured is None else f"{measured:.2f}"
        outcome = {True: "met", False: "MISSED", None: "not measured"}[met]
        print(f"{verdict['what']:42}{found:>8}   {bound} {limit:<5} {outcome}")


def find_faults(rows: dict[str, dict], max_burst: float) -> list[str]:
    """Return what is wrong beyond noise: failed requests, ratios far from the known ones.

    A cold burst may take `max_burst` times as long as one cold customer, on the fast ingress.
    """
    faults = [
        f"{name}: {where}: {errors}"
        for name, row in rows.items()
        for where in ERRORS
        if (errors := figure(row, where))
    ]
    for name in OURS_FAST:
        if (times := figure(rows.get(name, {}), BURST) or 0) > max_burst:
            faults.append(f"{name}: a cold burst takes {times:.1f} x one cold customer")
    stock = rows.get(STOCK, {})
    for name in OURS:
        ours, theirs = (figure(row, BURST_S) for row in (rows.get(name, {}), stock))
        if ours and theirs and ours * MIN_BURST_GAIN > theirs:
            faults.append(f"{name}: a cold burst is not {MIN_BURST_GAIN} x as fast as {STOCK}'s")
    for name in OURS_FAST:
        ours, theirs = (figure(row, RATE) for row in (rows.get(name, {}), stock))
        if ours and theirs and ours < MIN_FAST_GAIN * theirs:
            faults.append(f"{name}: answers only {ours / theirs:.1f} x what {STOCK} does")
    return faults
