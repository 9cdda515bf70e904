#!/usr/bin/env bash
# Render the notebooks, with their outputs and plots: content/notebook.ipynb as README.md, each of
# content/chapters/ as the .md beside it. What a run or an editor noted in a notebook about itself
# (times, the kernel's name) is taken out of it.
#
#   bash convert_to_md.sh           write them, and the pictures in images/
#   bash convert_to_md.sh --check   exit 1 unless they are what the notebooks render to; write nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

python - "$@" <<'PYTHON'
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

TUTORIAL = "content/notebook.ipynb"
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]*)(#[^)\s]*)?(?=\))")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def clean(notebook: str) -> None:
    """Take out of a notebook what the next run would change, and nobody reads."""
    book = nbformat.read(notebook, as_version=4)
    before = nbformat.writes(book)
    book.metadata = nbformat.from_dict(METADATA)
    for cell in book.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
    if nbformat.writes(book) != before:
        nbformat.write(book, notebook)


def rendering_of(notebook: str) -> str:
    """Return the path of a notebook's Markdown."""
    return "README.md" if notebook == TUTORIAL else notebook.replace(".ipynb", ".md")


def render(notebook: str) -> dict[str, bytes]:
    """Return the files that a notebook becomes, by their paths: its Markdown, its pictures."""
    target, name = rendering_of(notebook), Path(notebook).stem
    book = nbformat.read(notebook, as_version=4)
    pictures = f"{name}_{{cell_index}}_{{index}}{{extension}}"
    config = Config({"ExtractOutputPreprocessor": {"output_filename_template": pictures}})
    resources = {"output_files_dir": "images"}
    text, resources = MarkdownExporter(config=config).from_notebook_node(book, resources)

    def adapt(link: re.Match) -> str:
        path, anchor = link[1], (link[2] or "").lower()  # GitHub's anchors are in lower case
        if path:
            there = posixpath.normpath(posixpath.join(posixpath.dirname(notebook), path))
            there = rendering_of(there) if there.endswith(".ipynb") else there
            path = posixpath.relpath(there, posixpath.dirname(target) or ".")
        return path + anchor

    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    alts = [o.data["text/plain"] for o in outputs if "image/png" in o.get("data", {})]
    for alt in alts:  # the plot's own description stands in for it
        words = re.sub(r"[\[\]\s]+", " ", alt).strip()
        text = text.replace("![png](", f"![{words}](", 1)
    text = re.sub(r" +$", "", LINK.sub(adapt, ANSI.sub("", text)), flags=re.MULTILINE)
    blocks = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)  # odd: code
    blocks[::2] = [re.sub(r"\n{3,}", "\n\n", block) for block in blocks[::2]]
    text = "".join(blocks)
    note = f"<!-- Rendered from {notebook} by convert_to_md.sh: edit the notebook. -->"
    files = {target: f"{note}\n\n{text.strip()}\n".encode()}
    for path, data in (resources["outputs"] or {}).items():
        files[posixpath.join(posixpath.dirname(notebook), path)] = data
    return files


notebooks = [TUTORIAL, *sorted(map(str, Path("content/chapters").glob("*.ipynb")))]
if not sys.argv[1:]:
    for notebook in notebooks:
        clean(notebook)
rendered = {path: data for notebook in notebooks for path, data in render(notebook).items()}
present = {str(path) for path in Path("content").glob("**/images/*.png")}
present |= {str(path) for path in Path("content/chapters").glob("*.md")}
if sys.argv[1:] == ["--check"]:
    stale = [p for p in rendered if not Path(p).exists() or Path(p).read_bytes() != rendered[p]]
    stale += sorted(present - rendered.keys())
    if stale:
        sys.exit("\n".join((*stale, "stale: run bash convert_to_md.sh")))
elif sys.argv[1:]:
    sys.exit(f"unknown: {' '.join(sys.argv[1:])}. Use it alone, or with --check")
else:
    for path in present - rendered.keys():
        Path(path).unlink()
    for path, data in rendered.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)
PYTHON
