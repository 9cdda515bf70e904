"""The unit tier stays quick: what takes a server or seconds to import is refused."""

import importlib

import pytest
from conftest import ELSEWHERE


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_belongs_to_another_tier_cannot_be_imported(name):
    with pytest.raises(ModuleNotFoundError, match=f"move the test to {ELSEWHERE[name]}"):
        importlib.import_module(name)


def test_nor_can_a_module_that_imports_it():
    with pytest.raises(ModuleNotFoundError, match="unit tests import no ray"):
        importlib.import_module("forecast_service.replica")
