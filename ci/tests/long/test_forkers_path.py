"""The ten steps of chapter 08, as they stand there, with a table and a family of one's own."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import requests

from forecast_service.settings import HOME
from lab.this_machine import listeners
from train_models import load_footfall

for package in "polars", "lightgbm", "skl2onnx", "onnxruntime":
    pytest.importorskip(package, reason="pip install -r chapters/requirements_08_own_models.txt")

CHAPTER = HOME / "chapters" / "08_own_models.ipynb"
CELL = "order"
FILES = "data/", "own_models/families.py", "forecast_service/model.py", "lab/check_service.py"
FAMILY = '''

def last_week(lags, future):
    """Forecast last week's values: a family of one's own."""
    take = helper.make_node("Slice", ["counts", "first", "last", "axis"], ["forecast"])
    numbers = {"first": LAGS - HORIZON, "last": LAGS, "axis": 1}
    graph = helper.make_graph(
        [take],
        "last_week",
        [helper.make_tensor_value_info("counts", TensorProto.FLOAT, ["n", LAGS])],
        [helper.make_tensor_value_info("forecast", TensorProto.FLOAT, ["n", HORIZON])],
        [helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in numbers.items()],
    )
    imports = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


FAMILIES["last week"] = last_week
'''
SHOPS, DAYS, YOUNG_DAYS = 6, 500, 50
COMMAND_TIMEOUT_S = 300


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """The table's steps: what each is, and the command or the edit."""
    (cell,) = [c for c in nbformat.read(CHAPTER, as_version=4).cells if c.id == CELL]
    rows = re.findall(r"^\| (\d+)\. (.+?) \| (.+?) \| (.+?) \|$", cell.source, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 11)), "there are not ten steps"
    named = " ".join(files for _, _, files, _ in rows)
    assert all(name in named for name in FILES)
    return [(what, do) for _, what, _, do in rows]


def command_of(steps: list[tuple[str, str]], what: str) -> list[str]:
    """Return the command of a step."""
    (do,) = (do for name, do in steps if name == what)
    command = shlex.split(re.match(r"`([^`]+)`", do)[1])
    return [sys.executable, *command[1:]] if command[0] == "python" else command


@pytest.fixture(scope="module")
def fork(tmp_path_factory) -> Path:
    """A copy, with another table and another family."""
    folder = tmp_path_factory.mktemp("fork")
    copy = folder / "content"
    shutil.copytree(HOME, copy, ignore=shutil.ignore_patterns("models", "__pycache__"))
    shutil.copy(HOME.parent / "requirements.txt", folder)
    counts = load_footfall()[2]
    rows = [
        f"shop_{shop + 1},{np.datetime64('2024-01-01') + day},{counts[shop * 50, day]}"
        for shop in range(SHOPS)
        for day in range(DAYS)
    ]
    (copy / "data" / "visitors.csv").write_text("\n".join(["customer,date,value", *rows]))
    with (copy / "own_models" / "families.py").open("a") as file:
        file.write(FAMILY)
    return copy


@pytest.fixture(scope="module")
def run(fork, steps) -> Iterator:
    """Run the command of a step in the copy, on a Ray of its own."""
    scratch = tempfile.mkdtemp(prefix="fork-", dir="/tmp")
    foreign = "RAY_", "MODEL_STORE", "PYTHONPATH"
    environment = {n: v for n, v in os.environ.items() if not n.startswith(foreign)}
    environment |= {
        "RAY_TMPDIR": scratch,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment |= {"MODEL_STORE": str(fork / "my-models")}  # the step on the store
    environment |= {"RAY_AUTH_MODE": "disabled"}  # commands and cluster would disagree
    how = {"cwd": fork, "env": environment, "capture_output": True, "text": True}

    def run(what: str, *more: str) -> subprocess.CompletedProcess:
        command = [*command_of(steps, what), *more]
        return subprocess.run(command, **how, timeout=COMMAND_TIMEOUT_S)

    start = ["ray", "start", "--head", "--port=6390", "--include-dashboard=true"]
    subprocess.run(start, **how, check=True, timeout=120)
    environment["RAY_ADDRESS"] = "127.0.0.1:6390"
    yield run
    # by the fork's own address: no other Ray on this machine is touched
    subprocess.run(["serve", "shutdown", "-y"], **how, timeout=120)
    for process in _rays_in(scratch):
        process.kill()
    shutil.rmtree(scratch, ignore_errors=True)


def _rays_in(scratch: str) -> list:
    """Return the processes of the Ray whose files are in a folder."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if scratch in " ".join(process.info["cmdline"] or ())
        or (process.info["environ"] or {}).get("RAY_TMPDIR") == scratch
    ]


def test_the_ten_steps_lead_to_a_service_of_ones_own(fork, run, steps):
    assert not listeners(), "the port is taken"
    read = run("your data")
    assert read.returncode == 0, read.stdout + read.stderr
    assert f"{SHOPS} customers, {DAYS} days" in read.stdout

    trained = run("train", "--family", "last week")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    stored = {path.parent.name for path in (fork / "my-models").glob("*/model.safetensors")}
    assert stored == {f"shop_{number + 1}" for number in range(SHOPS)}

    served = run("serve", "--non-blocking")
    assert served.returncode == 0, served.stdout + served.stderr
    history = list(range(1, 29))
    answer = requests.post(
        "http://127.0.0.1:8000/",
        headers={"serve_multiplexed_model_id": "shop_2"},
        json={"sequence_data": history},
        timeout=30,
    )
    assert answer.json()["forecast"] == history[-7:], "it is not the fork's own family that answers"

    checked = run("check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    sized = run("size")
    assert sized.returncode == 0 and "hit rate" in sized.stdout, sized.stderr


def test_a_customer_who_is_too_young_for_a_model_is_named_and_the_others_are_trained(fork, run):
    table = fork / "data" / "visitors.csv"
    clean = table.read_text()
    young = [f"Young shop,{np.datetime64('2025-05-14') - day},1" for day in range(YOUNG_DAYS)]
    table.write_text("\n".join([clean, *young]))
    trained = run("train", "--family", "linear")
    table.write_text(clean)
    assert trained.returncode == 1 and f"{SHOPS} models in" in trained.stdout
    reason = f"Young shop: {b'Young shop'.hex()}: {YOUNG_DAYS} days are too few"
    assert f"no model for 1 of the customers:\n{reason}" in trained.stderr


def test_the_commands_of_the_steps_are_there(steps):
    """Those that the path above does not run: they edit files, or install packages."""
    edits = {what: do for what, do in steps if not do.startswith("`")}
    assert set(edits) == {"your model", "your horizon", "your store", "ship"}
    installed = command_of(steps, "copy")
    files = [name for name in installed if name.endswith(".txt")]
    assert len(files) == 2 and all((HOME / name).exists() for name in files)
