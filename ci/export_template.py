"""Export the tutorial and its chapters as the files that the template console's repository wants.

    python ci/export_template.py OUTPUT_FOLDER [--name NAME] [--repository OWNER/NAME]

OUTPUT_FOLDER then holds, to be copied into a clone of that repository:

    BUILD.yaml            the entry to append to the repository's BUILD.yaml
    templates/NAME/       README.ipynb, which is the tutorial without its outputs, and README.md as
                          nbconvert renders it; the chapters, code and data, the requirements and
                          their lock
    tests/NAME/tests.sh   runs README.ipynb and the chapters, in one folder with the template
    configs/NAME/         aws.yaml and gce.yaml, the machines

A cell with the tag `repository-only` stays here: it is about what the template does not have. The
template gets instead: two buttons, how to get its code, and how to install what it needs.
"""

import argparse
import posixpath
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import mistune
import nbformat
import yaml
from nbconvert import MarkdownExporter
from nbformat.v4 import new_code_cell, new_markdown_cell

from template_lock import LOCK, StaleLockError, checked_lock, template_requirements

CI = Path(__file__).resolve().parent
CONTENT = CI.parent / "content"
NAME = r"[a-z0-9_-]+"
TIMEOUT_S = 30 * 60  # of the test, in the console

SHIPPED = (
    ".gitignore",  # keeps secrets out of what a workspace uploads
    "*.py",
    "*/*.py",
    "*.proto",
    "*.yaml",
    "chapters/*.txt",
    "chapters/images/*.svg",
    "data/*",
    "deploy/*",
    "images/*.svg",
)
GENERATED = "*_pb2*.py"  # by a chapter
PROSE = ".md", ".txt"
REPOSITORY_ONLY = "repository-only"

MOVED = {  # what lies elsewhere in the template, as the tutorial's texts call it
    r"(?<![\w./-])content/(?=\w)": "",
    r"`content/?`|(?<![\w./-])content/": "the template's folder",
    r"(?<![\w./-])(?:\.\./)+(?=requirements\.txt)": "",
    r"(?<![\w.-])notebook\.ipynb": "README.ipynb",
}
OUTSIDE = re.compile(r"(?<![\w./-])(?:(?:ci/|convert_to_md)[\w./]*|(?:\.\./)+[\w./-]*)")
LINK = re.compile(r"""(\]\(|<img\s[^>]*?src=["'])([^)\s"'#:]+)(?=[)\s"'#])""")
PICTURES = ".svg", ".png", ".jpg", ".gif"
TIME_TO_COMPLETE = re.compile(r"Time to complete\W+\d+ min", re.IGNORECASE)

BUTTONS = """\
<div align="left">
<a target="_blank" href="https://console.anyscale.com/template-preview/{name}"><img alt="Run on Anyscale" src="https://img.shields.io/badge/%F0%9F%9A%80_Run_on-Anyscale-9hf"></a>&nbsp;
<a href="https://github.com/{repository}/tree/main/templates/{name}" role="button"><img alt="View on GitHub" src="https://img.shields.io/static/v1?label=&message=View%20On%20GitHub&color=586069&logo=github&labelColor=2f363d"></a>&nbsp;
</div>"""  # noqa: E501
GET_THE_CODE = """\
## Get the code

A workspace that was launched from the template has it. Elsewhere, clone this template alone:

```bash
git clone --depth 1 --filter=blob:none --sparse https://github.com/{repository} {name}
cd {name}
git sparse-checkout set templates/{name}
cd templates/{name}
```"""
SET_UP = """\
## Set up the workspace

Install what the notebook needs and the workspace lacks, in the versions it was tested with:"""
INSTALL = f"""\
import subprocess
import sys
from pathlib import Path

lock = Path("{LOCK.name}")
if not lock.exists():  # the notebook lies in a folder of its own
    lock = ".." / lock
install = f"uv pip install --quiet --python {{sys.executable}} --require-hashes -r {{lock}}"
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


class Pictures(HTMLParser):
    """Finds the address of each picture that a Markdown text shows."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses = []
        self.feed(mistune.html(text))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.addresses.append(dict(attributes).get("src") or "")


