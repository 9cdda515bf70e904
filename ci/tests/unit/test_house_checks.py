"""Each rule of the house can be broken: what breaks it is named, with what to do."""

import json
import subprocess
from pathlib import Path

import house
import pytest

PICTURE = '''"""A library.

Imports run downwards only:

    loader  store    how a model comes into memory
    errors           the ground floor
"""
'''
SERVICE = "from forecast_service import loader\n\n\n@serve.multiplexed\ndef load(): ...\n"


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}


def code(text: str, *outputs: dict, count: int | None = 1) -> dict:
    return markdown(text) | {
        "cell_type": "code",
        "execution_count": count,
        "outputs": list(outputs),
    }


def printed(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text.splitlines(keepends=True)}


def shown(**data: str) -> dict:
    data = {f"text/{kind}": text for kind, text in data.items()}
    return {"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": data}


def notebook(*cells: dict) -> str:
    return json.dumps(
        {"cells": cells, "metadata": house.METADATA, "nbformat": 4, "nbformat_minor": 5}
    )


PLOT = {"output_type": "display_data", "metadata": {}}
PLOT["data"] = {"image/png": "", "text/plain": "a plot in words: " + "word " * 40}
WRITE = code("%%writefile client.py\nimport requests\n", printed("Writing client.py"))
ASK = code("runpy.run_path('client.py')", printed("10.5 people on https://docs.ray.io/home"))
GOOD = {
    "README.md": '<img src="content/images/request.svg">\n',
    "requirements.txt": "",
    "convert_to_md.sh": "",
    "ci/tests.sh": "",
    "content/notebook.ipynb": notebook(markdown("# A title"), WRITE, ASK),
    "content/client.py": "import requests\n",
    "content/serve_forecast_multiplex.py": SERVICE,
    "content/train_models.py": "import forecast_service.store\n",
    "content/images/request.svg": "",
    "content/forecast_service/__init__.py": PICTURE,
    "content/forecast_service/loader.py": "from forecast_service.store import read\n",
    "content/forecast_service/store.py": "from forecast_service import errors\n",
    "content/forecast_service/errors.py": "import os\n\n\ndef ask():\n    return os.environ\n",
    "content/lab/__init__.py": "",
    "content/lab/traffic.py": "import train_models\nfrom forecast_service import loader\n",
    "content/torch_models/__init__.py": "",
    "content/torch_models/artifact.py": "from forecast_service.errors import x\n",
    "content/chapters/01_fleet.ipynb": notebook(
        code("1 + 1", shown(plain="2")), code("plot()", PLOT)
    ),
    "content/chapters/01_fleet.md": "![A plot](images/01.png)\n![CI](https://example.com/ci.svg)\n",
    "content/chapters/images/01.png": "",
}
TUTORIAL, CHAPTER = "content/notebook.ipynb", "content/chapters/01_fleet.ipynb"
LIBRARY = "content/forecast_service"
LONG = "x" * 101


def tutorial(*cells: dict) -> dict[str, str]:
    return {TUTORIAL: notebook(WRITE, ASK, *cells)}


