"""The template's tests.sh, in one folder with the template, and with notebooks that need no Ray."""

import os
import re
import subprocess
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from template_files import TEMPLATE_NAME, files_in

SLEEPER = """\
import subprocess
sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
open("sleeper.pid", "w").write(str(sleeper.pid))
"""


@pytest.fixture
def flattened(exported, template, tmp_path) -> Path:
    for folder in template, exported / "tests" / TEMPLATE_NAME:
        for file in files_in(folder):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_bytes((folder / file).read_bytes())
    return tmp_path


def start_tests(folder: Path, *cells: str, **settings: str) -> subprocess.Popen:
    """Start tests.sh as the console does, on a notebook with these cells."""
    nbformat.write(new_notebook(cells=list(map(new_code_cell, cells))), folder / "README.ipynb")
    env = os.environ | {"TMPDIR": str(folder)} | settings
    return subprocess.Popen(
        ["bash", "tests.sh"], cwd=folder, env=env, text=True, stderr=subprocess.PIPE
    )


def sleeper_of(folder: Path, timeout_s: float = 60) -> psutil.Process:
    deadline = time.monotonic() + timeout_s
    while not (folder / "sleeper.pid").exists() or not (folder / "sleeper.pid").read_text():
        assert time.monotonic() < deadline, "the notebook did not start"
        time.sleep(0.1)
    return psutil.Process(int((folder / "sleeper.pid").read_text()))


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


BESIDE = """\
from pathlib import Path
import forecasting
assert Path("data/footfall.npz").exists()
"""


@pytest.mark.parametrize(
    ("last_cell", "outcome"), [(BESIDE, 0), ("raise RuntimeError('broken')", 1)]
)
def test_the_test_passes_if_all_cells_do_and_leaves_nothing_running(flattened, last_cell, outcome):
    tests = start_tests(flattened, SLEEPER, last_cell)
    errors = tests.communicate(timeout=120)[1]
    assert tests.returncode == outcome, errors
    assert gone(sleeper_of(flattened)), "what the notebook started goes on"


def test_a_test_that_is_terminated_stops_what_the_notebook_started(flattened):
    tests = start_tests(flattened, SLEEPER, "sleeper.wait()")
    sleeper = sleeper_of(flattened)
    tests.terminate()
    tests.communicate(timeout=60)
    assert tests.returncode != 0 and gone(sleeper)


def test_a_test_that_takes_too_long_fails(flattened):
    tests = start_tests(flattened, "import time; time.sleep(600)", TIME_LIMIT_S="5")
    tests.communicate(timeout=60)
    assert tests.returncode == 124


def test_the_test_stops_at_errors_and_installs_nothing_that_a_workspace_repeats(exported):
    script = (exported / "tests" / TEMPLATE_NAME / "tests.sh").read_text()
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands[0] == "set -euxo pipefail"
    assert not re.search(r"(?<!uv )\bpip install", "\n".join(commands))
