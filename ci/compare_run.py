"""Check a run of the notebook in a copy of content/: all cells ran, and wrote what is committed.

python ci/compare_run.py COPY    COPY holds content/ and nbval's report cells.xml
"""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

COMMITTED = Path(__file__).parents[1] / "content"
WRITES = re.compile(r"%%writefile (\S+)\n")


def main() -> None:
    copy = Path(sys.argv[1])
    notebook = json.loads((COMMITTED / "notebook.ipynb").read_text())
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    suite = ElementTree.parse(copy / "cells.xml").getroot().find("testsuite")
    ran = int(suite.get("tests")) - sum(
        int(suite.get(outcome)) for outcome in ("skipped", "failures", "errors")
    )
    problems = [f"{ran} cells ran, the notebook has {len(sources)}"] if ran != len(sources) else []

    written = {match[1] for match in map(WRITES.match, sources) if match}
    committed = {path.name for path in COMMITTED.glob("*.py") if "_pb2" not in path.name}
    problems += [
        f"{name} is committed, and no cell writes it" for name in sorted(committed - written)
    ]
    for name in sorted(written):
        if (
            not (COMMITTED / name).exists()
            or (COMMITTED / name).read_bytes() != (copy / "content" / name).read_bytes()
        ):
            problems.append(
                f"{name} is not what its cell writes: edit the cell, run the notebook, commit both"
            )
    print(
        "\n".join(problems) or f"{ran} cells ran and wrote {len(written)} files, each as committed"
    )
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
