"""A server of somebody else's making on this machine: on loopback only, in a folder of its own."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import requests

HOST = "127.0.0.1"
STOP_TIMEOUT_S = 20
POLL_S = 0.05
LOG_END = 2000  # characters of it that an error shows


class LocalServer:
    """`with Server(folder) as server:` starts a server that keeps its data in a folder.

    It ends with the process that started it, on Linux also if that is killed.
    """

    name = "the server"
    end = signal.SIGTERM  # how it is told to stop

    def __init__(self, folder: Path):
        self._folder = Path(folder)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and return when it answers."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the server."""
        self._process.send_signal(self.end)
        self._process.wait(STOP_TIMEOUT_S)

    def _launch(
        self,
        command: Sequence[str],
        is_up: Callable[[], bool],
        timeout_s: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Run a command, and return when `is_up`, which may raise RequestException until then.

        Raises:
            RuntimeError: if it ends, or is not up within `timeout_s`, with the end of its log.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", self.end.name.removeprefix("SIG"), *command]
        with (self._folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | (environment or {})
            )
        try:
            self._wait_for(is_up, timeout_s)
        except BaseException:
            self.stop()
            raise

    def _wait_for(self, is_up: Callable[[], bool], timeout_s: float) -> None:
        said, deadline = "", time.monotonic() + timeout_s
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                if is_up():
                    return
            except requests.RequestException as error:
                said = f": {error}"
            time.sleep(POLL_S)
        end = (self._folder / "server.log").read_text()[-LOG_END:]
        raise RuntimeError(f"{self.name} did not start{said}\n{end}")


def free_ports(count: int) -> list[int]:
    """Return ports of loopback on which nobody listens now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]
