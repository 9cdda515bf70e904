"""Read what a Ray cluster reports of itself, from every address that Prometheus would scrape."""

import json
import time
from collections.abc import Container, Iterator
from pathlib import Path

import requests
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

ADDRESSES = "prom_metrics_service_discovery.json"  # Ray writes it into its session's folder
TIMEOUT_S = 10


def read_metrics(session_dir: str | Path) -> Iterator[Sample]:
    """Yield every sample of the cluster whose head node has this session folder.

    A sample has a name, labels and a value. Raises requests.RequestException if an address does
    not answer.
    """
    for group in json.loads((Path(session_dir) / ADDRESSES).read_text()):
        for address in group["targets"]:
            answer = requests.get(f"http://{address}/metrics", timeout=TIMEOUT_S)
            answer.raise_for_status()
            for family in text_string_to_metric_families(answer.text):
                yield from family.samples


def total(session_dir: str | Path, name: str, replica: Container[str] | None = None) -> float:
    """Return the sum of a metric over the cluster, or over some replicas."""
    return sum(
        sample.value
        for sample in read_metrics(session_dir)
        if sample.name == name and (replica is None or sample.labels["replica"] in replica)
    )


def wait_for(
    session_dir: str | Path,
    name: str,
    at_least: float,
    replica: Container[str] | None = None,
    timeout_s: float = 30,
) -> None:
    """Return when total() has come to `at_least`: Ray reports with a delay.

    Raises TimeoutError if it does not.
    """
    deadline = time.monotonic() + timeout_s
    while (reported := total(session_dir, name, replica)) < at_least:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} is {reported:g} after {timeout_s:g} s, not {at_least:g}")
        time.sleep(0.2)
