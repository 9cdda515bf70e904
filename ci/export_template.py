"""Export the tutorial as the files that the template console's repository wants.

    python ci/export_template.py OUTPUT_FOLDER [--name NAME] [--repository OWNER/NAME]

OUTPUT_FOLDER then holds, to be copied into a clone of that repository:

    BUILD.yaml            the entry to append to the repository's BUILD.yaml
    templates/NAME/       README.ipynb, which is the notebook without its outputs, and README.md as
                          nbconvert renders it; the companion, code and data, the requirements and
                          their lock
    tests/NAME/tests.sh   runs README.ipynb, in one folder with the template
    configs/NAME/         aws.yaml and gce.yaml, the machines

A cell with the tag `repository-only` stays here: it is about what the template does not have.
"""

import argparse
import posixpath
import re
import sys
from pathlib import Path

import nbformat
import yaml
from nbconvert import MarkdownExporter
from nbformat.v4 import new_code_cell, new_markdown_cell

from template_lock import LOCK, StaleLockError, checked_lock, template_requirements

CI = Path(__file__).resolve().parent
CONTENT = CI.parent / "content"
NAME = r"[a-z0-9_-]+"
TIMEOUT_S = 30 * 60  # of the test, in the console

SHIPPED = "*.py", "*.proto", "*.yaml", "*.json", "*.txt", "Dockerfile", "data/*", "images/*.svg"
GENERATED = "*_pb2*.py"  # by the notebook
PROSE = ".md", ".txt"
REPOSITORY_ONLY = "repository-only"

MOVED = {  # what lies elsewhere in the template, as the tutorial's texts call it
    r"(?<![\w./-])(?:content/|\.\./(?=requirements\.txt))": "",
    r"(?<![\w./-])notebook\.ipynb": "README.ipynb",
}
OUTSIDE = re.compile(r"(?<![\w./-])(?:\.\./|ci/|convert_to_md)[\w./]*")
LINK = re.compile(r"""(\]\(|<img\s[^>]*?src=["'])([^)\s"'#:]+)(?=[)\s"'#])""")
PICTURES = ".svg", ".png", ".jpg", ".gif"

SET_UP = """\
## Set up the workspace

Install what the tutorial needs and the workspace lacks, in the versions it was tested with:"""
INSTALL = f"""\
import subprocess
import sys

install = f"uv pip install --quiet --python {{sys.executable}} --require-hashes -r {LOCK.name}"
subprocess.run(install.split(), check=True)"""


class ExportError(Exception):
    """The template cannot be exported; the message says what to do."""


def stripped_notebook(path: Path) -> nbformat.NotebookNode:
    """Return a notebook without outputs, counts, and cells that only fit this repository."""
    notebook = nbformat.read(path, as_version=4)
    cells = notebook.cells
    notebook.cells = [c for c in cells if REPOSITORY_ONLY not in c.metadata.get("tags", ())]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


class Prose:
    """Turns what a text of this repository says of its files into what is so in the template.

    Links become absolute, because the console shows texts where nothing lies beside them.
    """

    def __init__(self, files: set[str], name: str, repository: str):
        self._files = files
        self._picture_url = f"https://raw.githubusercontent.com/{repository}/main/templates/{name}/"
        self._page_url = f"https://github.com/{repository}/blob/main/templates/{name}/"

    def adapt(self, text: str, place: str, folder: str = "") -> str:
        """Return a text's version for the template; `place` names it, `folder` is where it lies.

        Raises:
            ExportError: if it speaks of a file that the template does not have.
        """
        for pattern, path in MOVED.items():
            text = re.sub(pattern, path, text)

        def absolute(link: re.Match) -> str:
            path = posixpath.normpath(posixpath.join(folder, link[2]))
            if path not in self._files:
                raise ExportError(f"{place} links to {link[2]}, which the template does not have")
            url = self._picture_url if path.endswith(PICTURES) else self._page_url
            return f"{link[1]}{url}{path}"

        text = LINK.sub(absolute, text)
        if outside := OUTSIDE.search(text):
            raise ExportError(
                f"{place} speaks of {outside[0]}, which the template does not have: word it "
                f"otherwise (a cell can be left out, by the tag {REPOSITORY_ONLY})"
            )
        return text


def build_template(name: str, repository: str) -> dict[str, bytes]:
    """Return the files of templates/NAME by their paths in it.

    Raises:
        StaleLockError: if the lock is not one of requirements.txt.
        ExportError: if a text speaks of what the template does not have.
    """
    files = {
        "requirements.txt": template_requirements().encode(),
        LOCK.name: checked_lock().encode(),
    }
    for path in (path for pattern in SHIPPED for path in sorted(CONTENT.glob(pattern))):
        if not path.match(GENERATED):
            files[path.relative_to(CONTENT).as_posix()] = path.read_bytes()
    notebooks = {path.name: stripped_notebook(path) for path in sorted(CONTENT.glob("*.ipynb"))}
    readme = notebooks["README.ipynb"] = notebooks.pop("notebook.ipynb")

    prose = Prose({*files, *notebooks, "README.md"}, name, repository)
    for path in [path for path in files if path.endswith(PROSE)]:
        text = files[path].decode()
        files[path] = prose.adapt(text, path, posixpath.dirname(path)).encode()
    for path, notebook in notebooks.items():
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = prose.adapt(cell.source, f"cell {cell.id} of {path}")
    readme.cells[1:1] = [
        new_markdown_cell(SET_UP, id="set-up"),
        new_code_cell(INSTALL, id="install"),
    ]
    files |= {path: (nbformat.writes(book) + "\n").encode() for path, book in notebooks.items()}
    files["README.md"] = MarkdownExporter().from_notebook_node(readme)[0].encode()
    return files


def build_entry(name: str) -> dict:
    """Return the template's entry in the BUILD.yaml of the console's repository."""
    service = yaml.safe_load((CONTENT / "service.yaml").read_text())
    return {
        "name": name,
        "owner_team": "ray-serve",
        "dir": f"templates/{name}",
        "cluster_env": {"image_uri": service["image_uri"]},
        "compute_config": {
            "AWS": f"configs/{name}/aws.yaml",
            "GCP": f"configs/{name}/gce.yaml",
        },
        "test": {
            "command": "bash tests.sh",
            "tests_path": f"tests/{name}/",
            "timeout_in_sec": TIMEOUT_S,
        },
    }


def export(output: Path, name: str, repository: str) -> None:
    """Write the template named `name` into a folder that is new or empty.

    Raises:
        ExportError, StaleLockError: if that cannot be done; then nothing is written.
    """
    if not re.fullmatch(NAME, name):
        raise ExportError(f"{name!r} cannot be a template's name: a to z, 0 to 9, _ and - can be")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"{output} is not an empty folder: name one that is, or a new one")
    tree = {
        f"templates/{name}/{path}": data for path, data in build_template(name, repository).items()
    }
    tree["BUILD.yaml"] = yaml.safe_dump([build_entry(name)], sort_keys=False).encode()
    tree[f"tests/{name}/tests.sh"] = (CI / "template_tests.sh").read_bytes()
    for cloud in "aws", "gce":
        tree[f"configs/{name}/{cloud}.yaml"] = (CI / f"{cloud}.yaml").read_bytes()
    for path, data in tree.items():
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT_FOLDER")
    parser.add_argument("--name", default="forecast-multiplex")
    parser.add_argument("--repository", default="anyscale/templates", metavar="OWNER/NAME")
    options = parser.parse_args()
    try:
        export(options.output, options.name, options.repository)
    except (ExportError, StaleLockError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
