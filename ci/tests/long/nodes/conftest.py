"""Fixtures: a cluster of several nodes, the fleet trained across them, and a drill: a node is lost.

    pytest ci/tests/long/nodes    in a process of its own: Ray is imported with settings of its own

The nodes are processes of this machine, and so a folder can be the model store of all of them. On
machines of their own they need one that each of them reaches, such as s3://bucket/models.
"""

import asyncio
import itertools
import os
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

CONTENT = Path(__file__).parents[4] / "content"
sys.path.insert(0, str(CONTENT))
TEMPORARY = tempfile.mkdtemp(prefix="nodes-")
os.environ |= {
    "PYTHONPATH": str(CONTENT),  # for Ray's workers
    "MODEL_STORE": f"{TEMPORARY}/models",
    "RAY_TMPDIR": TEMPORARY,  # another Ray on this machine does not find this one, nor reverse
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # wherever it is: listen on loopback only
}

import ray  # noqa: E402
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402
from ray.util.state import list_actors, list_tasks  # noqa: E402

import train_models  # noqa: E402
from drill import WORKERS, Answer, Customer, Drill, ask_all, report, worker_ids  # noqa: E402
from forecast_service.artifact import folded_from_bytes  # noqa: E402
from forecast_service.contract import ForecastRequest, respond  # noqa: E402
from forecast_service.settings import Settings  # noqa: E402
from forecast_service.store import ModelStore  # noqa: E402
from lab.serving import launch, wait_until, wait_until_running  # noqa: E402
from lab.traffic import load_customers, send, zipf_trace  # noqa: E402
from serve_forecast_production import ForecastingService  # noqa: E402

CPUS_PER_NODE = 2  # whatever the machine has: Ray takes it as told
DEADLINE_S = 60
SETTINGS = {
    "models_per_replica": 40,  # of 470: most requests wait for the store, and so
    "store_added_delay_s": 0.3,  # some are at work on a node whenever it is lost
}
LOAD_RATE = 15  # requests per second
CLIENTS = 16  # at a time
ANSWERS_PER_PHASE = 150
TABLE = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A head that has no CPUs and runs no work, and WORKERS nodes. Nothing is left of it after."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(WORKERS):
        cluster.add_node(num_cpus=CPUS_PER_NODE, wait=False)
    cluster.wait_for_nodes()
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address  # for serve and Ray's state
    yield cluster
    processes = psutil.Process().children(recursive=True)
    ray.shutdown()
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=False)
    cluster.shutdown()
    _, left = psutil.wait_procs(processes, timeout=DEADLINE_S)
    shutil.rmtree(TEMPORARY)
    assert not left, f"still running: {left}"


@pytest.fixture(scope="session")
def trained(cluster) -> Counter:
    """Tasks by node, of training the whole fleet."""

    @ray.remote
    def start_worker_process() -> None:
        import train_models  # noqa: F401

    # A node whose first process is still starting would find the work done by the others.
    strategies = [NodeAffinitySchedulingStrategy(node, soft=False) for node in worker_ids(cluster)]
    ray.get([start_worker_process.options(scheduling_strategy=s).remote() for s in strategies])
    train_models.main()
    nodes: list[str] = []

    def all_are_listed() -> bool:
        tasks = list_tasks(filters=[("name", "=", "train_batch")], detail=True, limit=1000)
        nodes[:] = [task.node_id for task in tasks if task.state == "FINISHED"]
        return len(nodes) * train_models.BATCH_SIZE >= len(load_customers()[0])

    wait_until(all_are_listed, "every training task is listed", DEADLINE_S)
    return Counter(nodes)


@pytest.fixture(scope="session")
def customers(trained) -> list[Customer]:
    """Every customer, with the answer that its stored model gives in this process."""
    store = ModelStore()

    async def expect(customer_id: str, history: list[int]) -> Customer:
        model = folded_from_bytes((await store.read(customer_id)).data, customer_id)
        answer = respond(model, ForecastRequest(sequence_data=history))
        body = answer.model_dump_json(exclude_none=True).encode()
        return Customer(customer_id, history, body)

    async def expect_all() -> list[Customer]:
        ids, histories = load_customers()
        return await asyncio.gather(*map(expect, ids, histories.tolist()))

    return asyncio.run(expect_all())


