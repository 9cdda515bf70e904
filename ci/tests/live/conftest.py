"""Fixtures: a fleet of models, a store that fails when told to, and two live services on top.

    pytest ci/tests/live                 the default ingress
    INGRESS=fast pytest ci/tests/live    the fast ingress

One Ray runs for the whole session. Its proxy is guarded (forecast_service/proxy_guard.py), which
Anyscale's is not; behind the fast ingress, HAProxy is in the guard's place. What holds only with
the guard, or only with HAProxy, is said by the tests that ask for it.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import ray
import requests
from live_service import (
    CONTENT,
    FAST,
    GRPC_PORT,
    HOST,
    MODELS_PER_REPLICA,
    SERVICE,
    SMALL,
    STORE_TIMEOUT_S,
    forecast_by_grpc,
    listeners,
)
from ray import serve

from faulty_store import FaultyStore
from forecast_service.artifact import to_bytes
from forecast_service.model import HOLDOUT_DAYS, LAGS, fit, score
from forecast_service.settings import Settings
from lab.chapter import NAMED
from lab.local_ray import PROXY_GUARD, fast_ingress_settings
from lab.serving import launch, wait_until
from train_models import load_footfall

METRICS_INTERVAL_S = 1  # between two reports of a Ray process; by default 10
MAX_GRPC_BYTES = 1024 * 1024  # in a message; by default 2 GB
LOGICAL_CPUS = 16  # for replicas of all applications at once: each has one, and is mostly idle
CLUSTER = PROXY_GUARD | {
    "RAY_metrics_report_interval_ms": f"{METRICS_INTERVAL_S * 1000}",
    "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(MAX_GRPC_BYTES),
}
if FAST:  # by default Ray then writes its logs in blocks of 1000 lines
    CLUSTER |= fast_ingress_settings() | {"RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1"}


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
    return folder


@pytest.fixture(scope="session")
def empty_store() -> FaultyStore:
    """The store of all services."""
    return FaultyStore()


@pytest.fixture(scope="session")
def session_dir(empty_store, grpc_code) -> Iterator[Path]:
    """Ray and Serve run, with no application yet. Yields the session's folder."""
    environment = {
        "PYTHONPATH": f"{CONTENT}:{grpc_code}",  # for Ray's workers
        "MODEL_STORE": empty_store.url,  # which both services read, as the user's would be
        "STORE_TIMEOUT_S": str(STORE_TIMEOUT_S),
    }
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ |= environment | CLUSTER
    context = ray.init("local", num_cpus=LOGICAL_CPUS, logging_level="error", log_to_driver=False)
    # for the command line, and for Ray's state API if there is another Ray on this machine
    os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
    os.environ["RAY_DASHBOARD_ADDRESS"] = f"http://{context.dashboard_url}"
    servicer = "forecast_pb2_grpc.add_ForecastServiceServicer_to_server"
    # From a process of its own: this one has imported Serve without the cluster's settings.
    command = ["serve", "start", "--http-host", HOST]
    command += ["--grpc-port", str(GRPC_PORT), "--grpc-servicer-functions", servicer]
    subprocess.run(command, check=True, timeout=120)  # what it says is shown if it fails
    yield Path(context.address_info["session_dir"])
    serve.shutdown()
    ray.shutdown()
    for name in environment | CLUSTER | dict.fromkeys(("RAY_ADDRESS", "RAY_DASHBOARD_ADDRESS")):
        os.environ.pop(name, None)
    wait_until(lambda: not listeners(), "the port is free: nothing outlives the service")


@pytest.fixture(scope="session")
def launch_production(session_dir) -> Callable[..., None]:
    """Launch the production service, which keeps four models and does not follow the store."""
    from serve_forecast_production import ForecastingService

    def launch_production(
        name: str = "default", options: dict | None = None, **settings: object
    ) -> None:
        defaults = {"models_per_replica": MODELS_PER_REPLICA, "reload_check_s": 0}
        deployment = ForecastingService.options(**options or {})
        prefix = "/" if name == "default" else f"/{name}"
        launch(deployment.bind(Settings(**defaults | settings)), name, prefix)

    return launch_production


@pytest.fixture(scope="session")
def live_store(empty_store, fleet, launch_production) -> FaultyStore:
    """The services' store, with both services in front of it."""
    import serve_forecast_multiplex

    empty_store.artifacts = dict(fleet)
    launch_production()
    launch(serve_forecast_multiplex.app, "small", SMALL.removeprefix(SERVICE))
    return empty_store


@pytest.fixture(scope="session")
def endpoints(live_store) -> None:
    """Portfolio and gRPC run, in front of the production service."""
    import serve_grpc
    import serve_portfolio
    from forecast_service.settings import TokenSettings

    launch(serve_portfolio.app(TokenSettings()), "portfolio", "/portfolio")
    launch(serve_grpc.app, "grpc", "/grpc")


@pytest.fixture
def store(live_store, fleet) -> Iterator[FaultyStore]:
    """The store, whole before each test, and again after it: services are launched in between."""
    live_store.repair(fleet)
    yield live_store
    live_store.repair(fleet)


@pytest.fixture
def url(request) -> str:
    """The service that `ask` asks: the production service, but for tests that run ON_BOTH."""
    return getattr(request, "param", SERVICE)


@pytest.fixture
def ask(store, histories, url):
    """Ask a live service for a forecast."""

    def ask(
        customer_id: str, history: list | None = None, timeout: float = 30, url: str = url
    ) -> requests.Response:
        body = {"sequence_data": histories["customer_123"] if history is None else history}
        headers = {"serve_multiplexed_model_id": customer_id}
        return requests.post(f"{url}/", headers=headers, json=body, timeout=timeout)

    return ask


@pytest.fixture
def ask_grpc(store, endpoints):
    """Ask the gRPC endpoint for a forecast."""
    with grpc.insecure_channel(f"{HOST}:{GRPC_PORT}") as channel:

        def ask_grpc(customer_id: str | None, history: list, *metadata: tuple[str, str]):
            return forecast_by_grpc(channel, customer_id, history, *metadata)

        yield ask_grpc
