"""Compare this service with what a user would take instead, on the same models and traffic.

    python ci/benchmarks/compare_servers.py [--short] [--only NAME ...]

One server at a time, on loopback, with one process or worker; the peers in virtual environments of
their own (.venv-peers). Every server has to give the same forecasts, number for number. A full run
writes content/data/benchmarks.json. --only measures some, and --short shows that nothing rots: they
write nothing, so that all figures in the file are of one run. Wants Linux, wrk (apt-get install
wrk), and a free port: 8000, or BENCHMARK_PORT.

wrk sends the warm requests. A client in Python takes as much CPU a request as the fastest servers
do, and would make their lead look half as large. lab/traffic.py sends the rest.

A machine's speed drifts, and so does a server's from one start to the next. So the servers that the
targets compare take turns: each is started anew for each of the runs that their medians are of.
"""

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "content"))

from comparison import Comparison, parse_options, shorten  # noqa: E402
from contestants import SERVERS  # noqa: E402
from fleet import FULL, SHORT, Fleet, Parameters, build_fleet  # noqa: E402
from lab.benchmark_tables import Column, print_winners  # noqa: E402
from measurements import ProcessBench, summarize  # noqa: E402
from targets import (  # noqa: E402
    CEILING,
    MAX_BURST,
    MAX_SHORT_BURST,
    RIVALS,
    SERVICE,
    find_faults,
    judge,
    print_verdicts,
)

RESULTS = ROOT / "content" / "data" / "benchmarks.json"
COLUMNS = (
    Column("start s", "start_s", ".1f"),
    Column("p50 ms", "warm.1.p50_ms", ".2f"),
    Column("p99 ms", "warm.1.p99_ms", ".2f"),
    Column("p50@16", "warm.16.p50_ms", ".1f"),
    Column("p99@16", "warm.16.p99_ms", ".1f"),
    Column("req/s@16", "warm.16.requests_per_s", ".0f", max),
    Column("cold s", "cold.one_s", ".3f"),
    Column("burst s", "cold.burst_s", ".2f"),
    Column("x one", "cold.burst_per_one", ".1f"),
    Column("hit rate", "zipf.hit_rate", ".3f", max),
    Column("zipf p99", "zipf.p99_ms", ".0f"),
    Column("server MB", "memory.server_mb", ".0f"),
    Column("KB/model", "memory.model_kb", ".1f"),
)
WARM_COLUMNS = COLUMNS[1:6]
CROWD_COLUMNS = (Column("KB/model", "crowd.model_kb", ".1f"),)


@contextmanager
def temporary_fleet(customers: int) -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        yield build_fleet(folder, customers)


def measure(comparison: Comparison, preset: Parameters) -> None:
    """Fill the rows: let the rivals take turns, then measure each server's other figures."""
    servers, runs = comparison.servers, {}
    rivals = () if preset is SHORT else RIVALS
    with temporary_fleet(preset.customers) as fleet:

        def take_turn(name: str) -> dict:
            run = ProcessBench(servers[name], fleet, preset).measure_warm_afresh()
            runs.setdefault(name, []).append(run)
            return {"warm": summarize(runs[name])}

        def measure_one(name: str) -> dict:
            return ProcessBench(servers[name], fleet, preset).measure(runs.get(name))

        for number in range(1, preset.turns + 1):
            turn = f"turn {number} of {preset.turns}, medians so far"
            comparison.add_to_all(rivals, take_turn, turn, WARM_COLUMNS)
        comparison.add_to_all(servers, measure_one, "all figures", COLUMNS)
    if rivals:
        with temporary_fleet(preset.crowd) as fleet:

            def measure_crowd(name: str) -> dict:
                return {"crowd": ProcessBench(servers[name], fleet, preset).measure_crowd()}

            what = f"a replica's own memory with {preset.crowd} models"
            comparison.add_to_all((SERVICE, CEILING), measure_crowd, what, CROWD_COLUMNS)


def main() -> None:
    options = parse_options(__doc__, SERVERS)
    preset = SHORT if options.short else FULL
    comparison = Comparison({name: SERVERS[name] for name in options.only})
    measure(comparison, preset)
    print("\nWho wins")
    print_winners(comparison.rows, COLUMNS)
    if not options.short:
        print("\nTargets")
        verdicts = judge(comparison.rows)
        print_verdicts(verdicts)
    if options.full:
        targets = [shorten(verdict) for verdict in verdicts]
        comparison.write(RESULTS, parameters=asdict(preset), targets=targets)
    comparison.finish(find_faults(comparison.rows, MAX_SHORT_BURST if options.short else MAX_BURST))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # and so stop the server
    main()
