"""A Prometheus on loopback, and its answers."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import requests

Series = tuple[dict[str, str], float]  # labels, the name among them, and value


def wait_for(met: Callable[[], bool], what: str, timeout_s: float = 45) -> None:
    """Poll until `met`. A server that is not there yet has not met it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(requests.ConnectionError):
            if met():
                return
        time.sleep(0.2)
    raise AssertionError(f"not in {timeout_s} s: {what}")


def query(url: str, expression: str, at_s: float | None = None) -> list[Series]:
    """Evaluate an expression, by default now."""
    params = {"query": expression, "time": time.time() if at_s is None else at_s}
    answer = requests.get(f"{url}/api/v1/query", params=params, timeout=5).json()
    assert answer["status"] == "success", answer
    return [(found["metric"], float(found["value"][1])) for found in answer["data"]["result"]]


@contextmanager
def running(config: Path, folder: Path) -> Iterator[str]:
    """Run a server on a config; yield its address. Its data and its log go into `folder`."""
    assert shutil.which("prometheus"), "no prometheus on the PATH: apt-get install prometheus"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    options = {
        "config.file": config,
        "storage.tsdb.path": folder / "data",
        "web.listen-address": address,
    }
    command = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log) as server:
        try:
            wait_for(lambda: bool(query(f"http://{address}", "vector(1)")), f"see {log.name}")
            yield f"http://{address}"
        finally:
            server.terminate()
