"""The template's lock is what a package index gives for its requirements."""

import subprocess
import sys

from template_files import CI


def test_the_lock_is_what_the_requirements_give():
    command = [sys.executable, CI / "template_lock.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
