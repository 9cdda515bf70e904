"""What the tests ask of an exported template's files."""

import subprocess
import sys
from pathlib import Path

import nbformat

CI = Path(__file__).resolve().parents[1]
TEMPLATE_NAME = "forecast-multiplex"


def run_export(output: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, CI / "export_template.py", output, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def files_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def notebooks(template: Path) -> dict[str, nbformat.NotebookNode]:
    """Return the notebooks by their paths in the template."""
    return {
        path.relative_to(template).as_posix(): nbformat.read(path, as_version=4)
        for path in sorted(template.rglob("*.ipynb"))
    }


def sources(template: Path, cell_type: str) -> list[str]:
    cells = [cell for book in notebooks(template).values() for cell in book.cells]
    return [cell.source for cell in cells if cell.cell_type == cell_type]


def prose(template: Path) -> list[tuple[str, str]]:
    """Return the folder and the text of all that is there to be read.

    Without README.md, which repeats its notebook.
    """
    files = (*template.glob("*.txt"), *template.glob("chapters/*.txt"), *template.glob("data/*.md"))
    texts = [(path.parent.relative_to(template).as_posix(), path.read_text()) for path in files]
    for name, notebook in notebooks(template).items():
        folder = Path(name).parent.as_posix()
        texts += [(folder, c.source) for c in notebook.cells if c.cell_type == "markdown"]
    return texts
