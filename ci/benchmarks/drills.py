"""Break the service in every way that it has to survive, under steady load, and count what is lost.

    python ci/benchmarks/drills.py [--short] [DRILL ...]

A request is lost if it never gets the forecast that its customer's stored model gives, to the byte,
however often its client tries again, as steady_load.py says how. Without --short, each drill is
repeated, and content/data/drills.json is brought up to date. Exits 1 if a request is lost.
"""

import argparse
import asyncio
import itertools
import json
import os
import pickle
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

import numpy as np
import ray

from drill_rig import (
    CONTENT,
    DEADLINE_S,
    ONGOING,
    RELOAD_CHECK_S,
    REPLICAS,
    SERVICE,
    STORE_DELAY_S,
    TIGHT,
    Rig,
)
from forecast_service.model import LAGS
from lab.serving import wait_until, wait_until_running
from lab.traffic import send
from steady_load import Answer

RESULTS = CONTENT / "data" / "drills.json"
BREAKAGES: dict[str, Callable[[bytes, bytes], bytes]] = {  # of an artifact, given another one
    "a flipped bit": lambda data, other: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "truncated": lambda data, other: data[:-100],
    "empty": lambda data, other: b"",
    "another customer's": lambda data, other: other,
    "a pickle": lambda data, other: pickle.dumps([1.0]),
}


@dataclass
class Outcome:
    """What became of the good requests of a drill, and what else there was to count."""

    answers: list[Answer]
    seen: dict[str, int] = field(default_factory=dict)


def kill_replicas(rig: Rig, times: int) -> Outcome:
    with rig.load() as load:
        for _ in range(times):
            time.sleep(1)
            before = rig.replicas()
            os.kill(min(before), signal.SIGKILL)
            wait_until(
                lambda before=before: len(rig.replicas() - before) == 1,
                "a new replica",
                DEADLINE_S,
            )
            wait_until_running(replicas=REPLICAS)
        time.sleep(1)
    return Outcome(load.answers)


def take_store_down(rig: Rig, times: int) -> Outcome:
    with rig.load(tries=30) as load:
        for _ in range(times):
            time.sleep(1)
            rig.store.down = True
            time.sleep(20)
            rig.store.down = False
            time.sleep(3)
    assert load.failures()["503"], "no request wanted the store while it was down"
    return Outcome(load.answers)


def slow_store_down(rig: Rig, times: int) -> Outcome:
    with rig.load(tries=30) as load:
        for _ in range(times):
            for rig.store.delay_s in 1, 60:  # within the service's patience, and beyond it
                time.sleep(5)
            rig.store.delay_s = STORE_DELAY_S
            time.sleep(2)
    assert load.failures()["503"], "no request waited for the store for too long"
    return Outcome(load.answers)


def damage_artifacts(rig: Rig, times: int) -> Outcome:
    """Damage a customer's artifact that is in memory, and one's that is not."""
    pinned, donor, *others = rig.names
    cold = itertools.cycle(others[5:30])
    statuses = Counter()
    rig.require_right(others[30:])  # more than fit into memory, so the cold ones are out of it
    with rig.load([pinned, donor, *others[:4]]) as load:
        time.sleep(1)
        for breakage in list(BREAKAGES.values()) * times:
            name = next(cold)
            damaged = {
                victim: breakage(rig.artifacts[victim], rig.artifacts[donor])
                for victim in (pinned, name)
            }
            put_and_await_checks(rig, pinned, damaged)
            ((status, body),) = rig.ask([name])
            statuses[f"{status}"] += name.encode() in body
            put_and_await_checks(rig, pinned, rig.artifacts)
            rig.require_right([name])
    assert statuses == {"502": len(BREAKAGES) * times}, statuses
    return Outcome(load.answers, {"corrupt, so 502": statuses["502"]})


