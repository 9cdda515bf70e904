"""The image's packages: an index has them for its Python, and its files need no others."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import image
import pytest

from template_lock import pins

((RAY, PYTHON),) = re.findall(
    r"^FROM rayproject/ray:([\d.]+)-py3(\d+)$", image.DOCKERFILE.read_text(), re.MULTILINE
)
REQUIREMENTS = image.CONTENT / "deploy/requirements.txt"


def uv(*command: str | Path, **options: str) -> str:
    command = [sys.executable, "-m", "uv", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def images_python() -> str:
    """Return a Python of the image's version, or this one if the machine has none."""
    named = shutil.which(f"python3.{PYTHON}")
    works = named and subprocess.run([named, "-V"], capture_output=True).returncode == 0
    return named if works else sys.executable


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_requirements_resolve_beside_the_images_ray_for_its_python(machine):
    resolved = uv(
        *("pip", "compile", "--quiet", "--only-binary=:all:", f"--python-version=3.{PYTHON}"),
        *(f"--python-platform={machine}-manylinux_2_28", REQUIREMENTS, "-"),
        input=f"ray[all]=={RAY}",  # which the image has
    )
    wanted = pins(REQUIREMENTS.read_text()) | {"ray": RAY}
    assert wanted.items() <= pins(resolved).items()


def test_ray_and_the_requirements_are_all_that_the_images_entries_import(tmp_path):
    python, root = tmp_path / "venv/bin/python", tmp_path / "image"
    uv("venv", "--quiet", f"--python={images_python()}", tmp_path / "venv")
    uv("pip", "install", "--quiet", f"--python={python}", "-r", REQUIREMENTS, f"ray[serve]=={RAY}")
    done = image.import_entries(str(python), root, image.copy_into(root))
    assert done.returncode == 0, done.stderr
