"""The exported template by the rules of the console's repository, and what the export refuses.

The rules are those of the checks in github.com/anyscale/templates.
"""

import json
import re
import subprocess
from html.parser import HTMLParser

import jsonschema
import mistune
import nbformat
import pytest
import yaml
from anyscale.compute_config.models import ComputeConfig
from conftest import CONTENT

import export_template
import template_lock
from template_files import TEMPLATE_NAME, files_in, notebooks, prose, run_export

RAW = f"https://raw.githubusercontent.com/anyscale/templates/main/templates/{TEMPLATE_NAME}/"
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
SUFFIXES = "ipynb|md|py|proto|yaml|json|txt|lock|npz|svg"
NEEDED = "README.ipynb", "README.md", "requirements.txt", "python_depset.lock", "service.yaml"
TREE = closed(
    build={"type": "array", "items": ENTRY, "minItems": 1, "maxItems": 1},
    configs=closed(**{"aws.yaml": MACHINES, "gce.yaml": MACHINES}),
    tests={"const": ["tests.sh"]},
    template={
        "items": {"pattern": rf"^((data/|images/)?[\w-]+\.({SUFFIXES})|Dockerfile)$"},
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


def test_notebooks_have_neither_outputs_nor_counts(template):
    assert {"README.ipynb", "pytorch_s3.ipynb"} <= notebooks(template).keys()
    for notebook in notebooks(template).values():
        nbformat.validate(notebook)
        for cell in notebook.cells:
            assert not cell.get("outputs") and cell.get("execution_count") is None


class References(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("href", "src")]


def test_every_reference_is_absolute_and_those_to_the_template_lead_somewhere(template):
    found = {url for text in prose(template) for url in References(mistune.html(text)).found}
    assert [url for url in found if not url.startswith(("https://", "http://", "#"))] == []
    own = {url.removeprefix(RAW).removeprefix(PAGE) for url in found if url.startswith((RAW, PAGE))}
    assert {"data/README.md", "pytorch_s3.ipynb", "images/request.svg"} <= own
    assert own <= set(files_in(template))


def test_pictures_are_asked_for_as_files_and_not_as_pages(template):
    pictures = [url for text in prose(template) for url in re.findall(r"!\[.*?\]\((\S+?)\)", text)]
    assert RAW + "images/request.svg" in pictures
    assert not [url for url in pictures if url.startswith(PAGE)]


def test_no_text_speaks_of_a_path_outside_of_the_template(template):
    outside = re.compile(r"(?:^|[\s`(\"'])(?:\.\.?/|(?:content|ci)/)\S*", re.MULTILINE)
    assert [found[0] for text in prose(template) for found in outside.finditer(text)] == []


def test_another_name_and_repository_are_used_throughout(tmp_path):
    options = "--name", "footfall_2", "--repository", "me/templates"
    assert run_export(tmp_path / "out", *options).returncode == 0
    (entry,) = yaml.safe_load((tmp_path / "out" / "BUILD.yaml").read_text())
    for path in entry["dir"], entry["test"]["tests_path"], *entry["compute_config"].values():
        assert (tmp_path / "out" / path).exists()
    readme = (tmp_path / "out" / entry["dir"] / "README.md").read_text()
    assert "https://raw.githubusercontent.com/me/templates/main/templates/footfall_2/" in readme
    assert f"/templates/{TEMPLATE_NAME}/" not in readme and "anyscale/templates" not in readme


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


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("[a plan](plan.md)", "cell said of README.ipynb links to plan.md"),
        ("![plot](images/missing.png)", "links to images/missing.png"),
        ("Run `bash ci/tests.sh`.", "speaks of ci/tests.sh"),
        ("See [above](../README.md).", "links to ../README.md"),
    ],
)
def test_a_cell_about_what_the_template_lacks_is_named_unless_it_stays_out(
    monkeypatch, tmp_path, said, complaint
):
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    cell = {"cell_type": "markdown", "id": "said", "metadata": {}, "source": said}
    content = tmp_path / "content"
    content.mkdir()
    (content / "service.yaml").write_bytes((CONTENT / "service.yaml").read_bytes())
    monkeypatch.setattr(export_template, "CONTENT", content)

    notebook["cells"] = [cell]
    (content / "notebook.ipynb").write_text(json.dumps(notebook))
    with pytest.raises(export_template.ExportError, match=re.escape(complaint)):
        export_template.export(tmp_path / "out", TEMPLATE_NAME, "anyscale/templates")
    assert not (tmp_path / "out").exists()

    cell["metadata"] = {"tags": ["repository-only"]}
    (content / "notebook.ipynb").write_text(json.dumps(notebook))
    export_template.export(tmp_path / "out", TEMPLATE_NAME, "anyscale/templates")
    assert said not in (tmp_path / "out" / "templates" / TEMPLATE_NAME / "README.md").read_text()


def test_a_lock_that_lacks_a_pin_stops_the_export(monkeypatch, tmp_path):
    monkeypatch.setattr(template_lock, "LOCK", tmp_path / "none.lock")
    with pytest.raises(template_lock.StaleLockError, match=r"lacks .*numpy==.*run `python"):
        export_template.export(tmp_path / "out", TEMPLATE_NAME, "anyscale/templates")
