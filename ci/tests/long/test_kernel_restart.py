"""Restart the tutorial's kernel while its service runs, and run the tutorial again."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.manager import start_new_kernel

CONTENT = Path(__file__).parents[3] / "content"
# What starts the service and asks it, and what stops it. The cells in between only look and try.
START_CELLS = "numbers", "setup", "ray", "train", "launch", "client-file", "client-run"
IMPORTS = "from ray import serve"  # which a cell in between does
STOP_CELL = "shutdown"
FOREIGN = "RAY_", "MODEL_STORE"  # variables of the environment: of another Ray, another store
CELL_TIMEOUT_S = 300
RAY_STOPS_S = 60
HTTP_PORT = 8000


@pytest.fixture
def kernel(tmp_path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A kernel in a copy of content/."""
    folder = tmp_path / "content"
    shutil.copytree(CONTENT, folder, ignore=shutil.ignore_patterns("models", "__pycache__"))
    env = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    env["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="kernel-")  # no other Ray is found there
    manager, client = start_new_kernel(kernel_name="python3", cwd=folder, env=env)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    shutil.rmtree(env["RAY_TMPDIR"], ignore_errors=True)


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """The source of each code cell, by the cell's id, in order."""
    cells = nbformat.read(CONTENT / "notebook.ipynb", as_version=4).cells
    return {cell.id: cell.source for cell in cells if cell.cell_type == "code"}


def run(client: BlockingKernelClient, source: str) -> str:
    """Run a cell, and return what it prints. Fails if it raises an error."""
    printed = []

    def keep(message: dict) -> None:
        printed.append(message["content"].get("text", ""))

    reply = client.execute_interactive(source, timeout=CELL_TIMEOUT_S, output_hook=keep)["content"]
    assert reply["status"] == "ok", f"{source}\n{reply.get('ename')}: {reply.get('evalue')}"
    return "".join(printed)


def listeners() -> set[int]:
    """Return the processes that listen on the service's port."""
    return {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == HTTP_PORT
    }


def test_a_kernel_that_is_restarted_takes_its_service_with_it_and_runs_the_tutorial_again(
    kernel, sources
):
    manager, client = kernel
    *_, before = [run(client, sources[name]) for name in START_CELLS]
    left = listeners()
    assert len(left) == 1

    manager.restart_kernel(now=True)  # it is killed: nothing is shut down in order
    client.wait_for_ready(timeout=CELL_TIMEOUT_S)
    deadline = time.monotonic() + RAY_STOPS_S
    while listeners() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not listeners(), "the service outlives the kernel that started it"

    *_, after = [run(client, sources[name]) for name in START_CELLS]
    assert "forecast" in after and after == before
    assert len(listeners()) == 1 and listeners() != left
    run(client, IMPORTS)
    run(client, sources[STOP_CELL])
    assert not listeners(), "the tutorial leaves a service behind"
