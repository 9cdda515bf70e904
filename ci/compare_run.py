"""Check a run of a notebook in a copy of content/: all cells ran, and wrote what is committed.

python ci/compare_run.py COPY NOTEBOOK REPORT

COPY is the copy of content/, NOTEBOOK a path in it, REPORT what nbval's pytest wrote as JUnit XML.
"""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

CONTENT = Path(__file__).parents[1] / "content"
WRITES = re.compile(r"%%writefile (\S+)\n")
NOT_RUN = "skipped", "failures", "errors"


def main(copy: Path, notebook: str, report: Path) -> None:
    """Exit with 1, and name what is wrong, unless the run is as it should be."""
    cells = json.loads((CONTENT / notebook).read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    suite = ElementTree.parse(report).getroot().find("testsuite")
    ran = int(suite.get("tests")) - sum(int(suite.get(outcome)) for outcome in NOT_RUN)
    problems = [] if ran == len(sources) else [f"{len(sources) - ran} cells did not run"]
    written = [match[1] for match in map(WRITES.match, sources) if match]
    problems += [
        f"{name} is not what its cell writes: edit the cell, run it, commit both"
        for name in written
        if (CONTENT / name).read_bytes() != (copy / name).read_bytes()
    ]
    seconds = float(suite.get("time"))
    print(f"{notebook}: {ran} of {len(sources)} cells ran in {seconds:.0f} s", *problems, sep="\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