BAD_TREES = {  # by what is wrong: the check, the files that are other ones, what it says
    "library imports an entry": (
        house.upward_imports,
        {f"{LIBRARY}/errors.py": "import os\nimport train_models\n"},
        "forecast_service/errors.py:2: imports train_models",
    ),
    "library imports the lab": (
        house.upward_imports,
        {f"{LIBRARY}/loader.py": "from lab import traffic\n"},
        "forecast_service/loader.py:1: imports lab",
    ),
    "library imports PyTorch models": (
        house.upward_imports,
        {f"{LIBRARY}/loader.py": "import torch_models.artifact\n"},
        "forecast_service/loader.py:1: imports torch_models.artifact",
    ),
    "library imports the floor above": (
        house.upward_imports,
        {f"{LIBRARY}/errors.py": "from forecast_service.store import read\n"},
        "forecast_service/errors.py:1: imports forecast_service.store, which is on a floor above",
    ),
    "library imports above in a function": (
        house.upward_imports,
        {f"{LIBRARY}/errors.py": "def f():\n    from forecast_service import loader\n"},
        "forecast_service/errors.py:2: imports forecast_service.loader",
    ),
    "library imports to the left": (
        house.upward_imports,
        {f"{LIBRARY}/store.py": "import forecast_service.loader\n"},
        "forecast_service/store.py:1: imports forecast_service.loader",
    ),
    "library has a module on no floor": (
        house.upward_imports,
        {f"{LIBRARY}/extra.py": ""},
        "forecast_service/extra.py: is on no floor: add it to the picture",
    ),
    "library imports with a dot": (
        house.upward_imports,
        {f"{LIBRARY}/loader.py": "from . import errors\n"},
        "forecast_service/loader.py:1: write the import from content/",
    ),
    "an entry imports the lab": (
        house.upward_imports,
        {"content/serve_grpc.py": "from lab.traffic import send\n"},
        "content/serve_grpc.py:1: imports lab.traffic",
    ),
    "a client imports ours": (
        house.upward_imports,
        {"content/client.py": "from forecast_service.errors import x\n"},
        "content/client.py:1: imports forecast_service.errors",
    ),
    "an entry imports a client": (
        house.upward_imports,
        {"content/train_models.py": "import client\n"},
        "content/train_models.py:1: imports client",
    ),
    "PyTorch models import an entry": (
        house.upward_imports,
        {"content/torch_models/artifact.py": "import train_models\n"},
        "content/torch_models/artifact.py:1: imports train_models",
    ),
    "the lab imports in a circle": (
        house.upward_imports,
        {
            "content/lab/traffic.py": "import lab.load\n",
            "content/lab/load.py": "import lab.traffic\n",
        },
        "is in a circle of imports: ",
    ),
    "the environment is read at import": (
        house.environment_reads_at_import,
        {f"{LIBRARY}/store.py": "import os\nSTORE = os.environ.get('MODEL_STORE')\n"},
        "forecast_service/store.py:2: reads the environment when it is imported",
    ),
    "the environment is read for a default": (
        house.environment_reads_at_import,
        {"content/serve_grpc.py": "from os import getenv\ndef f(x=getenv('X')): ...\n"},
        "content/serve_grpc.py:2: reads the environment",
    ),
    "settings are read at import": (
        house.environment_reads_at_import,
        {"content/serve_grpc.py": "class Service:\n    store = StoreSettings()\n"},
        "content/serve_grpc.py:2: reads the environment",
    ),
    "a deployment has a runtime_env": (
        house.runtime_envs,
        {"content/serve_grpc.py": "@deployment(x={'runtime_env': {}})\nclass X: ...\n"},
        "content/serve_grpc.py:1: declares a runtime_env",
    ),
    "options have a runtime_env": (
        house.runtime_envs,
        {f"{LIBRARY}/loader.py": "options = dict(\n    runtime_env={})\n"},
        "forecast_service/loader.py:2: declares a runtime_env",
    ),
    "a module imports private Ray": (
        house.private_ray,
        {"content/lab/traffic.py": "from ray.serve._private.constants import X\n"},
        "content/lab/traffic.py: uses ray.serve._private",
    ),
    "a cell uses private Ray": (
        house.private_ray,
        tutorial(code("%matplotlib inline\nprint(ray._private.worker)")),
        f"{TUTORIAL}, cell 3: uses ray._private",
    ),
    "a module is reloaded": (
        house.reloads,
        {"content/lab/traffic.py": "import importlib\nimportlib.reload(x)\n"},
        "content/lab/traffic.py: reloads a module",
    ),
    "a cell reloads": (
        house.reloads,
        {CHAPTER: notebook(code("from importlib import reload"))},
        f"{CHAPTER}, cell 1: reloads a module",
    ),
    "the service is long": (
        house.service_in_one_screen,
        {"content/serve_forecast_multiplex.py": SERVICE + "\n" * 76},
        "content/serve_forecast_multiplex.py: has 81 lines, at most 80",
    ),
    "the service is another": (
        house.service_in_one_screen,
        {"content/serve_forecast_multiplex.py": "pass\n"},
        "content/serve_forecast_multiplex.py: has no @serve.multiplexed",
    ),
    "the top level has more": (house.top_level, {"notes.txt": ""}, "notes.txt: the top level has"),
    "the top level has less": (house.top_level, {"requirements.txt": None}, "requirements.txt: is"),
    "a file has two writers": (
        house.owners,
        {CHAPTER: notebook(WRITE)},
        f"content/client.py: is written by {TUTORIAL}, cell 2 and {CHAPTER}, cell 1",
    ),
    "a file has two writers in one notebook": (
        house.owners,
        tutorial(WRITE),
        f"content/client.py: is written by {TUTORIAL}, cell 1 and {TUTORIAL}, cell 3",
    ),
    "a written file is missing": (
        house.owners,
        {"content/client.py": None},
        f"content/client.py: {TUTORIAL}, cell 2 writes it, and git does not have it",
    ),
    "a written file is ignored by git": (
        house.owners,
        {".gitignore": "client.py\n"},
        "content/client.py: content/notebook.ipynb, cell 2 writes it, and git does not have it",
    ),
    "a written file is another": (
        house.owners,
        {"content/client.py": "import aiohttp\n"},
        f"content/client.py: differs from what {TUTORIAL}, cell 2 writes",
    ),
    "a file is appended to": (
        house.owners,
        tutorial(code("%%writefile -a client.py\npass\n")),
        f"{TUTORIAL}, cell 3 writes it, and git does not have it",
    ),
    "a chapter has no rendering": (
        house.renderings,
        {"content/chapters/01_fleet.md": None},
        f"{CHAPTER}: has no content/chapters/01_fleet.md: run `bash convert_to_md.sh`",
    ),
    "a picture is missing": (
        house.renderings,
        {"content/chapters/images/01.png": None},
        "01_fleet.md: shows content/chapters/images/01.png, which git does not have",
    ),
    "a picture of README is missing": (
        house.renderings,
        {"content/images/request.svg": None},
        "README.md: shows content/images/request.svg, which git does not have",
    ),
    "a picture is shown nowhere": (
        house.renderings,
        {"content/chapters/images/02.png": ""},
        "content/chapters/images/02.png: no page shows it",
    ),
    "a page has no notebook": (
        house.renderings,
        {"content/chapters/09_good.md": ""},
        "content/chapters/09_good.md: renders no notebook",
    ),
    "no forecast": (
        house.late_forecast,
        {TUTORIAL: notebook(WRITE)},
        "no cell runs client.py",
    ),
    "a late forecast": (
        house.late_forecast,
        {TUTORIAL: notebook(*[markdown("words")] * 20, ASK)},
        f"{TUTORIAL}: the first forecast is in cell 21, at most 20",
    ),
    "a long README": (
        house.long_readme,
        {"README.md": "\n" * 901},
        "README.md: has 901 lines, at most 900",
    ),
}
BAD_NOTEBOOKS = {  # by what is wrong: the check, the notebook, its cells, what it says
    "a run left its times": (
        house.metadata,
        CHAPTER,
        [code("1") | {"metadata": {"tags": ["x"], "execution": {"iopub.execute_input": "2026"}}}],
        "cell 1: has metadata beside tags: ['execution', 'tags']",
    ),
    "an assert says nothing": (
        house.silent,
        CHAPTER,
        [code("assert a == 1, 'a is not 1'\nassert b"), code("%%bash\nassert c")],
        "cell 1: an assert says nothing: assert b",
    ),
    "a command's failure is not one": (
        house.silent,
        TUTORIAL,
        [code("%run client.py")],
        "cell 1: %run goes on after an error",
    ),
    "a command wider than the page": (
        house.wide_commands,
        CHAPTER,
        [markdown(f"{LONG}\n\n```bash\n{LONG}\n```\n\n{LONG}")],
        "cell 1: a line of a block has over 100 characters",
    ),
    "too many cells": (
        house.over_budget,
        CHAPTER,
        [markdown("x")] * 66,
        "has 66 cells, at most 65",
    ),
    "too many words": (
        house.over_budget,
        CHAPTER,
        [markdown("word " * 2301)],
        "has 2301 words of prose, at most 2300",
    ),
    "too many lines of code in all": (
        house.over_budget,
        CHAPTER,
        [code("x = 1\n\n" * 7)] * 65,
        "has 455 lines of code, at most 450",
    ),
    "fewer of them in the tutorial": (
        house.over_budget,
        TUTORIAL,
        [code("x = 1\n" * 10)] * 41,
        "has 410 lines of code, at most 400",
    ),
    "a long file": (
        house.over_budget,
        TUTORIAL,
        [code("%%writefile client.py\n" + "x = 1\n" * 81)],
        "cell 1: writes client.py with 81 lines, at most 80",
    ),
    "a long cell": (
        house.over_budget,
        CHAPTER,
        [code("x = 1\n" * 16)],
        "cell 1: has 16 lines, at most 15",
    ),
    "shorter ones in the tutorial": (
        house.over_budget,
        TUTORIAL,
        [code("x = 1\n" * 13)],
        "cell 1: has 13 lines, at most 12",
    ),
    "a cell that has not run": (
        house.outputs,
        CHAPTER,
        [ASK, code("1", count=None), code("2", count=None)],
        "cells 2, 3 have not run",
    ),
    "a wide line of code": (
        house.outputs,
        CHAPTER,
        [code(LONG)],
        "cell 1: a line of code is over 100 characters",
    ),
    "a wide line of text": (
        house.outputs,
        CHAPTER,
        [code("1", printed(f"ok\n{LONG}\n"))],
        "cell 1: prints a line of 101 characters, at most 100",
    ),
    "a wide result": (
        house.outputs,
        CHAPTER,
        [code("1", shown(plain=LONG))],
        "cell 1: prints a line of 101 characters",
    ),
    "an error": (
        house.outputs,
        CHAPTER,
        [code("1", {"output_type": "error", "ename": "KeyError", "evalue": "", "traceback": []})],
        "cell 1: ends in KeyError",
    ),
    "stderr": (house.outputs, CHAPTER, [code("1", printed("x", "stderr"))], "prints to stderr"),
    "colours": (house.outputs, CHAPTER, [code("1", printed("\x1b[33mx"))], "colours of a terminal"),
    **{
        f"the path {path}": (
            house.outputs,
            CHAPTER,
            [code("1", *outputs)],
            "cell 1: shows a path of the machine that ran it, " + path,
        )
        for path, outputs in {
            "/root/x": [printed("in /root/x\n")],
            "/work/main": [shown(plain="PosixPath('/work/main')")],
            "/tmp/ray": [shown(html="<td>file:///tmp/ray</td>")],
            "/home/ray": [printed("x", "stdout"), printed("(/home/ray)")],
        }.items()
    },
}


