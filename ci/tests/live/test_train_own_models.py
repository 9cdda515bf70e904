"""Training says of each family how far it came, and ends with 1 if it came nowhere."""

import sys

import numpy as np
import pytest

import train_own_models
from own_models import families

DAYS = 800


@pytest.fixture
def train(tmp_path, monkeypatch, capsys, footfall):
    """Run the command on a table of two customers, of whom one may be young, without a Ray."""
    counts, first = footfall[2][:2, -DAYS:], footfall[1][-DAYS:]
    fit_customer = train_own_models.fit_customer._function
    results = []

    class Remote:
        @staticmethod
        def remote(*arguments) -> int:
            results.append(fit_customer(*arguments))
            return len(results) - 1

    monkeypatch.setattr(train_own_models, "fit_customer", Remote)
    monkeypatch.setattr(train_own_models.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(train_own_models.ray, "wait", lambda tasks: (tasks[:1], tasks[1:]))
    monkeypatch.setattr(train_own_models.ray, "get", results.__getitem__)
    monkeypatch.setenv("MODEL_STORE", str(tmp_path / "models"))

    def train(*options: str, second_days: int = DAYS) -> tuple[str, str]:
        lines = ["customer,date,value"]
        for row, (name, days) in enumerate((("old", DAYS), ("two", second_days))):
            days_and_counts = zip(first[-days:], counts[row, -days:], strict=True)
            lines += [f"{name},{day},{count}" for day, count in days_and_counts]
        (tmp_path / "t.csv").write_text("\n".join(lines))
        monkeypatch.setattr(sys, "argv", ["train_own_models.py", str(tmp_path / "t.csv"), *options])
        left = ""
        try:
            train_own_models.main()
        except SystemExit as ended:
            left = str(ended.code)
        return capsys.readouterr().out, left

    return train


def test_a_family_that_fails_for_everybody_is_said_with_its_reason(train, monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "mine", lambda lags, future: np.zeros(3))
    monkeypatch.setattr(train_own_models, "EVERY_FAMILY", ("mine", families.LINEAR))
    out, left = train()
    assert "2 models in" in out
    assert "mine: fitted for 0 of 2 customers, chosen for 0\n" in out
    assert "linear: fitted for 2 of 2 customers, chosen for 2\n" in out
    assert left.startswith("mine could be fitted for nobody, at last the family mine returned nd")
    assert "no model for" not in left


def test_one_that_fits_some_is_counted_and_no_fault(train, monkeypatch):
    monkeypatch.setattr(train_own_models, "EVERY_FAMILY", ("nearest weeks", families.LINEAR))
    out, left = train(second_days=410)
    assert "nearest weeks: fitted for 1 of 2 customers, chosen for " in out
    assert "linear: fitted for 2 of 2 customers, chosen for " in out
    assert not left


def test_who_has_no_model_is_said_with_the_reason(train):
    out, left = train("--family", "linear", second_days=100)
    assert "linear: fitted for 1 of 2 customers, chosen for 1\n" in out
    assert left.startswith("no model for 1 of the customers:\ntwo: 100 days are too few")
