"""MLflow on loopback: its tracking server and registry, with SQLite, in a folder.

It is MLflow's own server. What it needs is in chapters/requirements_mlflow.txt.
"""

import importlib.util
import sys

from lab.local_server import HOST, LocalServer, free_ports
from lab.this_machine import ask_directly

START_TIMEOUT_S = 120  # it takes 10 s on an idle machine
ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a dozen processes that a registry does without
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class MlflowServer(LocalServer):
    """`with MlflowServer(folder) as server:` starts a server that keeps its data in a folder."""

    name = "MLflow"

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
        (self._port,) = free_ports(1)
        command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--workers", "1"]
        command += ["--port", str(self._port)]
        command += ["--backend-store-uri", f"sqlite:///{self._folder.resolve()}/mlflow.db"]
        command += ["--artifacts-destination", str(self._folder.resolve() / "artifacts")]
        self._launch(command, self._is_up, START_TIMEOUT_S, ENVIRONMENT)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._port}"

    def _is_up(self) -> bool:
        return ask_directly("get", f"{self.url}/health", timeout=5).ok
