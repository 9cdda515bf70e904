"""MLflow on loopback: its tracking server and registry, with SQLite, in a folder.

It is MLflow's own server. What it needs is in chapters/requirements_mlflow.txt.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import requests

from lab.s3_server import HOST, free_ports
from lab.this_machine import ask_directly

START_TIMEOUT_S = 120  # it takes 10 s on an idle machine
STOP_TIMEOUT_S = 20
ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a dozen processes that a registry does without
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class MlflowServer:
    """`with MlflowServer(folder) as server:` starts a server that keeps its data in a folder."""

    def __init__(self, folder: Path):
        self._folder = Path(folder)

    def __enter__(self) -> "MlflowServer":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and return when it answers.

        Raises:
            ModuleNotFoundError: if MLflow is not installed.
            RuntimeError: if it ends, or does not answer within START_TIMEOUT_S, with the end of its
                log.
        """
        if not importlib.util.find_spec("mlflow"):
            raise ModuleNotFoundError(
                "MLflow is not installed: pip install -r chapters/requirements_mlflow.txt"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._port,) = free_ports(1)
        command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--workers", "1"]
        command += ["--port", str(self._port)]
        command += ["--backend-store-uri", f"sqlite:///{self._folder.resolve()}/mlflow.db"]
        command += ["--artifacts-destination", str(self._folder.resolve() / "artifacts")]
        if setpriv := shutil.which("setpriv"):  # on Linux: end with the process that started it
            command = [setpriv, "--pdeathsig", "TERM", *command]
        log_file = self._folder / "server.log"
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | ENVIRONMENT
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                if ask_directly("get", f"{self.url}/health", timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"MLflow did not start:\n{log_file.read_text()[-2000:]}")

    def stop(self) -> None:
        """End it, and the server that it has started."""
        self._process.terminate()
        self._process.wait(STOP_TIMEOUT_S)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._port}"
