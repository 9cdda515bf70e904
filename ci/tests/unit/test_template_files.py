"""The exported template has all that its notebooks name and import, and locks it."""

import ast
import re
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import template_lock
from template_files import files_in, notebooks, sources

pytest_plugins = ["exported_template"]

FILE = r"[\w-][\w./-]*\.(?:py|proto|yaml|json|npz|txt|lock|log)"


def read_and_written(source: str) -> tuple[set[str], set[str]]:
    """Return the files that a code cell names as its own, and those of them that it writes."""
    if written := re.match(r"%%writefile (\S+)", source):
        return set(), {written[1]}
    if source.startswith("%%bash"):
        named = set(re.findall(rf"(?<![\w./]){FILE}\b", source))
        return named, {name for name in named if f"> {name}" in source or "_pb2" in name}
    tree = ast.parse(TransformerManager().transform_cell(source))
    elsewhere = {  # "x.json" in folder / "x.json"
        node.right
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
    }
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    words = [str(node.value) for node in constants if node not in elsewhere]
    named = {name for text in words for name in re.findall(rf"^{FILE}$|(?<=-r ){FILE}$", text)}
    named |= set(re.findall(rf"^%run ({FILE})", source, re.MULTILINE))
    return named, set(re.findall(rf'Path\("({FILE})"\)\.write_', source))


def test_every_file_that_a_notebook_reads_is_there_or_written_by_it(template):
    read, written = map(set.union, *map(read_and_written, sources(template, "code")))
    assert {"data/footfall.npz", "python_depset.lock", "service.yaml", "client.py"} <= read
    assert read <= written | set(files_in(template))
    shown = re.findall(r"^%%writefile (\S+)", "\n".join(sources(template, "code")), re.MULTILINE)
    assert set(shown) <= set(files_in(template))


def imports(source: str) -> set[str]:
    tree = ast.parse(TransformerManager().transform_cell(source))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


def locked(template: Path) -> dict[str, str]:
    return template_lock.pins((template / "python_depset.lock").read_text())


def test_whatever_is_imported_is_locked_or_comes_with_the_workspace(template):
    code = [path.read_text() for path in template.glob("*.py")]
    code += [source for source in sources(template, "code") if not source.startswith("%%")]
    modules = set.union(*map(imports, code)) - sys.stdlib_module_names
    modules -= {path.stem for path in template.glob("*.py")} | {"forecast_pb2", "forecast_pb2_grpc"}
    companions = [path.read_text() for path in template.glob("requirements_*.txt")]
    there = {"ray", "ipython", *locked(template), *template_lock.pins("\n".join(companions))}
    packages = packages_distributions()
    missing = {m for m in modules if there.isdisjoint(map(canonicalize_name, packages.get(m, [m])))}
    assert missing == set()


def test_the_lock_has_every_requirement_and_a_hash_for_each_of_its_packages(template):
    wanted = (template / "requirements.txt").read_text()
    lines = [line for line in wanted.splitlines() if not line.startswith("#")]
    assert len(template_lock.pins(wanted)) == len(lines) >= 10, "not all are pinned"
    assert template_lock.pins(wanted).items() <= locked(template).items()
    lock = (template / "python_depset.lock").read_text()
    packages = re.split(r"\n(?=[\w-])", lock)[1:]
    assert len(packages) >= len(locked(template))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", package) for package in packages)


def test_the_lock_leaves_alone_what_the_workspace_runs_on_and_agrees_with_it(template):
    lock = locked(template)
    assert lock.keys().isdisjoint({"ray", "jupyter", "nbconvert", "jupyterlab", "ipykernel"})
    for wanted in map(Requirement, requires("ray")):
        used = wanted.marker is None or wanted.marker.evaluate({"extra": "serve"})
        if used and canonicalize_name(wanted.name) in lock:
            assert wanted.specifier.contains(lock[canonicalize_name(wanted.name)]), wanted


def test_every_notebook_installs_the_lock_before_all_else(template):
    for notebook in notebooks(template).values():
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert 'lock = Path("python_depset.lock")' in first.source
        assert re.search(r"uv pip install .* --require-hashes -r \{lock\}", first.source)
