"""The exported template by the rules of the console's repository, and what the export refuses.

The rules are those of the checks in github.com/anyscale/templates.
"""

import json
import os
import posixpath
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import mistune
import nbformat
import pytest
import yaml
from anyscale.compute_config.models import ComputeConfig

import export_template
import template_lock
from template_files import TEMPLATE_NAME, files_in, notebooks, prose, run_export

pytest_plugins = ["exported_template"]

CONTENT = export_template.CONTENT
RAW = f"https://raw.githubusercontent.com/anyscale/templates/main/templates/{TEMPLATE_NAME}/"
WAY = f"{RAW}images/request.svg"
PAGE = f"https://github.com/anyscale/templates/blob/main/templates/{TEMPLATE_NAME}/"


def closed(**properties) -> dict:
    """A JSON schema of an object that has these properties, all of them, and no others."""
    whole = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **whole}


MACHINES = closed(
    head_node=closed(
        instance_type={"enum": ["m5.2xlarge", "n2-standard-8"]},
        resources=closed(CPU={"const": 0}),
    ),
    auto_select_worker_config={"const": True},
)
ENTRY = closed(
    name={"type": "string", "pattern": "^[a-z0-9_-]+$"},
    owner_team={"const": "ray-serve"},
    dir={"const": f"templates/{TEMPLATE_NAME}"},
    cluster_env=closed(image_uri={"const": "anyscale/ray:2.60.0-slim-py312"}),
    compute_config=closed(
        AWS={"const": f"configs/{TEMPLATE_NAME}/aws.yaml"},
        GCP={"const": f"configs/{TEMPLATE_NAME}/gce.yaml"},
    ),
    test=closed(
        command={"const": "bash tests.sh"},
        tests_path={"const": f"tests/{TEMPLATE_NAME}/"},
        timeout_in_sec={"type": "integer", "exclusiveMinimum": 0, "maximum": 1800},
    ),
)
SUFFIXES = "ipynb|md|py|proto|yaml|json|txt|lock|npz|svg|env"
FOLDERS = "chapters|chapters/images|data|deploy|forecast_service|images|lab|own_models|torch_models"
UNLIKE_THEM = r"deploy/Dockerfile|\.gitignore"
NEEDED = (
    "README.ipynb",
    "README.md",
    "requirements.txt",
    "python_depset.lock",
    ".gitignore",
    "service.yaml",
    "serve_forecast_production.py",
    "forecast_service/settings.py",
    "lab/local_ray.py",
    "deploy/requirements.txt",
    "deploy/Dockerfile",
    "chapters/requirements_pytorch_s3.txt",
)
TREE = closed(
    build={"type": "array", "items": ENTRY, "minItems": 1, "maxItems": 1},
    configs=closed(**{"aws.yaml": MACHINES, "gce.yaml": MACHINES}),
    tests={"const": ["tests.sh"]},
    template={
        "items": {
            "pattern": rf"^((({FOLDERS})/)?[\w-]+\.({SUFFIXES})|deploy/Dockerfile|\.gitignore)$"
        },
        "allOf": [{"contains": {"const": file}} for file in NEEDED],
    },
)


def test_the_tree_follows_the_consoles_schema(exported, template):
    folders = {folder: exported / folder / TEMPLATE_NAME for folder in ("configs", "tests")}
    tree = {
        "build": yaml.safe_load((exported / "BUILD.yaml").read_text()),
        "configs": {
            path.name: yaml.safe_load(path.read_text()) for path in folders["configs"].iterdir()
        },
        "tests": files_in(folders["tests"]),
        "template": files_in(template),
    }
    jsonschema.validate(tree, TREE)
    top = {path.name for path in exported.iterdir()}
    assert top == {"BUILD.yaml", "configs", "templates", "tests"}


@pytest.mark.parametrize(
    ("cloud", "instance_type"), [("aws", "m5.2xlarge"), ("gce", "n2-standard-8")]
)
def test_anyscales_own_code_reads_the_compute_configs(exported, cloud, instance_type):
    path = exported / "configs" / TEMPLATE_NAME / f"{cloud}.yaml"
    config = ComputeConfig.from_yaml(str(path))
    assert config.head_node.instance_type == instance_type
    assert config.head_node.resources == {"CPU": 0}
    assert config.auto_select_worker_config and config.worker_nodes is None


def test_the_readme_is_what_nbconvert_makes_of_the_notebook(template, tmp_path):
    command = ["jupyter", "nbconvert", "--to", "markdown", template / "README.ipynb"]
    command += ["--output", "README", "--output-dir", tmp_path]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert (template / "README.md").read_bytes() == (tmp_path / "README.md").read_bytes()


def test_every_notebook_is_there_without_outputs_and_counts(template):
    chapters = {f"chapters/{path.name}" for path in CONTENT.glob("chapters/*.ipynb")}
    assert notebooks(template).keys() == {"README.ipynb", *chapters}
    for notebook in notebooks(template).values():
        nbformat.validate(notebook)
        assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
        for cell in notebook.cells:
            assert not cell.get("outputs") and cell.get("execution_count") is None


