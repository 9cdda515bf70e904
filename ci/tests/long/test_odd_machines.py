"""The tutorial runs on machines that are not as its author's, or says at once what to do."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

CONTENT = Path(__file__).parents[3] / "content"
NOTEBOOK_TIMEOUT_S = 600
OTHER_PORT = 8123
FOREIGN = "forecast_service", "lab", "train_models", "serve_forecast_multiplex", "client"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of content/, without what a run makes."""
    ignored = shutil.ignore_patterns("models", "__pycache__", "*_pb2*.py")
    return Path(shutil.copytree(CONTENT, tmp_path / "content", ignore=ignored))


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """An environment in which no other Ray is found, in a temporary folder with a short name."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "MODEL_STORE", "SERVICE_URL")) and "proxy" not in name
    }
    with tempfile.TemporaryDirectory(prefix="odd-", dir="/tmp") as ray:
        yield env | {"RAY_TMPDIR": ray}


def run(folder: Path, env: dict[str, str], cells: tuple[str, ...] | None = None) -> list[dict]:
    """Run the tutorial, or its cells of these ids, in a fresh kernel. Return the outputs."""
    book = nbformat.read(folder / "notebook.ipynb", as_version=4)
    if cells:
        book.cells = [cell for cell in book.cells if cell.id in cells]
    client = NotebookClient(
        book, timeout=NOTEBOOK_TIMEOUT_S, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=env)
    return [output for cell in book.cells for output in cell.get("outputs", ())]


def test_a_web_proxy_foreign_code_no_home_and_another_port_stop_nobody(
    folder, environment, tmp_path
):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in FOREIGN:
        (foreign / f"{name}.py").write_text(f"raise ImportError('a foreign {name} was imported')")
    jupyter = dict.fromkeys(
        ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "MPLCONFIGDIR"), str(tmp_path)
    )
    odd = {
        "http_proxy": "http://127.0.0.1:9",  # nobody is there
        "https_proxy": "http://127.0.0.1:9",
        "PYTHONPATH": str(foreign),
        "HOME": "/proc/nobody",  # where not even root can write
        "SERVICE_URL": f"http://127.0.0.1:{OTHER_PORT}",
    }
    with socket.create_server(("127.0.0.1", 8000)):  # the default port is somebody else's
        outputs = run(folder, environment | jupyter | odd)
    loud = [output.text for output in outputs if output.get("name") == "stderr"]
    assert loud == []


def test_the_cell_that_starts_ray_serve_names_who_has_the_port(folder, environment):
    with (
        socket.create_server(("127.0.0.1", 8000)),
        pytest.raises(CellExecutionError) as failed,
    ):
        run(folder, environment, ("numbers", "setup", "ray"))
    who = f"{psutil.Process().name()} (process {os.getpid()})"
    assert f"port 8000 is taken by {who}" in str(failed.value)
    assert "SERVICE_URL=http://127.0.0.1:8001" in str(failed.value)


def test_a_fresh_kernel_that_starts_at_the_launch_is_told_to_start_at_the_top(folder, environment):
    with pytest.raises(CellExecutionError, match="run the notebook from its first cell"):
        run(folder, environment, ("launch",))


def test_a_client_that_fails_fails_the_notebook(folder, environment):
    with pytest.raises(CellExecutionError, match="Connection refused"):
        run(folder, environment, ("client-file", "client-run"))


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_ray_says_of_a_long_temporary_folder_what_the_troubleshooting_says(
    environment, tmp_path, variable
):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    env = {name: value for name, value in environment.items() if name != "RAY_TMPDIR"}
    start = "import ray; ray.init('local', include_dashboard=False)"
    done = subprocess.run(
        [sys.executable, "-c", start],
        env=env | {variable: str(long)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    quoted = "AF_UNIX path length cannot exceed 107 bytes"
    assert quoted in done.stderr
    chapter = (CONTENT / "chapters" / "07_troubleshoot.md").read_text()
    (row,) = [line for line in chapter.splitlines() if quoted in line]
    assert "`RAY_TMPDIR" in row and "`TMPDIR`" in row
