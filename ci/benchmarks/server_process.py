"""A server of contestants.py as processes: install it, start it, watch it, stop all of it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from contestants import HOST, PORT, SERVER_FILES, Server

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"
# What reading a model takes; pinned by ROOT
MODEL_PACKAGES = "numpy", "obstore", "pydantic-settings", "safetensors"
SERVING_PACKAGES = {
    *MODEL_PACKAGES,
    *("ray", "bentoml", "litserve", "mosec", "mlserver"),
    *("fastapi", "starlette", "pydantic", "uvicorn", "uvloop", "httptools"),
}
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 20
LEFTOVERS_TIMEOUT_S = 3
POLL_S = 0.02


class ServerError(RuntimeError):
    """A server does not start, or answers what it should not."""


class InstallError(RuntimeError):
    """A server cannot be installed on this Python."""


def install(server: Server) -> Path:
    """Make a server's virtual environment, unless it is there; return its folder of programs.

    Raises:
        InstallError: if a package cannot be.
    """
    if server.peer is None:
        return Path(sys.executable).parent
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line.split()[0] for line in lines if line.startswith(MODEL_PACKAGES)]
    requirements = SERVER_FILES / f"requirements_{server.peer}.txt"
    wanted = "\n".join((sys.version, *pins, requirements.read_text()))
    folder = ENVIRONMENTS / server.peer
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        command = [folder / "bin" / "pip", "install", "-q", "-r", requirements, *pins]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise InstallError(f"{requirements.name} cannot be installed: {done.stderr[-1000:]}")
        stamp.write_text(wanted)
    return folder / "bin"


def versions(server: Server) -> dict[str, str]:
    """Install a server, and return the versions of what answers its requests."""
    programs = install(server)
    command = [programs / "python", "-m", "pip", "list", "--format=json"]
    listed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return {
        package["name"]: package["version"]
        for package in json.loads(listed)
        if package["name"] in SERVING_PACKAGES
    }


@dataclass(frozen=True)
class Running:
    process: psutil.Popen
    start_s: float  # until the first forecast
    loads_file: Path

    @property
    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def loads(self) -> int:
        """Return how often models have been read from the store."""
        return self.loads_file.stat().st_size if self.loads_file.exists() else 0

    def memory_mb(self) -> float:
        """Return the memory of its processes; what they share counts once (PSS)."""
        total = 0
        for process in self.tree:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total / 1e6


@contextmanager
def running(server: Server, settings: dict[str, str], ask: dict) -> Iterator[Running]:
    """Start a server, wait until it answers the request `ask`, and stop it in the end.

    Raises:
        ServerError: if it does not start, or its port is taken.
    """
    with suppress(ConnectionRefusedError):
        socket.create_connection((HOST, int(PORT))).close()
        raise ServerError(f"port {PORT} is taken: set BENCHMARK_PORT to another")
    programs = install(server)
    with (
        tempfile.TemporaryDirectory(prefix="server-") as folder,
        open(f"{folder}/log", "w+") as log,
    ):
        loads_file = Path(folder) / "loads"
        environment = os.environ | server.environment | settings
        environment |= {
            "PYTHONPATH": f"{folder}:{SERVER_FILES}:{ROOT / 'content'}",
            "LOADS_FILE": str(loads_file),
            "BENTOML_HOME": folder,
        }
        started = time.perf_counter()
        process = psutil.Popen(
            [programs / server.command[0], *server.command[1:]],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while not answers(ask):
                if process.poll() is not None or time.perf_counter() - started > START_TIMEOUT_S:
                    log.seek(0)
                    raise ServerError(f"{server.about} does not start:\n{log.read()[-3000:]}")
                time.sleep(POLL_S)
            yield Running(process, time.perf_counter() - started, loads_file)
        finally:
            stop(process, str(loads_file))


def answers(ask: dict) -> bool:
    try:
        return requests.post(**ask, timeout=START_TIMEOUT_S).ok
    except (requests.ConnectionError, requests.Timeout):
        return False


def stop(process: psutil.Popen, mark: str) -> None:
    """Stop a server, and whatever it leaves behind: its children, and those marked as its own."""
    tree = process.children(recursive=True) if process.poll() is None else []
    with suppress(psutil.NoSuchProcess):
        process.terminate()
    psutil.wait_procs([process], STOP_TIMEOUT_S)
    for left in psutil.process_iter():
        with suppress(psutil.Error):
            if left.environ().get("LOADS_FILE") == mark:  # HAProxy outlives its parent
                tree.append(left)
    _, alive = psutil.wait_procs({process, *tree}, LEFTOVERS_TIMEOUT_S)
    for left in alive:
        with suppress(psutil.NoSuchProcess):
            left.kill()
    psutil.wait_procs(alive, STOP_TIMEOUT_S)
