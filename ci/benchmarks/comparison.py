"""What both comparisons do with servers: measure one after the other, print, and keep the rows.

A server that cannot be installed or started, or answers what it should not, says so in its row; the
others go on.
"""

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil

from lab.benchmark_tables import Column, heading, line
from server_process import Server, ServerError, install, versions

DIGITS = 4  # of a figure in the results


def parse_options(description: str, names: Iterable[str]) -> argparse.Namespace:
    """Return what a command was asked for: `short`, and `only` some of these servers."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="few requests, for CI")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=[*names])
    options = parser.parse_args()
    if not shutil.which("wrk"):
        parser.error("wrk is not installed: apt-get install wrk")
    options.only = list(dict.fromkeys(options.only))
    options.full = not options.short and len(options.only) == len([*names])
    return options


class Comparison:
    """The rows of a table: what a server is, its figures, and what failed."""

    def __init__(self, servers: dict[str, Server]):
        """Install the servers."""
        self.servers = servers
        self.faults: list[str] = []
        self.rows = {
            name: {"about": server.about, "forecasts": server.forecasts}
            for name, server in servers.items()
        }
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for server in {server.peer: server for server in servers.values()}.values():
                pool.submit(install, server)  # a failure is reported below, where it fails again
        for name in servers:
            self.add(name, lambda name: {"versions": versions(servers[name])})

    def add(self, name: str, measure: Callable[[str], dict]) -> None:
        """Add what is measured to a server's row, unless something of it has failed."""
        row = self.rows[name]
        if "failed" in row:
            return
        row["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            row |= shorten(measure(name))
        except ServerError as error:
            row["failed"] = str(error).partition("\n")[0].rstrip(":")
            self.faults.append(f"{name}: {error}")

    def add_to_all(
        self,
        names: Iterable[str],
        measure: Callable[[str], dict],
        what: str,
        columns: Sequence[Column],
    ) -> None:
        """Add what is measured to the rows of all these servers that take part, and print them."""
        width = max(map(len, self.rows))
        names = [name for name in names if name in self.rows]
        if names:
            print(f"\n{datetime.now():%H:%M:%S} {what}\n{heading(columns, width)}", flush=True)
        for name in names:
            self.add(name, measure)
            print(line(name, self.rows[name], columns, width), flush=True)

    def write(self, path: Path, **beside: object) -> None:
        """Write the rows to a file, with the machine and what is to stand beside them."""
        report = {"machine": machine(), **beside, "servers": self.rows}
        path.write_text(json.dumps(report, indent=2) + "\n")

    def finish(self, faults: Iterable[str] = ()) -> None:
        """Exit with 1 and all that is wrong, if anything is: with a server, or these faults."""
        if self.faults or faults:
            sys.exit("\n".join(["", *self.faults, *faults]))


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


def shorten(value: object) -> object:
    """Round all numbers in a result to DIGITS significant digits."""
    if isinstance(value, dict):
        return {name: shorten(part) for name, part in value.items()}
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure; of errors, the sum."""
    return {
        name: sum(values) if name == "errors" else float(np.median(values))
        for name in runs[0]
        for values in [[run[name] for run in runs]]
    }