class Prose:
    """Turns what a text of this repository says of its files into what is so in the template.

    Links become absolute, because the console shows texts where nothing lies beside them. Those to
    notebooks stay: whoever follows one in a workspace wants to run it there.
    """

    def __init__(self, files: set[str], name: str, repository: str):
        self._files = files
        self._folders = {posixpath.dirname(path) for path in files}
        self._picture_url = f"https://raw.githubusercontent.com/{repository}/main/templates/{name}/"
        self._page_url = f"https://github.com/{repository}/blob/main/templates/{name}/"

    def adapt(self, text: str, place: str, folder: str = "") -> str:
        """Return a text's version for the template; `place` names it, `folder` is where it lies.

        Raises:
            ExportError: if it speaks of a file that the template does not have, or shows a picture
                whose address is not absolute.
        """
        for pattern, path in MOVED.items():
            text = re.sub(pattern, path, text)

        def from_top(path: str) -> str:
            return posixpath.normpath(posixpath.join(folder, path))

        def absolute(link: re.Match) -> str:
            path = from_top(link[2])
            if path not in self._files:
                raise ExportError(f"{place} links to {link[2]}, which the template does not have")
            if path.endswith(".ipynb"):
                return link[0]
            url = self._picture_url if path.endswith(PICTURES) else self._page_url
            return f"{link[1]}{url}{path}"

        text = LINK.sub(absolute, text)
        for outside in OUTSIDE.findall(text):
            if from_top(outside.rstrip(".")) not in {*self._files, *self._folders, "."}:
                raise ExportError(
                    f"{place} speaks of {outside}, which the template does not have: word it "
                    f"otherwise (a cell can be left out, by the tag {REPOSITORY_ONLY})"
                )
        for address in Pictures(text).addresses:
            if not address.startswith("https://"):
                raise ExportError(f"{place} shows {address}: a picture needs an absolute address")
        return text


def give_title(cell: nbformat.NotebookNode, name: str, repository: str) -> None:
    """Put the buttons below the title, in the cell that a README begins with.

    Raises:
        ExportError: if the cell lacks a title or the time that the tutorial takes.
    """
    title, _, rest = cell.source.partition("\n")
    if not title.startswith("# "):
        raise ExportError("the tutorial's first cell does not begin with a title: # Serve ...")
    if not TIME_TO_COMPLETE.search(rest):
        raise ExportError("the tutorial's first cell does not say: Time to complete: 20 min")
    buttons = BUTTONS.format(name=name, repository=repository)
    cell.source = f"{title}\n\n{buttons}\n\n{rest.lstrip()}"


def build_template(name: str, repository: str) -> dict[str, bytes]:
    """Return the files of templates/NAME by their paths in it.

    Raises:
        StaleLockError: if the lock is not one of requirements.txt.
        ExportError: if a text speaks of what the template does not have, shows a picture whose
            address is not absolute, or lacks what the console wants.
    """
    files = {
        "requirements.txt": template_requirements().encode(),
        LOCK.name: checked_lock().encode(),
    }
    for path in (path for pattern in SHIPPED for path in sorted(CONTENT.glob(pattern))):
        if path.is_file() and not path.match(GENERATED):
            files[path.relative_to(CONTENT).as_posix()] = path.read_bytes()
    notebooks = {"README.ipynb": stripped_notebook(CONTENT / "notebook.ipynb")}
    for path in sorted(CONTENT.glob("chapters/*.ipynb")):
        notebooks[path.relative_to(CONTENT).as_posix()] = stripped_notebook(path)

    prose = Prose({*files, *notebooks, "README.md"}, name, repository)
    for path in [path for path in files if path.endswith(PROSE)]:
        text = files[path].decode()
        files[path] = prose.adapt(text, path, posixpath.dirname(path)).encode()
    for path, notebook in notebooks.items():
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                place = f"cell {cell.id} of {path}"
                cell.source = prose.adapt(cell.source, place, posixpath.dirname(path))
        notebook.cells[1:1] = [
            new_markdown_cell(SET_UP, id="template-set-up"),
            new_code_cell(INSTALL, id="template-install"),
        ]
    readme = notebooks["README.ipynb"]
    give_title(readme.cells[0], name, repository)
    get_the_code = GET_THE_CODE.format(name=name, repository=repository)
    readme.cells.insert(1, new_markdown_cell(get_the_code, id="template-get-the-code"))
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
