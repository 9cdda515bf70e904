"""Fixtures: a fleet of models, a store that fails when told to, and the live service on top.

INGRESS=fast puts the fast ingress in front of it, instead of the default one.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests

from faulty_store import FaultyStore

CONTENT = Path(__file__).parents[2] / "content"
sys.path.insert(0, str(CONTENT))
os.environ["PYTHONPATH"] = str(CONTENT)  # for Ray's workers

import fast_ingress  # noqa: E402

FAST = os.environ.get("INGRESS") == "fast"
if FAST:
    fast_ingress.enable()  # before ray.serve is imported, which reads it

import ray  # noqa: E402
from ray import serve  # noqa: E402

from forecasting import HOLDOUT_DAYS, LAGS, fit, score  # noqa: E402
from model_artifact import to_bytes  # noqa: E402
from template_files import TEMPLATE_NAME, run_export  # noqa: E402
from train_models import load_footfall  # noqa: E402

SERVICE = "http://127.0.0.1:8000"
NAMED = (
    "customer_123",
    "customer_456",
    "customer_789",
    "customer_abc",
    "customer_def",
    "customer_hij",
)
MODELS_PER_REPLICA = 4
STORE_TIMEOUT_S = 2
GRPC_PORT = 9000
MAX_GRPC_BYTES = 1024 * 1024  # in a message; by default 2 GB
METRICS_INTERVAL_S = 1  # between two reports of a Ray process; by default 10


@pytest.fixture(scope="session")
def footfall() -> tuple[list[str], np.ndarray, np.ndarray]:
    return load_footfall()


@pytest.fixture(scope="session")
def fleet(footfall) -> dict[str, bytes]:
    """The artifacts of the six named customers and of sixty more."""
    customer_ids, dates, counts = footfall
    artifacts = {}
    for customer_id in [*NAMED, *customer_ids[:60]]:
        series = counts[customer_ids.index(customer_id)]
        model = fit(customer_id, series[:-HOLDOUT_DAYS], str(dates[-HOLDOUT_DAYS - 1]))
        artifacts[customer_id] = to_bytes(model, score(model, series))
    return artifacts


@pytest.fixture(scope="session")
def histories(footfall) -> dict[str, list[int]]:
    customer_ids, _, counts = footfall
    return dict(zip(customer_ids, counts[:, -LAGS:].tolist(), strict=True))


@pytest.fixture(scope="session")
def grpc_code(tmp_path_factory) -> Path:
    """A folder with the Python that forecast.proto generates, importable here and by Ray."""
    folder = tmp_path_factory.mktemp("grpc")
    outputs = f"--python_out={folder}", f"--grpc_python_out={folder}"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={CONTENT}", *outputs]
    subprocess.run([*command, "forecast.proto"], check=True, timeout=60)
    sys.path.append(str(folder))
    os.environ["PYTHONPATH"] += f":{folder}"
    return folder


@pytest.fixture(scope="session")
def live_store(fleet, grpc_code) -> FaultyStore:
    """The live service's store, with all applications in front of it."""
    store = FaultyStore()
    settings = {
        "MODEL_STORE": store.url,
        "MODELS_PER_REPLICA": str(MODELS_PER_REPLICA),
        "STORE_TIMEOUT_S": str(STORE_TIMEOUT_S),
        "RELOAD_CHECK_S": "0",  # tests of that run a service of their own
    }
    os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "proxy_guard:middlewares"
    os.environ["RAY_metrics_report_interval_ms"] = f"{METRICS_INTERVAL_S * 1000}"  # noqa: SIM112
    os.environ["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"] = str(MAX_GRPC_BYTES)
    ray.init(log_to_driver=False)
    # for the command line, and for Ray's state API if there is another Ray on this machine
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    env = os.environ | settings
    servicer = "forecast_pb2_grpc.add_ForecastServiceServicer_to_server"
    serve.start(
        http_options={"host": "127.0.0.1"},
        grpc_options={"port": GRPC_PORT, "grpc_servicer_functions": [servicer]},
    )
    for application in (
        ["serve_forecast_multiplex:app"],
        ["serve_portfolio:app", "--name", "portfolio", "--route-prefix", "/portfolio"],
        ["serve_grpc:app", "--name", "grpc", "--route-prefix", "/grpc"],
    ):
        launch = ["serve", "run", *application, "--non-blocking"]
        subprocess.run(launch, cwd=CONTENT, env=env, check=True, timeout=120)
    assert {app.status for app in serve.status().applications.values()} == {"RUNNING"}
    yield store
    subprocess.run(["serve", "shutdown", "-y"], env=env, check=True, timeout=60)
    ray.shutdown()
    del os.environ["RAY_ADDRESS"]
    assert not fast_ingress.haproxy_processes(), "HAProxy outlives the service"


@pytest.fixture
def store(live_store, fleet) -> FaultyStore:
    """The live store, whole again before each test."""
    live_store.artifacts = dict(fleet)
    live_store.delay_s, live_store.down = 0.0, False
    for count in live_store.reads, live_store.checks, live_store.bodies:
        count.clear()
    return live_store


@pytest.fixture
def ask(store, histories):
    """Ask the live service for a forecast."""

    def ask(
        customer_id: str, history: list | None = None, timeout: float = 30
    ) -> requests.Response:
        body = {"sequence_data": histories["customer_123"] if history is None else history}
        headers = {"serve_multiplexed_model_id": customer_id}
        return requests.post(SERVICE, headers=headers, json=body, timeout=timeout)

    return ask


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """The tutorial, exported for the template console."""
    output = tmp_path_factory.mktemp("exported")
    done = run_export(output)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="session")
def template(exported) -> Path:
    """The folder of the exported template."""
    return exported / "templates" / TEMPLATE_NAME
