"""The deployment files, read by Ray Serve; serve_config.yaml deployed, changed, deployed again."""

import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable

import image
import numpy as np
import pytest
import ray
import requests
import yaml
from live_service import CONTENT, SERVICE
from ray.job_submission import JobSubmissionClient
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema
from secrets_in_checkout import plant_secrets

from lab.capacity import lru_hit_rates
from lab.chapter import NAMED
from lab.serving import wait_until, wait_until_running
from lab.traffic import Outcomes, load_customers, send, zipf_trace

DEPLOY = CONTENT / "deploy"
NAME, ROUTE = "from-file", "/from-file"  # "default" and "/" are the session's own application's
URL = f"{SERVICE}{ROUTE}/"
SETTLE_TIMEOUT_S = 120
REQUESTS_PER_S = 20  # while the service changes
OTHERS = [f"customer_{number:04d}" for number in range(1, 13)]  # than NAMED


def read(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text())


def pods(name: str = "rayservice.yaml") -> list[dict]:
    """Return the containers of rayservice.yaml, the head's first."""
    cluster = read(name)["spec"]["rayClusterConfig"]
    groups = cluster["headGroupSpec"], *cluster["workerGroupSpecs"]
    return [group["template"]["spec"]["containers"][0] for group in groups]


def ask_in_turn(trace: np.ndarray) -> Outcomes:
    """Ask for the customers OTHERS, one request at a time."""
    return asyncio.run(send(URL, *load_customers(OTHERS), trace, concurrency=1, progress=False))


def cache_sizes(outcomes: Outcomes) -> list[int]:
    """Return the models that each replica may keep, if the hits are those of such LRU caches."""
    simulated = lru_hit_rates(outcomes.customer, replica=outcomes.replica)
    return np.flatnonzero(np.isclose(simulated, (outcomes.cache == "hit").mean())).tolist()


class Traffic:
    """Requests that go on while its block runs. Then `outcomes` has what became of them."""

    def __enter__(self) -> "Traffic":
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self) -> None:
        turns = itertools.cycle(range(len(NAMED)))
        trace = itertools.takewhile(lambda _: not self._over.is_set(), turns)
        customers = load_customers(NAMED)
        self.outcomes = asyncio.run(
            send(URL, *customers, trace, rate=REQUESTS_PER_S, progress=False)
        )

    def __exit__(self, *error) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def config(store) -> dict:
    """The file, changed to run beside the session's own application and from its store."""
    config = read("serve_config.yaml")
    (app,) = config["applications"]
    app |= {"name": NAME, "route_prefix": ROUTE}
    app["args"]["model_store"] = store.url
    app["deployments"][0]["ray_actor_options"]["num_cpus"] = 0
    return config


@pytest.fixture(scope="module")
def deploy(live_store, tmp_path_factory) -> Callable[[dict], dict]:
    """Deploy a config by the command line, wait, and return what `serve status` says then."""
    file = tmp_path_factory.mktemp("deploy") / "serve_config.yaml"
    dashboard = f"http://{ray.init(ignore_reinit_error=True).dashboard_url}"

    def run(*command: str) -> str:
        command = ["serve", *command, "--address", dashboard]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def deploy(config: dict) -> dict:
        file.write_text(yaml.safe_dump(config))
        run("deploy", str(file))
        replicas = config["applications"][0]["deployments"][0]["num_replicas"]
        wait_until_running(NAME, replicas, SETTLE_TIMEOUT_S)
        status = yaml.safe_load(run("status"))
        deployment = status["applications"][NAME]["deployments"]["ForecastingService"]
        assert deployment["replica_states"] == {"RUNNING": replicas}
        return status

    yield deploy
    file.write_text("applications: []")
    run("deploy", str(file))


def change(config: dict, replicas: int, models: int) -> dict:
    """Set the number of replicas and their cache size, as an editor of the file would."""
    (app,) = config["applications"]
    app["deployments"][0]["num_replicas"] = replicas
    app["args"]["models_per_replica"] = models
    return config


SERVE_CONFIGS = {
    "serve_config": read("serve_config.yaml"),
    "rayservice": yaml.safe_load(read("rayservice.yaml")["spec"]["serveConfigV2"]),
}
APPLICATIONS = [
    *(app for config in SERVE_CONFIGS.values() for app in config["applications"]),
    *read("service.yaml")["applications"],
]


@pytest.mark.parametrize("name", SERVE_CONFIGS)
def test_rays_own_schema_reads_the_file_and_ignores_none_of_it(name):
    config = SERVE_CONFIGS[name]
    assert ServeDeploySchema(**config).model_dump(exclude_unset=True) == config


