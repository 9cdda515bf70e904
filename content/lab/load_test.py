"""Load the service as many customers do, and fail if it misses a threshold.

    python -m lab.load_test --concurrency 16 --duration 10
    python -m lab.load_test --rate 200 --requests 5000 --max-p99-ms 50 --max-error-share 0.001

--concurrency sends in a closed loop, --rate in an open one: see lab/traffic.py.
Exits 1 if a threshold is missed, 2 for bad arguments, 130 after Ctrl-C, which reports as well.
"""

import argparse
import asyncio
import itertools
import json
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from lab.this_machine import SERVICE
from lab.traffic import TIMEOUT_S, load_customers, send, zipf_trace

START = "`serve run serve_forecast_production:app`"
CONCURRENCY, DURATION_S = 16, 10.0  # by default
TRACE = 1_000_000  # requests; a test of a given duration sends them over and over
THRESHOLDS = {  # by option: the figure of the summary that it bounds
    "--max-p99-ms": lambda summary: summary["latency"]["all"]["p99_ms"],
    "--max-error-share": lambda summary: summary["error_share"],
    "--min-rate": lambda summary: summary["successes_per_s"],
    "--min-hit-rate": lambda summary: summary["hit_rate"],
}
MAY_BE_0 = {"skew", "seed", *THRESHOLDS}
AT_MOST_1 = {"--max-error-share", "--min-hit-rate"}


def print_report(summary: dict) -> None:
    """Print what Outcomes.summary() returns, a figure a line."""

    def text(value: float | dict | None) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {text(figure)}" for name, figure in value.items()) or "none"
        if isinstance(value, float):
            return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"
        return "unknown" if value is None else str(value)

    latency = {f"latency, {name}": figures for name, figures in summary["latency"].items()}
    for name, value in (summary | latency).items():
        if name != "latency":
            print(f"{name:17}{text(value)}")


def check_thresholds(summary: dict, bounds: dict[str, float | None]) -> list[str]:
    """Return a line for each of THRESHOLDS that has a bound, and is missed or was not measured."""
    missed = []
    for option, figure in THRESHOLDS.items():
        bound, value = bounds.get(option), figure(summary)
        if bound is None:
            continue
        if value is None:
            missed.append(f"missed {option} {bound:g}: nothing measured")
        elif value > bound if option.startswith("--max") else value < bound:
            missed.append(f"missed {option} {bound:g}: measured {value:.5g}")
    return missed


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options. Exits with 2, and says why, if they cannot be run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--url", default=SERVICE, help="default %(default)s")
    one_of = parser.add_mutually_exclusive_group().add_argument
    one_of("--customers", type=int, metavar="N", help="the data's first; default all")
    one_of("--customers-file", type=Path, metavar="FILE", help="one id a line, popular first")
    one_of = parser.add_mutually_exclusive_group().add_argument
    one_of("--concurrency", type=int, metavar="N", help=f"default {CONCURRENCY}")
    one_of("--rate", type=float, metavar="PER_S", help="requests per second")
    one_of = parser.add_mutually_exclusive_group().add_argument
    one_of("--duration", type=float, metavar="S", help=f"default {DURATION_S:g}")
    one_of("--requests", type=int, metavar="N", help="how many to send")
    add("--skew", type=float, default=1.0, help="0: all alike; default %(default)s")
    add("--seed", type=int, default=0, help="of the trace; default %(default)s")
    add("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="default %(default)s")
    add("--json", type=Path, metavar="FILE", help="write the report there, too")
    for option in THRESHOLDS:
        add(option, type=float, dest=option, metavar="X", help="exit with 1 if it is missed")
    options = parser.parse_args(arguments)

    for name, value in vars(options).items():
        if isinstance(value, int | float):
            most = 1 if name in AT_MOST_1 else sys.float_info.max
            if not (0 < value <= most or (value == 0 and name in MAY_BE_0)):
                parser.error(f"--{name.removeprefix('--')} cannot be {value:g}")
    ids = None
    if options.customers_file:
        try:
            ids = options.customers_file.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            parser.error(f"--customers-file: {error}")
        if not ids:
            parser.error(f"--customers-file: {options.customers_file} names no customer")
    ids, histories = load_customers(ids)
    if options.customers and options.customers > len(ids):
        parser.error(f"the data have {len(ids)} customers: name more in a --customers-file")
    options.ids, options.histories = ids[: options.customers], histories[: options.customers]
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"there is no folder for --json {options.json}")
    try:
        address = urlsplit(options.url)
        port = address.port or {"http": 80, "https": 443}[address.scheme]
        socket.create_connection((address.hostname, port), options.timeout).close()
    except (KeyError, ValueError):
        parser.error(f"--url {options.url} is not like http://host:port")
    except OSError as error:
        parser.error(f"nothing answers at {options.url} ({error}): start the service with {START}")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Raises SystemExit, as this module's docstring says."""
    options = parse(arguments)
    trace = zipf_trace(len(options.ids), options.requests or TRACE, options.skew, options.seed)
    outcomes = asyncio.run(
        send(
            options.url,
            options.ids,
            options.histories,
            trace if options.requests else itertools.cycle(trace),
            concurrency=options.concurrency or (None if options.rate else CONCURRENCY),
            rate=options.rate,
            duration_s=None if options.requests else options.duration or DURATION_S,
            timeout_s=options.timeout,
        )
    )
    summary = outcomes.summary()
    print_report(summary)
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2) + "\n")
    if outcomes.interrupted:
        sys.exit(130)
    if missed := check_thresholds(summary, vars(options)):
        sys.exit("\n".join(missed))


if __name__ == "__main__":
    main()