def put_and_await_checks(rig: Rig, pinned: str, artifacts: dict[str, bytes]) -> None:
    """Put artifacts into the store, and wait until each replica has read the pinned customer's."""
    rig.store.bodies.clear()
    rig.store.artifacts |= artifacts
    time.sleep(2 * RELOAD_CHECK_S)  # by then each has looked
    looked = "a look at a new artifact"
    wait_until(lambda: rig.store.bodies[pinned] >= REPLICAS, looked, DEADLINE_S)


def leave_in_mid_load(rig: Rig, times: int) -> Outcome:
    """Clients give up while their model is loaded; others come for the same models."""
    *groups, steady = [rig.names[at : at + ONGOING] for at in range(0, len(rig.names), ONGOING)]
    cold = itertools.cycle(groups)
    left = 0
    with rig.load(steady) as load:
        for _ in range(times):
            names = next(cold)
            rig.store.reads.clear()
            rig.store.delay_s = 1
            left += sum(isinstance(end, TimeoutError) for end in rig.ask(names, TIGHT, 0.5))
            rig.require_right(names, TIGHT)
            rig.store.delay_s = STORE_DELAY_S
            repeated = {name: rig.store.reads[name] for name in names if rig.store.reads[name] != 1}
            assert not repeated, f"a load was started over: {repeated}"
    assert left == ONGOING * times, "a client did not leave"
    ended = "an end of the requests whose clients have left"
    wait_until(lambda: rig.at_work() == 0, ended, DEADLINE_S)
    return Outcome(load.answers, {"clients that left": left})


def flood_with_errors(rig: Rig, times: int) -> Outcome:
    """Ask for ids and send bodies that are wrong, as fast as the service answers."""
    good = json.dumps({"sequence_data": [1] * LAGS}).encode()
    known = rig.names[0]
    wrong = [
        *((f"nobody_{number}", good, 404) for number in range(200)),
        *((id, good, 400) for id in ("", "../etc/passwd", "a" * 65)),
        *((known, body, 422) for body in (b"", b"{", b"[]", b'{"sequence_data": [1, 2, NaN]}')),
        (known, b" " * 2_000_000, 413),
    ]
    expected = {str(status) for *_, status in wrong}

    def request(number: str, _: list) -> dict:
        id, body, _ = wrong[int(number)]
        return {"headers": {"serve_multiplexed_model_id": id}, "data": body}

    numbers = list(map(str, range(len(wrong))))
    statuses = Counter()
    with rig.load(rig.names[:8]) as load:
        time.sleep(2)  # until all are in memory
        at_s = time.monotonic()
        for _ in range(times):
            flood = send(
                SERVICE,
                numbers,
                np.zeros((len(wrong), 1)),
                range(len(wrong)),
                concurrency=8,
                progress=False,
                request=request,
            )
            answers = asyncio.run(flood)
            assert answers.status.tolist() == [str(status) for *_, status in wrong]
            statuses.update(answers.status.tolist())
    late = [answer for answer in load.answers if answer.sent_s >= at_s]
    assert {answer.cache for answer in late} == {"hit"}, "a bad request evicted a model"
    assert statuses.keys() == expected and not load.failures()
    return Outcome(load.answers, dict(statuses))


def ask_for_all_at_once(rig: Rig, times: int) -> Outcome:
    with rig.load() as load:
        for _ in range(times):
            rig.require_right(rig.names)
            time.sleep(1)
    return Outcome(load.answers, {"asked for at once": times * len(rig.names)})


def redeploy(rig: Rig, times: int) -> Outcome:
    with rig.load() as load:
        for _ in range(times):
            before = rig.replicas()
            rig.deploy()
            assert len(rig.replicas() - before) == REPLICAS, "nothing was replaced"
        time.sleep(1)
    return Outcome(load.answers)