@pytest.fixture
def build(tmp_path):
    """Make a checkout of the good files, but for those that are given; None leaves one out."""

    def build(changes: dict[str, str | None]) -> Path:
        for name, text in (GOOD | changes).items():
            if text is not None:
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True, timeout=60)
        return tmp_path

    return build


def test_nothing_is_wrong_with_a_house_in_order(build):
    root = build({})
    assert [fault for check in house.CHECKS for fault in check(root)] == []
    for path in house.notebooks(root):
        assert [fault for check in house.NOTEBOOK_CHECKS for fault in check(root, path)] == []


@pytest.mark.parametrize("wrong", BAD_TREES)
def test_what_is_wrong_with_a_house_is_named(build, wrong):
    check, changes, expected = BAD_TREES[wrong]
    faults = check(build(changes))
    assert any(expected in fault for fault in faults), faults


def test_a_kernels_name_is_not_committed(build):
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    book = json.loads(notebook(code("1"))) | {"metadata": {"kernelspec": kernel}}
    (fault,) = house.metadata(build({CHAPTER: json.dumps(book)}), Path(CHAPTER))
    assert "its metadata are not" in fault and "convert_to_md.sh" in fault


@pytest.mark.parametrize("wrong", BAD_NOTEBOOKS)
def test_what_is_wrong_with_a_notebook_is_named(build, wrong):
    check, name, cells, expected = BAD_NOTEBOOKS[wrong]
    (fault,) = check(build({name: notebook(*cells)}), Path(name))
    assert fault.startswith(name) and expected in fault


def test_every_check_is_shown_to_fail():
    shown = {check for check, *_ in [*BAD_TREES.values(), *BAD_NOTEBOOKS.values()]}
    assert shown == {*house.CHECKS, *house.NOTEBOOK_CHECKS}