class References(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found = {"href": [], "src": []}
        self.feed(mistune.html(text))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            self.found.get(name, []).append(value)


def test_every_reference_leads_somewhere(template):
    files, own = set(files_in(template)), set()
    for folder, text in prose(template):
        found = References(text).found
        assert [url for url in found["src"] if not url.startswith("https://")] == []
        for url in found["href"] + found["src"]:
            if url.startswith((RAW, PAGE)):
                own.add(url.removeprefix(RAW).removeprefix(PAGE))
            elif not url.startswith(("https://", "http://", "#")):
                assert url.partition("#")[0].endswith(".ipynb"), f"{url} is not absolute"
                own.add(posixpath.normpath(posixpath.join(folder, url.partition("#")[0])))
    assert {"data/README.md", "images/request.svg", "README.ipynb"} <= own
    assert own <= files


def test_the_tutorial_leads_to_every_chapter(template):
    links = {
        url
        for c in notebooks(template)["README.ipynb"].cells
        for url in References(c.source).found["href"]
    }
    assert {name for name in notebooks(template) if name.startswith("chapters/")} <= links


def test_no_text_speaks_of_a_path_outside_of_the_template(template):
    outside = re.compile(r"(?:^|[\s`(\"'])(?:content|ci)/\S*|convert_to_md", re.MULTILINE)
    assert [found[0] for _, text in prose(template) for found in outside.finditer(text)] == []


def test_the_readme_begins_with_the_buttons_and_the_time_that_it_takes(template):
    title = notebooks(template)["README.ipynb"].cells[0].source
    buttons = References(title).found
    assert buttons["href"][:2] == [
        f"https://console.anyscale.com/template-preview/{TEMPLATE_NAME}",
        f"https://github.com/anyscale/templates/tree/main/templates/{TEMPLATE_NAME}",
    ]
    assert all(url.startswith("https://img.shields.io/") for url in buttons["src"][:2])
    assert re.search(r"Time to complete\W+\d+ min", title)


def test_the_advice_for_a_fork_is_in_it(template):
    headings = re.findall(r"^## (.+)$", (template / "README.md").read_text(), re.MULTILINE)
    assert "Make it your own" in headings


def test_the_commands_that_get_the_code_get_this_template_alone(template, tmp_path):
    repository = tmp_path / "templates.git"
    shutil.copytree(template, repository / "templates" / TEMPLATE_NAME)
    (repository / "templates" / "another").mkdir()
    (repository / "templates" / "another" / "README.md").write_text("another")
    env = {
        **{name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ},
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{
            f"GIT_{who}_{what}": "a@b"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }
    for command in ("init -q -b main", "add -A", "commit -q -m all"):
        subprocess.run(["git", *command.split()], cwd=repository, env=env, check=True)
    cells = {cell.id: cell for cell in notebooks(template)["README.ipynb"].cells}
    cell = cells["template-get-the-code"]
    (commands,) = re.findall(r"```bash\n(.+?)```", cell.source, re.DOTALL)
    assert "https://github.com/anyscale/templates " in commands
    commands = commands.replace("https://github.com/anyscale/templates", repository.as_uri())
    script = f"set -e\n{commands}\npwd"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert sorted(files_in(folder)) == sorted(files_in(template))
    assert [path.name for path in folder.parent.iterdir()] == [TEMPLATE_NAME]


def test_another_name_and_repository_are_used_throughout(tmp_path):
    options = "--name", "footfall_2", "--repository", "me/templates"
    assert run_export(tmp_path / "out", *options).returncode == 0
    (entry,) = yaml.safe_load((tmp_path / "out" / "BUILD.yaml").read_text())
    for path in entry["dir"], entry["test"]["tests_path"], *entry["compute_config"].values():
        assert (tmp_path / "out" / path).exists()
    readme = (tmp_path / "out" / entry["dir"] / "README.md").read_text()
    assert "https://raw.githubusercontent.com/me/templates/main/templates/footfall_2/" in readme
    assert "https://console.anyscale.com/template-preview/footfall_2" in readme
    assert (
        "git clone --depth 1 --filter=blob:none --sparse https://github.com/me/templates" in readme
    )
    assert f"/templates/{TEMPLATE_NAME}" not in readme and "anyscale/templates" not in readme


@pytest.mark.parametrize("name", ["Forecasts", "../up", "a b", ""])
def test_a_name_that_the_console_refuses_is_refused(tmp_path, name):
    with pytest.raises(export_template.ExportError, match="cannot be a template's name"):
        export_template.export(tmp_path / "out", name, "anyscale/templates")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    done = run_export(tmp_path)
    assert done.returncode == 1 and f"{tmp_path} is not an empty folder" in done.stderr
    assert files_in(tmp_path) == ["mine.txt"]


TITLE = "# Serve forecasts\n\n**Time to complete**: 20 min"


@pytest.fixture
def small(monkeypatch, tmp_path) -> Path:
    """A small tutorial with a chapter, for the export to take in place of the real one."""
    content = tmp_path / "content"
    for folder in "chapters", "data", "images":
        (content / folder).mkdir(parents=True)
    (content / "service.yaml").write_bytes((CONTENT / "service.yaml").read_bytes())
    (content / "data" / "README.md").write_text("Of [the source](https://example.com).")
    (content / "images" / "request.svg").write_text("<svg/>")
    write_notebook(content / "notebook.ipynb", TITLE)
    write_notebook(content / "chapters" / "01_fleet.ipynb", "# Trust a model")
    monkeypatch.setattr(export_template, "CONTENT", content)
    return content


def write_notebook(path: Path, *texts: str, tags: tuple[str, ...] = ()) -> None:
    """Write a notebook of Markdown cells, the last of which has the tags."""
    cells = [
        {"cell_type": "markdown", "id": f"cell-{number}", "metadata": {}, "source": text}
        for number, text in enumerate(texts)
    ]
    cells[-1]["metadata"]["tags"] = list(tags)
    path.write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )


def export_to(folder: Path) -> Path:
    """Export, and return the template's folder."""
    export_template.export(folder, TEMPLATE_NAME, "anyscale/templates")
    return folder / "templates" / TEMPLATE_NAME


@pytest.mark.parametrize("notebook", ["notebook.ipynb", "chapters/01_fleet.ipynb"])
@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("[a plan](plan.md)", "links to plan.md"),
        ("![plot](images/missing.png)", "links to images/missing.png"),
        ("Run `bash ci/tests.sh`.", "speaks of ci/tests.sh"),
        ("See [above](../../README.md).", "links to ../../README.md"),
        ("It lies in ../../elsewhere.", "speaks of ../../elsewhere"),
        ("<img src=images/request.svg>", "shows images/request.svg: a picture needs an absolute"),
        ("![way][1]\n\n[1]: images/request.svg", "shows images/request.svg: a picture needs"),
        ("![way](http://example.com/a.png)", "shows http://example.com/a.png: a picture needs"),
    ],
)
def test_a_cell_about_what_the_template_lacks_is_named_unless_it_stays_out(
    small, tmp_path, notebook, said, complaint
):
    place = "README.ipynb" if notebook == "notebook.ipynb" else notebook
    write_notebook(small / notebook, TITLE, said)
    with pytest.raises(
        export_template.ExportError, match=re.escape(f"cell cell-1 of {place} {complaint}")
    ):
        export_to(tmp_path / "out")
    assert not (tmp_path / "out").exists()

    write_notebook(small / notebook, TITLE, said, tags=("repository-only",))
    template = export_to(tmp_path / "out")
    assert said not in (template / place).read_text()


