"""Compare what happens where one process ends: workers that each hold a part of the models.

    python ci/benchmarks/compare_pools.py [--short] [--only NAME ...]

Two workers or replicas on this machine, each with room for 100 models of 2000 customers whose
popularity follows Zipf's law, and a simulated delay of 20 ms before each read of the store. Every
server has to give the same forecasts, number for number, before and after the load. Then the hit
rate with four workers. A full run writes content/data/pools.json; --only and --short write nothing.
Wants what compare_servers.py wants.

What the figures mean:

- The hit rate is the share of requests that caused no read of a model from the store. Store reads
  are counted in all processes; those of the production service include its checks whether a model
  in memory is still the newest.
- Where each customer has one worker, all caches act as one of their size together. Where any worker
  may get any request, each of them holds the same popular models, and more workers do not raise the
  hit rate. uvicorn and BentoML share connections among workers, LitServe and MOSEC requests, and
  neither looks at the customer.
- The client, Ray's own processes and the workers share the machine's cores. So two workers do not
  answer twice what one does, and four are too many for two cores: of those, only the hit rate is
  measured, which does not depend on the speed.
- In the closed loop, 16 connections each wait for their answer. A server that misses more often, or
  lets customers wait for one another's reads, answers fewer requests. wrk sends them: it takes them
  from one list, over all connections, in the order of the trace, so a faster server gets to more of
  it in a round.
- In the open loop, requests come at a rate that all servers bear: 60 % of what the slowest answers
  in the closed loop. wrk cannot do that. lab/traffic.py, in Python, takes little CPU at such a
  rate. Latency counts from when a request was due.
- Where fewer than half of the requests hit, p50 is the latency of a miss.
"""

import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "content"))

from comparison import Comparison, parse_options  # noqa: E402
from contestants import SERVERS  # noqa: E402
from fleet import Fleet, build_fleet  # noqa: E402
from lab.benchmark_tables import Column, figure, print_table, print_winners  # noqa: E402
from pool_measurements import FULL, SHORT, PoolBench, PoolParameters  # noqa: E402

RESULTS = ROOT / "content" / "data" / "pools.json"
POOLS = (
    "ours, fast ingress",
    "ours, 80 lines, fast",
    "stock Ray",
    "FastAPI",
    "BentoML",
    "LitServe",
    "MOSEC",
    "MOSEC, batches",
)
CLOSED_COLUMNS = (
    Column("hit rate", "closed.hit_rate", ".3f", max),
    Column("reads/1000", "closed.reads_per_1000", ".0f"),
    Column("req/s@16", "closed.requests_per_s", ".0f", max),
    Column("p50@16", "closed.p50_ms", ".1f"),
    Column("p99@16", "closed.p99_ms", ".1f"),
)
OPEN_COLUMNS = (
    Column("p50 open", "open.p50_ms", ".1f"),
    Column("p99 open", "open.p99_ms", ".1f"),
    Column("errors", "open.errors", ".0f", None),
)
MORE_COLUMNS = (Column("4: hit rate", "more.hit_rate", ".3f", max),)
COLUMNS = CLOSED_COLUMNS + OPEN_COLUMNS + MORE_COLUMNS


def measure(comparison: Comparison, fleet: Fleet, preset: PoolParameters) -> float:
    """Fill the rows; return the requests per second of the open loop."""

    def bench(name: str) -> PoolBench:
        return PoolBench(comparison.servers[name], fleet, preset)

    def measure_closed(name: str) -> dict:
        return {"closed": bench(name).measure_closed(preset.workers, preset.rounds)}

    def measure_open(name: str) -> dict:
        return {"open": bench(name).measure_open(rate)}

    def measure_more(name: str) -> dict:
        return {"more": bench(name).measure_closed(preset.more_workers, preset.more_rounds)}

    pools, delay_ms = comparison.servers, preset.store_delay_s * 1000
    where = f"{preset.workers} workers, the store {delay_ms:.0f} ms away (simulated)"
    loop = f"closed loop of {preset.concurrency}"
    comparison.add_to_all(pools, measure_closed, f"{where}, {loop}", CLOSED_COLUMNS)
    rates = [figure(row, "closed.requests_per_s") for row in comparison.rows.values()]
    rate = preset.load * min(filter(None, rates), default=0)
    loop = f"open loop, {rate:.0f} requests/s"
    comparison.add_to_all(pools, measure_open, f"{where}, {loop}", OPEN_COLUMNS)
    more = f"{preset.more_workers} workers, for the hit rate alone"
    comparison.add_to_all(pools, measure_more, more, MORE_COLUMNS)
    return rate


def find_faults(rows: dict[str, dict]) -> list[str]:
    """Return which requests failed."""
    return [
        f"{name}: {errors:.0f} requests failed, {loop} loop"
        for name, row in rows.items()
        for loop in ("closed", "open", "more")
        if (errors := figure(row, f"{loop}.errors"))
    ]


def main() -> None:
    options = parse_options(__doc__, POOLS)
    preset = SHORT if options.short else FULL
    comparison = Comparison({name: SERVERS[name] for name in options.only})
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        rate = measure(comparison, build_fleet(folder, preset.customers), preset)
    print()
    print_table(comparison.rows, COLUMNS)
    print("\nWho wins")
    print_winners(comparison.rows, COLUMNS)
    if options.full:
        parameters = asdict(preset) | {"open_requests_per_s": round(rate, 1)}
        comparison.write(RESULTS, parameters=parameters)
    comparison.finish(find_faults(comparison.rows))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # and so stop the server
    main()
