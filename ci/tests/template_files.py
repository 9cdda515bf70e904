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
    return {path.name: nbformat.read(path, as_version=4) for path in template.glob("*.ipynb")}


def sources(template: Path, cell_type: str) -> list[str]:
    cells = [cell for book in notebooks(template).values() for cell in book.cells]
    return [cell.source for cell in cells if cell.cell_type == cell_type]


def prose(template: Path) -> list[str]:
    """Return all that is there to be read, without README.md, which repeats its notebook."""
    files = *template.glob("*.txt"), *template.glob("data/*.md")
    return [path.read_text() for path in files] + sources(template, "markdown")
