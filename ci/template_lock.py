"""Lock what the template needs: every package with its version and its hashes.

    python ci/template_lock.py            write ci/python_depset.lock anew
    python ci/template_lock.py --check    exit 1 unless it is what requirements.txt gives

Both ask PyPI. A package keeps its version in the present lock where requirements.txt allows it; to
have the newest of all, delete the lock first.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CI = Path(__file__).resolve().parent
REQUIREMENTS = CI.parent / "requirements.txt"
LOCK = CI / "python_depset.lock"  # the console's repository knows locks by this name
WORKSPACE_HAS = {"ray", "jupyter", "nbconvert"}  # and runs on them: do not install over them
PIN = re.compile(r"^([\w.-]+)(?:\[.*?\])?==([^\s;]+)", re.MULTILINE)
WRITE_ANEW = "run `python ci/template_lock.py`"


class StaleLockError(Exception):
    """The lock is not one of requirements.txt; the message says what to do."""


def pins(requirements: str) -> dict[str, str]:
    """Return the versions that a text of requirements pins, by package."""
    return dict(PIN.findall(requirements))


def template_requirements() -> str:
    """Return requirements.txt without what the workspace has."""
    lines = REQUIREMENTS.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if WORKSPACE_HAS.isdisjoint(pins(line)))


def present_lock() -> str:
    """Return the lock, or an empty text if there is none."""
    return LOCK.read_text() if LOCK.exists() else ""


def checked_lock() -> str:
    """Return the lock, or raise StaleLockError if it lacks a pin. Asks nobody."""
    missing = pins(template_requirements()).items() - pins(present_lock()).items()
    if missing:
        listed = ", ".join(sorted("==".join(pin) for pin in missing))
        raise StaleLockError(f"ci/{LOCK.name} lacks {listed}: {WRITE_ANEW}")
    return present_lock()


def compile_lock() -> str:
    """Return what the lock should be.

    Raises:
        subprocess.CalledProcessError: if the requirements contradict each other, or PyPI is away.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", REQUIREMENTS.name]
    command += ["--universal", "--python-version=3.11", "--generate-hashes"]
    command += ["--output-file", LOCK.name]
    command += ["--custom-compile-command=python ci/template_lock.py"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, REQUIREMENTS.name).write_text(template_requirements())
        Path(folder, LOCK.name).write_text(present_lock())
        subprocess.run(command, cwd=folder, check=True)
        return Path(folder, LOCK.name).read_text()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    lock = compile_lock()
    if not check:
        LOCK.write_text(lock)
    elif lock != present_lock():
        sys.exit(f"ci/{LOCK.name} is not what requirements.txt gives: {WRITE_ANEW}")


if __name__ == "__main__":
    main()
