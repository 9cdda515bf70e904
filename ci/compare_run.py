"""Check a run of the notebooks in a copy of content/: all cells ran, and wrote what is committed.

python ci/compare_run.py COPY    COPY holds content/ and, by notebook, nbval's report NAME.xml
"""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

COMMITTED = Path(__file__).parents[1] / "content"
NOTEBOOKS = "notebook", "pytorch_s3"
WRITES = re.compile(r"%%writefile (\S+)\n")
NOT_RUN = "skipped", "failures", "errors"


def code_cells(notebook: str) -> list[str]:
    """Return the sources of a notebook's code cells."""
    cells = json.loads((COMMITTED / f"{notebook}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def main() -> None:
    copy = Path(sys.argv[1])
    problems, written = [], set()
    for notebook in NOTEBOOKS:
        sources = code_cells(notebook)
        written |= {match[1] for match in map(WRITES.match, sources) if match}
        suite = ElementTree.parse(copy / f"{notebook}.xml").getroot().find("testsuite")
        ran = int(suite.get("tests")) - sum(int(suite.get(outcome)) for outcome in NOT_RUN)
        print(f"{notebook}: {ran} of {len(sources)} cells ran")
        if ran != len(sources):
            problems.append(f"{notebook}: {len(sources) - ran} cells did not run")

    committed = {path.name for path in COMMITTED.glob("*.py") if "_pb2" not in path.name}
    problems += [f"{name} is committed, and no cell writes it" for name in committed - written]
    for name in sorted(written):
        file = COMMITTED / name
        if not file.exists() or file.read_bytes() != (copy / "content" / name).read_bytes():
            problems.append(
                f"{name} is not what its cell writes: edit the cell, run it, commit both"
            )
    print("\n".join(problems) or f"They wrote {len(written)} files, each as committed")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
