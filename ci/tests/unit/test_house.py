"""The house is in order: each rule of ci/tests/house.py, over this checkout."""

from pathlib import Path

import pytest
from house import CHECKS, NOTEBOOK_CHECKS, notebooks

ROOT = Path(__file__).resolve().parents[3]


def require(faults: list[str]) -> None:
    """Fail with what is wrong, and nothing else: it is to be read."""
    if faults:
        pytest.fail("\n".join(["", *faults]), pytrace=False)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_checkout(check):
    require(check(ROOT))


@pytest.mark.parametrize("notebook", notebooks(ROOT), ids=lambda path: path.stem)
@pytest.mark.parametrize("check", NOTEBOOK_CHECKS, ids=lambda check: check.__name__)
def test_a_notebook(check, notebook):
    require(check(ROOT, notebook))
