"""What deploy/Dockerfile makes, for tests that have no container engine."""

import os
import re
import shutil
import subprocess
from pathlib import Path

CONTENT = Path(__file__).parents[2] / "content"
DOCKERFILE = CONTENT / "deploy/Dockerfile"
ENTRIES = "serve_forecast_multiplex", "serve_forecast_production", "serve_portfolio"
GUARD = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
IMPORT = """
import importlib, sys
folder, guard, *entries = sys.argv[1:]
assert "" not in sys.path and sys.path[0].startswith(folder), sys.path
for name in entries:
    module = importlib.import_module(name)
    assert module.__file__.startswith(folder), f"{module.__file__} is not the image's"
    assert module.app, f"{name} has no application"
module, function = guard.split(":")
assert getattr(importlib.import_module(module), function)()
"""


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each with its arguments."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def environment() -> dict[str, str]:
    """Return the variables that the image sets."""
    return dict(words.split("=", 1) for name, words in instructions() if name == "ENV")


def copied() -> list[tuple[list[str], str]]:
    """Return what the image copies: paths in content/, and where they go."""
    found = []
    for name, arguments in instructions():
        if name == "COPY":
            *paths, target = [word for word in arguments.split() if not word.startswith("--")]
            found.append((paths, target))
    return found


def copy_into(root: Path) -> str:
    """Copy what the image copies into a folder that stands for its root. Return its PYTHONPATH."""
    for paths, target in copied():
        place = root / target.lstrip("/")
        for path in map(CONTENT.joinpath, paths):
            if path.is_dir():  # Docker copies what is in it
                caches = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, place, ignore=caches, dirs_exist_ok=True)
            else:
                file = place / path.name if target.endswith("/") else place
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, file)
    return f"{root}{environment()['PYTHONPATH']}"


def import_entries(python: str, root: Path, python_path: str) -> subprocess.CompletedProcess:
    """Import what the image serves, where nothing but its files and site-packages is found."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [python, "-P", "-c", IMPORT, root, environment()[GUARD], *ENTRIES],
        cwd=root,
        env=clean | {"PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=120,
    )
