"""Send the service many more inputs than CI does that nobody would think of, and count them.

    python ci/benchmarks/fuzz.py [--short] [--examples N]

Runs ci/tests/{unit,live}/test_fuzz_*.py, as CI does, with N inputs for each of their tests, and
writes content/data/fuzz.json; with --short, it tries few and writes nothing. Exits 1 if one fails.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import ray

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "ci" / "tests"
TIERS = "unit", "live"
RESULTS = ROOT / "content" / "data" / "fuzz.json"
EXAMPLES, SHORT_EXAMPLES = 1000, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help=f"{SHORT_EXAMPLES} inputs a test")
    parser.add_argument("--examples", type=int, help=f"default {EXAMPLES}")
    options = parser.parse_args()
    examples = options.examples or (SHORT_EXAMPLES if options.short else EXAMPLES)
    env = os.environ | {"FUZZ_EXAMPLES": str(examples)}
    cases, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        for tier in TIERS:  # each in a process of its own: the unit tests' refuses to import Ray
            report = Path(folder) / f"{tier}.xml"
            tests = sorted((TESTS / tier).glob("test_fuzz_*.py"))
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
            done = subprocess.run([*command, f"--junitxml={report}"], env=env)
            failed |= done.returncode != 0
            cases += ElementTree.parse(report).iter("testcase")
    if options.short:
        sys.exit(failed)
    results = {
        "date": date.today().isoformat(),
        "ray": ray.__version__,
        "python": platform.python_version(),
        "inputs_per_test": examples,
        "seconds_by_test": {case.get("name"): float(case.get("time")) for case in cases},
        "failed": [case.get("name") for case in cases if len(case)],
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
