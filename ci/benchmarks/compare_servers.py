"""Compare this service with what a user would take instead, on the same models and traffic.

    python ci/benchmarks/compare_servers.py [--short] [--only NAME ...]

One server at a time, on loopback, with one process or worker; the peers in virtual environments of
their own (.venv-peers). Every server has to give the same forecasts, number for number. The full
run writes content/data/benchmarks.json, or of --only the servers named; --short only shows that
nothing rots. Both want Linux, wrk (apt-get install wrk), and a free port: 8000, or BENCHMARK_PORT.

wrk sends the warm requests. A client in Python takes as much CPU a request as the fastest servers
do, and would make their lead look half as large. lab/traffic.py sends the rest.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "content"))

from contestants import SERVERS  # noqa: E402
from fleet import FULL, SHORT, Parameters, build_fleet  # noqa: E402
from measurements import Bench  # noqa: E402
from server_process import InstallError, ServerError, install, versions  # noqa: E402

RESULTS = ROOT / "content" / "data" / "benchmarks.json"
DEFAULT, FAST, SMALL, SMALL_FAST, *_ = SERVERS
OURS = {DEFAULT, FAST, SMALL, SMALL_FAST}
STOCK = "stock Ray"
RATIOS = (FAST, "FastAPI"), (FAST, STOCK), (SMALL_FAST, "FastAPI"), (DEFAULT, STOCK), (SMALL, STOCK)
MIN_BURST_GAIN = 4  # times as fast as the documented pattern, which loads one after the other
MIN_FAST_GAIN = 2  # times the documented pattern's requests/s
MAX_BURST, MAX_SHORT_BURST = 1.5, 3  # times one cold customer; a single burst is noisy
DIGITS = 4  # of a figure in the results
COLUMNS = {  # heading: where a result has the figure, and its format
    "start s": ("start_s", ".1f"),
    "p50 ms": ("warm.1.p50_ms", ".2f"),
    "p99 ms": ("warm.1.p99_ms", ".2f"),
    "p50@16": ("warm.16.p50_ms", ".1f"),
    "p99@16": ("warm.16.p99_ms", ".1f"),
    "req/s@16": ("warm.16.requests_per_s", ".0f"),
    "cold s": ("cold.one_s", ".3f"),
    "burst s": ("cold.burst_s", ".2f"),
    "x one": ("cold.burst_per_one", ".1f"),
    "hit rate": ("zipf.hit_rate", ".3f"),
    "zipf p99": ("zipf.p99_ms", ".0f"),
    "server MB": ("memory.server_mb", ".0f"),
    "KB/model": ("memory.model_kb", ".1f"),
}


def machine() -> dict[str, str | int | float]:
    cpu = next(
        line.split(": ")[1]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def figure(result: dict, path: str) -> float | None:
    for name in path.split("."):
        result = result and result[name]
    return result


def shorten(value: object) -> object:
    """Round all numbers in a result to DIGITS significant digits."""
    if isinstance(value, dict):
        return {name: shorten(part) for name, part in value.items()}
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def print_row(name: str, result: dict) -> None:
    figures = ((figure(result, path), spec) for path, spec in COLUMNS.values())
    cells = ("-" if value is None else format(value, spec) for value, spec in figures)
    print(f"{name:20}" + "".join(f"{cell:>10}" for cell in cells), flush=True)


def save(results: dict[str, dict], preset: Parameters) -> None:
    """Bring the results up to date."""
    known = json.loads(RESULTS.read_text())["servers"] if RESULTS.exists() else {}
    known |= results
    report = {
        "machine": machine(),
        "parameters": asdict(preset),
        "servers": {name: known[name] for name in SERVERS if name in known},
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


def print_ratios(results: dict[str, dict]) -> None:
    for name, peer in RATIOS:
        if {name, peer} <= results.keys():
            ours, theirs = results[name]["warm"], results[peer]["warm"]
            rate = ours["16"]["requests_per_s"] / theirs["16"]["requests_per_s"]
            latency = ours["1"]["p50_ms"] / theirs["1"]["p50_ms"]
            print(f"{name}: {rate:.2f} x {peer}'s requests/s at 16, {latency:.2f} x its p50 at 1")


def check(results: dict[str, dict], max_burst: float) -> list[str]:
    """Return what is wrong beyond noise: failed requests, ratios far from the known ones.

    A cold burst may take `max_burst` times as long as one cold customer, on the fast ingress.
    """
    faults = [
        f"{name}: {where} failed: {errors}"
        for name, result in results.items()
        for where in ("warm.1.errors", "warm.16.errors", "cold.error_share", "zipf.errors")
        if (errors := figure(result, where))
    ]
    for name in (FAST, SMALL_FAST):
        if name in results and (times := results[name]["cold"]["burst_per_one"]) > max_burst:
            faults.append(f"{name}: a cold burst takes {times:.1f} x one cold customer")
    if STOCK not in results:
        return faults
    stock = results[STOCK]
    for name in OURS & results.keys():
        if results[name]["cold"]["burst_s"] > stock["cold"]["burst_s"] / MIN_BURST_GAIN:
            faults.append(
                f"{name}: a cold burst is not {MIN_BURST_GAIN} times as fast as {STOCK}'s"
            )
    for name in (FAST, SMALL_FAST):
        if name in results:
            gain = figure(results[name], "warm.16.requests_per_s")
            gain /= stock["warm"]["16"]["requests_per_s"]
            if gain < MIN_FAST_GAIN:
                faults.append(f"{name}: answers only {gain:.1f} x what {STOCK} does")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="few requests, for CI")
    parser.add_argument("--only", nargs="+", choices=SERVERS, metavar="NAME", default=[*SERVERS])
    options = parser.parse_args()
    if not shutil.which("wrk"):
        parser.error("wrk is not installed: apt-get install wrk")
    preset = SHORT if options.short else FULL

    peers = {SERVERS[name].peer: SERVERS[name] for name in options.only}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for server in peers.values():
            pool.submit(install, server)  # a failure is reported below, where it fails again
    results, skipped, faults = {}, {}, []
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        fleet = build_fleet(folder, preset.customers)
        print(f"{datetime.now():%H:%M:%S}".ljust(20) + "".join(f"{name:>10}" for name in COLUMNS))
        for name in options.only:
            server = SERVERS[name]
            try:
                about = {
                    "about": server.about,
                    "date": datetime.now(UTC).isoformat(timespec="seconds"),
                    "versions": versions(server),
                }
                results[name] = about | shorten(Bench(server, fleet, preset).measure())
            except InstallError as error:
                skipped[name] = str(error)
            except ServerError as error:  # the others are worth knowing all the same
                faults.append(f"{name}: {error}")
                print(f"{name:20} failed: see below", flush=True)
            else:
                print_row(name, results[name])
                if not options.short:
                    save(results, preset)
    print_ratios(results)
    for name, reason in skipped.items():
        print(f"SKIPPED {name}: {reason}")
    faults += check(results, MAX_SHORT_BURST if options.short else MAX_BURST)
    if options.short and sys.version_info[:2] == (3, 11):
        faults += [f"{name} was skipped" for name in skipped]
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # and so stop the server
    main()