def overload(rig: Rig, times: int) -> Outcome:
    """Ask for three times as much as the service can do, and once it is over, for little."""
    answers = []
    for _ in range(times):
        rig.store.delay_s = 0.3  # and so it answers ONGOING requests in that time
        with rig.load(url=TIGHT, tries=100) as load:
            time.sleep(4)
        rig.store.delay_s = STORE_DELAY_S
        for name in rig.names[:10]:
            rig.require_right([name], TIGHT)
        answers += load.answers
    refusals_s = [failure.took_s for answer in answers for failure in answer.failures]
    assert refusals_s, "nothing was refused: there was no overload"
    answers_s = [answer.answered_s - answer.sent_s for answer in answers]
    assert np.median(refusals_s) < np.median(answers_s) / 3, "a refusal takes as long as an answer"
    return Outcome(answers)


class Drill(NamedTuple):
    about: str
    run: Callable[[Rig, int], Outcome]
    short: int  # times, for CI
    long: int


DRILLS = {
    "kill": Drill("a replica is killed", kill_replicas, 1, 5),
    "store": Drill("the store fails for 20 s", take_store_down, 1, 3),
    "slow": Drill("the store is slow, then too slow", slow_store_down, 1, 5),
    "damage": Drill("artifacts are damaged", damage_artifacts, 1, 5),
    "leave": Drill("clients leave in mid-load", leave_in_mid_load, 2, 20),
    "flood": Drill("a flood of wrong requests", flood_with_errors, 2, 20),
    "burst": Drill("all customers ask at once", ask_for_all_at_once, 2, 20),
    "redeploy": Drill("the service is deployed again", redeploy, 1, 5),
    "overload": Drill("more requests than it can do", overload, 1, 5),
}


def report(drill: Drill, times: int, rig: Rig, outcome: Outcome) -> dict:
    """Return a row of the table."""
    right = [
        (answer.status, answer.body) == (200, rig.right[answer.customer_id])
        for answer in outcome.answers
    ]
    tried_again = sum(bool(answer.failures) for answer in outcome.answers)
    reasons = Counter(failure.reason for answer in outcome.answers for failure in answer.failures)
    return {
        "fault": drill.about,
        "times": times,
        "requests": len(right),
        "tried_again": tried_again,
        "reasons": dict(reasons),
        "lost": right.count(False),
        "seen": outcome.seen,
    }


def show(row: dict) -> None:
    """Print a row of the table."""
    print(f"{row['fault']:34}{row['times']:6}{row['requests']:10}{row['tried_again']:12}", end="")
    print(f"{row['lost']:6}  {row['reasons'] or ''} {row['seen'] or ''}", flush=True)


def save(rows: dict[str, dict]) -> None:
    """Bring the results up to date."""
    known = json.loads(RESULTS.read_text())["drills"] if RESULTS.exists() else {}
    known |= rows
    results = {
        "date": date.today().isoformat(),
        "ray": ray.__version__,
        "cores": os.cpu_count(),
        "drills": {name: known[name] for name in DRILLS if name in known},
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="each fault once or twice, for CI")
    parser.add_argument("drills", nargs="*", metavar="DRILL", help=f"of {', '.join(DRILLS)}")
    options = parser.parse_args()
    if unknown := set(options.drills) - set(DRILLS):
        parser.error(f"there is no drill {', '.join(unknown)}: choose from {', '.join(DRILLS)}")

    rig = Rig()
    rig.start()
    print(f"{'fault':34}{'times':>6}{'requests':>10}{'tried again':>12}{'lost':>6}")
    rows = {}
    for name in options.drills or DRILLS:
        drill = DRILLS[name]
        times = drill.short if options.short else drill.long
        rig.require_right(rig.names)
        rows[name] = report(drill, times, rig, drill.run(rig, times))
        show(rows[name])
        if not options.short:
            save(rows)
    rig.stop()
    if lost := sum(row["lost"] for row in rows.values()):
        sys.exit(f"{lost} requests were lost")


if __name__ == "__main__":
    main()
