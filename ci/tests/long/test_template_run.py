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

pytest_plugins = ["exported_template"]

SLEEPER = """\
import subprocess
sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
open("sleeper.pid", "w").write(str(sleeper.pid))
"""


@pytest.fixture
def flattened(exported, template, tmp_path) -> Path:
    for folder in template, exported / "tests" / TEMPLATE_NAME:
        for file in files_in(folder):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes((folder / file).read_bytes())
    for chapter in tmp_path.glob("chapters/*"):
        chapter.unlink()
    return tmp_path


def write(path: Path, *cells: str) -> None:
    nbformat.write(new_notebook(cells=list(map(new_code_cell, cells))), path)


def start_tests(
    folder: Path, *cells: str, stdout: str = os.devnull, **settings: str
) -> subprocess.Popen:
    """Start tests.sh as the console does, on a tutorial with these cells."""
    write(folder / "README.ipynb", *cells)
    env = os.environ | {"TMPDIR": str(folder)} | settings
    with open(stdout, "w") as said:
        return subprocess.Popen(
            ["bash", "tests.sh"],
            cwd=folder,
            env=env,
            text=True,
            stdout=said,
            stderr=subprocess.PIPE,
        )


def sleeper_of(folder: Path, timeout_s: float = 60) -> int:
    """Return the process that the notebook started, when it has."""
    deadline = time.monotonic() + timeout_s
    while not (folder / "sleeper.pid").exists() or not (folder / "sleeper.pid").read_text():
        assert time.monotonic() < deadline, "the notebook did not start"
        time.sleep(0.1)
    return int((folder / "sleeper.pid").read_text())


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


BESIDE = """\
from pathlib import Path
import forecast_service.model
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


IN_CHAPTERS = """\
import os
from pathlib import Path
assert Path.cwd().name == "chapters"
os.chdir("..")
done = Path("done.txt")
done.write_text(done.read_text() + "{name} ") if done.exists() else done.write_text("{name} ")
"""
ALONE = """\
import psutil
from pathlib import Path
sleeper = int(Path("sleeper.pid").read_text())
assert not psutil.pid_exists(sleeper) or psutil.Process(sleeper).status() == "zombie"
"""


def test_chapters_run_after_the_tutorial_one_by_one_but_for_those_with_requirements(flattened):
    write(flattened / "chapters" / "01_a.ipynb", IN_CHAPTERS.format(name="01_a"), ALONE, SLEEPER)
    write(flattened / "chapters" / "02_b.ipynb", IN_CHAPTERS.format(name="02_b"), ALONE)
    write(flattened / "chapters" / "special.ipynb", "raise RuntimeError('it was run')")
    (flattened / "chapters" / "requirements_special.txt").write_text("special==1.0")
    tests = start_tests(flattened, SLEEPER, stdout=str(flattened / "stdout"))
    errors = tests.communicate(timeout=180)[1]
    assert tests.returncode == 0, errors
    assert (flattened / "done.txt").read_text() == "01_a 02_b "
    assert "LEFT OUT: chapters/special.ipynb" in (flattened / "stdout").read_text()
    assert gone(sleeper_of(flattened))


def test_a_chapter_that_fails_fails_the_test(flattened):
    write(flattened / "chapters" / "01_a.ipynb", "raise RuntimeError('broken')")
    tests = start_tests(flattened, "pass")
    tests.communicate(timeout=120)
    assert tests.returncode == 1


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
