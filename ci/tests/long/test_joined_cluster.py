"""Run the tutorial on a cluster that somebody else has started, as in a workspace.

Its head runs no work, and its worker cannot see the tutorial's files: a mount namespace of its own
hides them. The models lie in a folder that both see. Wants Linux, and root for `unshare`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import nbformat
import psutil
import pytest

CONTENT = Path(__file__).parents[3] / "content"
START_TIMEOUT_S, STOP_TIMEOUT_S, NOTEBOOK_TIMEOUT_S = 60, 30, 600
GCS_PORT = "6380"
ADDRESS = f"127.0.0.1:{GCS_PORT}"
NEIGHBOUR = "neighbour"  # an application that is there before the tutorial
HIDE_AND_EXEC = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
DEPLOY_NEIGHBOUR = f"""
from ray import serve

@serve.deployment(ray_actor_options={{"num_cpus": 0.1}})
class Neighbour:
    def __call__(self, request) -> str:
        return "still here"

serve.run(Neighbour.bind(), name="{NEIGHBOUR}", route_prefix="/{NEIGHBOUR}")
"""
LOOK_FROM_WORKER = """
import json, os, sys
import ray

@ray.remote(num_cpus=1)  # of which the head has none
def look(paths: list[str]) -> tuple[str, list[bool]]:
    return ray.get_runtime_context().get_node_id(), [os.path.exists(path) for path in paths]

ray.init(log_to_driver=False)
print(json.dumps(ray.get(look.remote(sys.argv[1:]))))
"""
LIST_APPLICATIONS = """
import json
from ray import serve

print(json.dumps({name: app.status for name, app in serve.status().applications.items()}))
"""
LIST_REPLICAS = """
import json
import ray
from ray.util.state import list_actors

ray.init(log_to_driver=False)
actors = list_actors(limit=1000)  # the dead ones too
replicas = [actor for actor in actors if actor.class_name.startswith("ServeReplica:")]
print(json.dumps([[actor.class_name, actor.state, actor.node_id] for actor in replicas]))
"""


class Joined(NamedTuple):
    """What was seen of the cluster, and what became of the tutorial."""

    executed: subprocess.CompletedProcess
    notebook: nbformat.NotebookNode
    checkout: Path
    worker: str  # its node
    visible: list[bool]  # from the worker: the tutorial's marker, the models
    applications: dict[str, str]  # after the tutorial: status by name
    replicas: list[tuple[str, str, str]]  # after it: class, state and node, the dead ones too


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[psutil.Popen]:
    """Run a command that lasts, and end it with all that it has started."""
    with log.open("w") as output:
        process = psutil.Popen(command, env=env, stdout=output, stderr=output, cwd=log.parent)
    try:
        yield process
    finally:
        tree = process.children(recursive=True)
        process.terminate()
        _, alive = psutil.wait_procs([process, *tree], STOP_TIMEOUT_S)
        for left in alive:
            left.kill()
        psutil.wait_procs(alive, STOP_TIMEOUT_S)


def wait_for_nodes(nodes: int, env: dict[str, str]) -> None:
    """Return when so many nodes are alive. Raises TimeoutError."""
    code = "import ray; ray.init(log_to_driver=False, logging_level='error'); "
    code += "print(sum(node['Alive'] for node in ray.nodes()))"
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        if done.stdout.split()[-1:] == [str(nodes)]:
            return
    raise TimeoutError(f"no {nodes} nodes after {START_TIMEOUT_S} s: {done.stdout}{done.stderr}")


def report(code: str, env: dict[str, str], *arguments: object) -> object:
    """Run a script on the cluster, from a folder without files, and return what it prints last."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, env=env, cwd=env["RAY_TMPDIR"], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def joined() -> Iterator[Joined]:
    """Run the tutorial in a copy of content/, on a cluster of a head and a worker."""
    permitted = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True)
    if permitted.returncode:
        pytest.skip(f"hiding files from a node wants root: {permitted.stderr.strip()}")
    with ExitStack() as stack:
        # Ray's sockets lie below it, and their paths have to be short.
        folder = Path(tempfile.mkdtemp(prefix="joined-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        checkout, empty, models = folder / "checkout", folder / "empty", folder / "models"
        ignored = shutil.ignore_patterns("models", "__pycache__", ".ipynb_checkpoints")
        shutil.copytree(CONTENT, checkout, ignore=ignored)
        marker = checkout / "marker"
        marker.touch()
        empty.mkdir()
        models.mkdir()
        foreign = "RAY_", "PYTHONPATH", "MODEL_STORE"  # of another Ray, another copy
        env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        env |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",  # on all sides, or they would refuse one another
            "RAY_TMPDIR": str(folder),
            "MODEL_STORE": str(models),
        }
        start = "ray", "start", "--block", "--node-ip-address=127.0.0.1"
        head = [*start, "--head", f"--port={GCS_PORT}", "--num-cpus=0"]
        stack.enter_context(running(head, env, folder / "head.log"))
        inside = env | {"RAY_ADDRESS": ADDRESS}
        wait_for_nodes(1, inside)
        worker = [*start, f"--address={ADDRESS}", "--num-cpus=4"]
        worker.append("--dashboard-agent-listen-port=0")  # the head's has the usual one
        hidden = ["unshare", "-m", "bash", "-c", HIDE_AND_EXEC, "_", str(empty), str(checkout)]
        stack.enter_context(running([*hidden, *worker], env, folder / "worker.log"))
        wait_for_nodes(2, inside)
        subprocess.run([sys.executable, "-c", DEPLOY_NEIGHBOUR], env=inside, check=True, cwd=folder)
        command = ["jupyter", "nbconvert", "--to=notebook", "--execute", "--output=executed.ipynb"]
        command += [f"--ExecutePreprocessor.timeout={NOTEBOOK_TIMEOUT_S}", "notebook.ipynb"]
        executed = subprocess.run(command, cwd=checkout, env=inside, capture_output=True, text=True)
        ran = checkout / "executed.ipynb"
        source = ran if executed.returncode == 0 else checkout / "notebook.ipynb"
        node, visible = report(LOOK_FROM_WORKER, inside, marker, models / "customer_123")
        yield Joined(
            executed,
            nbformat.read(source, as_version=4),
            checkout,
            node,
            visible,
            report(LIST_APPLICATIONS, inside),
            [tuple(replica) for replica in report(LIST_REPLICAS, inside)],
        )


def test_every_cell_of_the_tutorial_runs_on_a_cluster_that_it_has_joined(joined):
    assert joined.executed.returncode == 0, joined.executed.stderr[-5000:]
    code = [cell for cell in joined.notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.execution_count for cell in code), "a cell was left out"


def test_the_worker_cannot_see_the_tutorial_but_its_models(joined):
    assert (joined.checkout / "marker").exists()
    assert joined.visible == [False, True], "the worker sees the checkout, or not the store"


def test_every_replica_ran_on_the_worker(joined):
    own = [replica for replica in joined.replicas if NEIGHBOUR not in replica[0]]
    assert own, "the tutorial has deployed nothing on this cluster"
    assert {node for *_, node in own} == {joined.worker}


def test_the_tutorial_removes_its_own_applications_and_leaves_the_others(joined):
    assert joined.applications == {NEIGHBOUR: "RUNNING"}
    alive = {name for name, state, _ in joined.replicas if state == "ALIVE"}
    assert alive == {f"ServeReplica:{NEIGHBOUR}:Neighbour"}