@pytest.fixture(scope="session")
def url(customers) -> str:
    """The service's. The proxies of all nodes share the port, as they would a load balancer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    service = ForecastingService.options(num_replicas=WORKERS, max_replicas_per_node=1)
    launch(service.bind(Settings(**SETTINGS)))
    wait_until_running(replicas=WORKERS)
    return f"http://127.0.0.1:{port}"


def place() -> Counter:
    """Return the number of the service's replicas by node."""
    actors = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
    return Counter(
        actor.node_id for actor in actors if actor.class_name.startswith("ServeReplica:default")
    )


def replica_states() -> dict[str, int]:
    (deployment,) = serve.status().applications["default"].deployments.values()
    return deployment.replica_states


def sweep(url: str, customers: list[Customer]) -> list[Answer]:
    """Ask for each customer once."""
    answers: list[Answer] = []
    asyncio.run(ask_all(url, customers, CLIENTS, answers))
    return answers


@pytest.fixture(scope="session")
def drill(cluster, url, customers, request) -> Drill:
    """Lose a node under load, wait until Ray Serve notices, add one, wait until it serves."""
    proxies = set(serve.status().proxies)
    placed, swept = {"before": place()}, {"before": sweep(url, customers)}
    ids, histories = load_customers()
    answers: list[Answer] = []
    stopping = False

    def until_stopped(skew: float, seed: int) -> Iterator[int]:
        trace = itertools.cycle(zipf_trace(len(ids), 10_000, skew, seed).tolist())
        return itertools.takewhile(lambda _: not stopping, trace)

    def wait_for_answers() -> None:
        enough = len(answers) + ANSWERS_PER_PHASE
        more = f"{ANSWERS_PER_PHASE} more requests are answered"
        wait_until(lambda: len(answers) >= enough, more, DEADLINE_S)

    with ThreadPoolExecutor() as pool:
        trace = until_stopped(skew=1, seed=0)
        options = {"rate": LOAD_RATE, "timeout_s": DEADLINE_S, "progress": False}
        sent = pool.submit(asyncio.run, send(url, ids, histories, trace, **options))
        asked = (customers[row] for row in until_stopped(skew=0, seed=1))
        checked = pool.submit(asyncio.run, ask_all(url, asked, CLIENTS, answers))
        try:
            wait_for_answers()
            # SIGKILL, as when a machine is taken away; but its connections are closed for it.
            lost = next(iter(cluster.worker_nodes))
            processes = psutil.Process(lost.all_processes["raylet"][0].process.pid).children(True)
            cluster.remove_node(lost, allow_graceful=False)
            start = time.monotonic()
            noticed = "the loss is noticed"
            wait_until(lambda: replica_states() != {"RUNNING": WORKERS}, noticed, DEADLINE_S)
            noticed_s = time.monotonic() - start
            wait_for_answers()
            placed["without it"] = place()
            start = time.monotonic()
            cluster.add_node(num_cpus=CPUS_PER_NODE)
            wait_until_running(replicas=WORKERS, timeout_s=DEADLINE_S)
            returned_s = time.monotonic() - start
            wait_for_answers()
        finally:
            stopping = True
        outcomes = sent.result()
        checked.result()
    placed["after"], swept["after"] = place(), sweep(url, customers)
    _, left = psutil.wait_procs(processes, timeout=DEADLINE_S)
    assert not left, f"still running on the lost node: {left}"
    drill = Drill(proxies, placed, swept, outcomes, answers, noticed_s, returned_s)
    request.config.stash[TABLE] = report(drill)
    return drill


def pytest_terminal_summary(terminalreporter, config) -> None:
    for line in config.stash.get(TABLE, []):
        terminalreporter.write_line(line)
