"""Fixtures: the exported template. For test modules that name it in pytest_plugins."""

from pathlib import Path

import pytest

from template_files import TEMPLATE_NAME, run_export


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """The tutorial, exported for the template console."""
    output = tmp_path_factory.mktemp("exported")
    done = run_export(output)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="session")
def template(exported) -> Path:
    """The folder of the exported template."""
    return exported / "templates" / TEMPLATE_NAME
