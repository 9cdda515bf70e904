"""A server as processes: install it, start it, watch it, stop all of it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

from lab.traffic import forecast_request

ROOT = Path(__file__).parents[2]
SERVER_FILES = Path(__file__).with_name("servers")
HOST, PORT = "127.0.0.1", os.environ.get("BENCHMARK_PORT", "8000")
URL = f"http://{HOST}:{PORT}"
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
LOAD, CHECK = b".", b"?"  # in LOADS_FILE: see servers/model_cache.py
REPLICA = "ray::ServeReplica"  # how the title of a replica's process begins


class ServerError(RuntimeError):
    """A server does not start, or answers what it should not. Its first line says which."""


class InstallError(ServerError):
    """A server cannot be installed on this Python."""


@dataclass(frozen=True)
class Server:
    about: str
    command: tuple[str, ...]  # a program of its virtual environment, and arguments
    peer: str | None = None  # whose servers/requirements_*.txt it runs on; None: on ours
    environment: dict[str, str] = field(default_factory=dict)
    # What to send for a customer id and a history, as arguments of aiohttp's post()
    ask: Callable[[str, list[float]], dict] = forecast_request
    read: Callable[[dict], dict] = dict  # an answer, as our service gives it
    # Models of a server that has them when it starts, and loads none on demand. The memory that a
    # model takes is the difference between a start with few and one with many.
    preloaded: tuple[int, int] | None = None
    forecasts: bool = True  # False: it answers a constant, and is no rival but a bound


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
            raise InstallError(f"{requirements.name} cannot be installed:\n{done.stderr[-1000:]}")
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
        """Its processes. Raises ServerError if it has ended."""
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            raise ServerError("it has ended while it was measured") from None

    def loads(self) -> int:
        """Return how often models have been read from the store."""
        return self._store_requests().count(LOAD)

    def checks(self) -> int:
        """Return how often the store was asked whether a model in memory is still the newest."""
        return self._store_requests().count(CHECK)

    def _store_requests(self) -> bytes:
        return self.loads_file.read_bytes() if self.loads_file.exists() else b""

    def memory_mb(self) -> float:
        """Return the memory of its processes; what they share counts once (PSS)."""
        total = 0
        for process in self.tree:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total / 1e6

    def replica_mb(self) -> float:
        """Return the memory that is Ray Serve's replicas' alone (USS).

        Raises:
            ServerError: if there are none.
        """
        found = [each for each in self.tree if "".join(each.cmdline()).startswith(REPLICA)]
        if not found:
            raise ServerError(f"none of its processes is called {REPLICA}")
        return sum(each.memory_full_info().uss for each in found) / 1e6


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
