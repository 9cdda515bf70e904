"""Read what a Ray cluster reports of itself, from every address that Prometheus would scrape."""

import json
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from lab.this_machine import ask_directly

ADDRESSES = "prom_metrics_service_discovery.json"  # Ray writes it into its session's folder
TIMEOUT_S = 10


def read_metrics(session_dir: str | Path) -> Iterator[Sample]:
    """Yield every sample of the cluster whose head node has this session folder.

    A sample has a name, labels and a value. Raises requests.RequestException if an address does
    not answer.
    """
    for group in json.loads((Path(session_dir) / ADDRESSES).read_text()):
        for address in group["targets"]:
            answer = ask_directly("get", f"http://{address}/metrics", timeout=TIMEOUT_S)
            answer.raise_for_status()
            for family in text_string_to_metric_families(answer.text):
                yield from family.samples


def totals(
    session_dir: str | Path, names: Iterable[str], replica: Container[str] | None = None
) -> dict[str, float]:
    """Return the sum of each metric over the cluster, or over some replicas, by name."""
    sums = dict.fromkeys(names, 0.0)
    for sample in read_metrics(session_dir):
        if sample.name in sums and (replica is None or sample.labels["replica"] in replica):
            sums[sample.name] += sample.value
    return sums


def wait_for(
    session_dir: str | Path,
    at_least: Mapping[str, float],
    replica: Container[str] | None = None,
    timeout_s: float = 30,
) -> dict[str, float]:
    """Return totals() when each metric has come to what `at_least` has for its name.

    Ray reports with a delay, and takes a report in one metric after another: one that has come to
    its value says nothing of the others yet.

    Raises TimeoutError if it takes too long.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        reported = totals(session_dir, at_least, replica)
        if all(reported[name] >= least for name, least in at_least.items()):
            return reported
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:g} s: {reported}, not {dict(at_least)}")
        time.sleep(0.2)
