"""Restart the notebook's kernel while its service runs, and run the notebook again."""

import shutil
import subprocess
import sys
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
START_CELLS = "setup", "ray", "settings", "serve-run-code", "ready-code", "client-code"
STOP_CELLS = "shutdown-serve", "shutdown-ray"
CELL_TIMEOUT_S = 300
RAY_STOPS_S = 60
HTTP_PORT = 8000


@pytest.fixture
def kernel(tmp_path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A kernel in a copy of content/, where the models are trained."""
    folder = tmp_path / "content"
    shutil.copytree(CONTENT, folder, ignore=shutil.ignore_patterns("models", "__pycache__"))
    subprocess.run([sys.executable, "train_models.py"], cwd=folder, check=True)
    manager, client = start_new_kernel(kernel_name="python3", cwd=folder)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


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


def test_a_kernel_that_is_restarted_takes_its_service_with_it_and_runs_the_notebook_again(
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
    assert after == before
    assert len(listeners()) == 1 and listeners() != left
    for name in STOP_CELLS:
        run(client, sources[name])
    assert not listeners(), "the notebook leaves a service behind"