@pytest.mark.parametrize("app", APPLICATIONS, ids=[*SERVE_CONFIGS, "service"])
def test_it_deploys_the_production_service_by_its_names(app):
    from serve_forecast_production import ForecastingService

    assert ServeApplicationSchema(**app).model_dump(exclude_unset=True) == app
    assert app.get("name", "default") == "default" and app.get("route_prefix", "/") == "/"
    assert app["import_path"] == "serve_forecast_production:app"
    (deployment,) = app["deployments"]
    assert deployment["name"] == ForecastingService.name
    if scaling := deployment.get("autoscaling_config"):
        assert AutoscalingConfig(**scaling).model_dump(exclude_unset=True) == scaling
    if logging := deployment.get("logging_config"):
        assert logging["log_level"] == "WARNING", "a logging_config replaces the service's own"


@pytest.mark.parametrize("probe", ["livenessProbe", "readinessProbe"])
@pytest.mark.parametrize("pod", pods(), ids=["head", "worker"])
def test_a_probe_of_kubernetes_asks_what_a_live_node_answers(live_store, pod, probe):
    asked = pod[probe]["httpGet"]
    (node,) = ray.nodes()
    agent = f"http://{node['NodeManagerAddress']}:{asked['port']}"
    url = SERVICE if SERVICE.endswith(f":{asked['port']}") else agent
    assert requests.get(url + asked["path"], timeout=10).status_code == 200


def test_what_the_image_copies_is_all_that_its_entries_import(tmp_path):
    """No container engine is wanted: the folder that the Dockerfile fills is filled here."""
    python_path = image.copy_into(tmp_path)
    done = image.import_entries(sys.executable, tmp_path, python_path)
    assert done.returncode == 0, done.stderr


def test_what_ray_uploads_is_the_code_without_models_and_secrets(live_store, tmp_path):
    planted = plant_secrets(tmp_path)
    seen = "import json, os; print(json.dumps([os.path.join(*at) for at in "
    seen += "((folder, name) for folder, _, names in os.walk('.') for name in names)]))"
    client = JobSubmissionClient(f"http://{ray.init(ignore_reinit_error=True).dashboard_url}")
    job = client.submit_job(
        entrypoint=f'{sys.executable} -c "{seen}"', runtime_env={"working_dir": str(tmp_path)}
    )
    wait_until(lambda: client.get_job_status(job).is_terminal(), "the job is over", 120)
    (line,) = re.findall(r"^\[.*\]$", client.get_job_logs(job), re.M)
    uploaded = {os.path.normpath(path) for path in json.loads(line)}
    assert {"serve_forecast_production.py", "forecast_service/tokens.py"} <= uploaded
    assert not uploaded & planted


def test_the_file_deploys_the_service_and_leaves_other_applications_alone(
    deploy, config, ask, histories
):
    status = deploy(change(config, replicas=1, models=2))
    assert {app["status"] for app in status["applications"].values()} == {"RUNNING"}
    assert {"default", "small", NAME} <= status["applications"].keys()
    direct = ask("customer_123", histories["customer_123"])
    answer = requests.post(
        URL,
        headers={"serve_multiplexed_model_id": "customer_123"},
        json={"sequence_data": histories["customer_123"]},
        timeout=30,
    )
    assert answer.content == direct.content
    assert answer.headers["X-Replica-Id"] != direct.headers["X-Replica-Id"]


def test_a_deployed_change_resizes_the_caches_and_the_pool_and_fails_no_request(deploy, config):
    deploy(change(config, replicas=1, models=2))
    trace = zipf_trace(len(OTHERS), 150, skew=0.5, seed=1)
    before = ask_in_turn(trace)
    assert cache_sizes(before) == [2]

    with Traffic() as traffic:
        deploy(change(config, replicas=2, models=3))
    seen = traffic.outcomes
    assert Counter(seen.status.tolist()) == {"200": len(seen.status)}
    old = set(before.replica)
    assert old < set(seen.replica), "the change was over before a request could meet it"

    after = ask_in_turn(trace)
    assert len(set(after.replica)) == 2 and not old & set(after.replica)
    assert cache_sizes(after) == [3]


def test_a_change_of_the_number_of_replicas_alone_keeps_the_warm_ones(deploy, config):
    deploy(change(config, replicas=1, models=3))
    few = np.arange(3)
    ask_in_turn(few)
    before = ask_in_turn(few)
    deploy(change(config, replicas=2, models=3))
    after = ask_in_turn(few)
    assert set(before.cache) == set(after.cache) == {"hit"}
    assert set(before.replica) == set(after.replica)


def test_a_misspelt_argument_is_refused_by_name(deploy, config):
    config["applications"][0]["args"]["models_per_replicas"] = 100
    with pytest.raises(RuntimeError, match="models_per_replicas"):
        deploy(config)