@pytest.mark.parametrize(
    ("notebook", "said", "exported"),
    [
        ("notebook.ipynb", "[fleet](chapters/01_fleet.ipynb)", "[fleet](chapters/01_fleet.ipynb)"),
        ("chapters/01_fleet.ipynb", "[tutorial](../notebook.ipynb)", "[tutorial](../README.ipynb)"),
        ("notebook.ipynb", "![way](images/request.svg)", f"![way]({WAY})"),
        (
            "notebook.ipynb",
            '<img src="images/request.svg">',
            f'<img src="{RAW}images/request.svg">',
        ),
        ("chapters/01_fleet.ipynb", "[data](../data/README.md)", f"[data]({PAGE}data/README.md)"),
        (
            "notebook.ipynb",
            "Fork `content/` and `content/data/`.",
            "Fork the template's folder and `data/`.",
        ),
        ("notebook.ipynb", "See `../requirements.txt`.", "See `requirements.txt`."),
        ("chapters/01_fleet.ipynb", "See `../../requirements.txt`.", "See `requirements.txt`."),
    ],
)
def test_what_a_text_says_of_files_is_so_in_the_template(small, tmp_path, notebook, said, exported):
    write_notebook(small / notebook, TITLE, said)
    template = export_to(tmp_path / "out")
    place = "README.ipynb" if notebook == "notebook.ipynb" else notebook
    assert notebooks(template)[place].cells[-1].source == exported


@pytest.mark.parametrize(
    ("title", "complaint"),
    [
        ("# Serve forecasts", "does not say: Time to complete"),
        ("Time to complete: 20 min", "does not begin with a title"),
    ],
)
def test_a_tutorial_without_title_or_time_is_refused(small, tmp_path, title, complaint):
    write_notebook(small / "notebook.ipynb", title)
    with pytest.raises(export_template.ExportError, match=complaint):
        export_to(tmp_path / "out")


def test_a_lock_that_lacks_a_pin_stops_the_export(monkeypatch, tmp_path):
    monkeypatch.setattr(template_lock, "LOCK", tmp_path / "none.lock")
    with pytest.raises(template_lock.StaleLockError, match=r"lacks .*numpy==.*run `python"):
        export_template.export(tmp_path / "out", TEMPLATE_NAME, "anyscale/templates")
