"""serve_config.yaml on the live cluster: deployed, changed, deployed again, as a person would."""

import asyncio
import itertools
import subprocess
import threading
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import ray
import requests
import yaml
from conftest import CONTENT, NAMED, SERVICE

from capacity import lru_hit_rates
from notebook_tools import wait_until_running
from traffic import Outcomes, load_customers, send, zipf_trace

NAME, ROUTE = "from-file", "/from-file"  # "default" and "/" are the session's own application's
URL = f"{SERVICE}{ROUTE}/"
SETTLE_TIMEOUT_S = 90
REQUESTS_PER_S = 20  # while the service changes
OTHERS = [f"customer_{number:04d}" for number in range(1, 13)]  # than NAMED


def keys(settings) -> set[tuple]:
    """Return the path of every setting, from the outside in; list items have no place in it."""
    if isinstance(settings, dict):
        return {(key, *path) for key in settings for path in keys(settings[key]) | {()}}
    if isinstance(settings, list):
        return set().union(*map(keys, settings))
    return set()


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


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict:
    """What `serve build` writes."""
    file = tmp_path_factory.mktemp("build") / "built.yaml"
    build = ["serve", "build", "--app-dir", CONTENT, "serve_forecast_multiplex:app"]
    subprocess.run([*build, "--output-path", file], capture_output=True, check=True, timeout=60)
    return yaml.safe_load(file.read_text())


@pytest.fixture
def config(store) -> dict:
    """The file, changed to run beside the session's own application and from its store."""
    config = yaml.safe_load((CONTENT / "serve_config.yaml").read_text())
    (app,) = config["applications"]
    app |= {"name": NAME, "route_prefix": ROUTE}
    app["runtime_env"]["env_vars"]["MODEL_STORE"] = store.url
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
    app["runtime_env"]["env_vars"]["MODELS_PER_REPLICA"] = str(models)
    return config


def test_the_file_has_no_setting_that_serve_build_does_not_write(built):
    config = yaml.safe_load((CONTENT / "serve_config.yaml").read_text())
    (app,) = config["applications"]
    env_vars = app["runtime_env"].pop("env_vars")
    assert keys(config) <= keys(built)
    for name in "import_path", "route_prefix":
        assert app[name] == built["applications"][0][name]
    names = [deployment["name"] for deployment in app["deployments"]]
    assert names == [deployment["name"] for deployment in built["applications"][0]["deployments"]]
    assert all(isinstance(value, str) for value in env_vars.values()), "Ray takes only text"


def test_the_file_listens_on_loopback_unless_it_is_told_otherwise():
    config = yaml.safe_load((CONTENT / "serve_config.yaml").read_text())
    assert config["http_options"]["host"] == "127.0.0.1"


def test_the_file_deploys_the_service_and_leaves_other_applications_alone(
    deploy, config, ask, histories
):
    status = deploy(change(config, replicas=1, models=2))
    assert {app["status"] for app in status["applications"].values()} == {"RUNNING"}
    assert {"default", "portfolio", "grpc"} < status["applications"].keys()
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
    deploy(change(config, replicas=1, models=len(OTHERS)))
    everyone = np.arange(len(OTHERS))
    cold = ask_in_turn(everyone)
    assert set(cold.cache) == {"miss"}
    deploy(change(config, replicas=2, models=len(OTHERS)))
    warm = ask_in_turn(everyone)
    assert set(warm.cache) == {"hit"} and set(warm.replica) == set(cold.replica)
