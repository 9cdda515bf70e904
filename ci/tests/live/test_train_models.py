"""The fleet: the script works by itself, keeps its promises, and gives the same bytes again."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from live_service import CONTENT

import train_models
from forecast_service.model import HOLDOUT_DAYS, Scores
from forecast_service.settings import StoreSettings


def train(folder: Path) -> str:
    """Run the script as a reader does. Returns what it prints."""
    env = os.environ | {"MODEL_STORE": str(folder)}
    env.pop("RAY_ADDRESS", None)
    command = [sys.executable, "train_models.py"]
    return subprocess.run(
        command, cwd=CONTENT, env=env, check=True, timeout=300, capture_output=True, text=True
    ).stdout


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("models")
    return folder, train(folder)


def test_every_customer_has_a_model(trained, footfall):
    assert set(digests(trained[0])) == {
        f"{customer_id}/model.safetensors" for customer_id in footfall[0]
    }


def test_the_fleet_is_good_enough_to_be_served(trained):
    summary = re.search(r"MASE ([\d.]+) \(seasonal naive ([\d.]+)\).*covers ([\d.]+)%", trained[1])
    mase, naive, coverage = map(float, summary.groups())
    assert mase <= 0.85 and mase < naive
    assert 75 <= coverage <= 85


def test_training_again_on_another_cluster_gives_the_same_bytes(
    trained, session_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("MODEL_STORE", str(tmp_path))
    train_models.main()
    assert digests(tmp_path) == digests(trained[0])


def run_main(monkeypatch, folder: Path, *fleet: object) -> dict[str, Scores | str]:
    """Run main() as the script does, with another fleet, and a folder as the store."""
    monkeypatch.setenv("MODEL_STORE", str(folder))
    monkeypatch.setattr(train_models, "load_footfall", lambda: fleet)
    return train_models.main()


def with_value(series: np.ndarray, day: int, value: float) -> np.ndarray:
    changed = series.astype(float)
    changed[day] = value
    return changed


def test_whatever_is_wrong_with_some_customers_is_said_and_the_others_are_trained(
    session_dir, footfall, trained, tmp_path, monkeypatch, capsys
):
    customer_ids, dates, counts = footfall
    good, series = customer_ids[:40], counts[50]  # more than a batch
    (tmp_path / "unwritable").write_bytes(b"a file where its folder would be")
    bad = [  # id, series, what is said of it
        ("gap", with_value(series, 50, np.nan), r"the first is day 51 \(nan\)"),
        ("late_gap", with_value(series, -1, np.nan), rf"the first is day {len(dates)} \(nan\)"),
        ("returns", with_value(series, -5, -1), "FLOOR"),
        ("short", series[:216], "216 days are too few, at least 399 .* held out"),
        ("long", np.append(series, 1), f"{len(dates) + 1} counts for {len(dates)} dates"),
        ("words", ["many"] * len(dates), "numbers"),
        ("square", np.ones((len(dates), 2)), "shape"),
        ("unwritable", series, "not stored: .*Not a directory"),
        ("store 12/Nord", series, "1 to 64 of"),
        ("Store \U0001f3ea\n", series, "1 to 64 of"),
        ("twice", series, "2 series have this id"),
        ("twice", counts[51], "2 series have this id"),
        ("Nord", series, "2 series have this id, upper and lower case alike"),
        ("nord", series, "2 series have this id, upper and lower case alike"),
        ("", series, "1 to 64 characters"),
        (12, series, "1 to 64 characters"),
        (np.nan, series, "1 to 64 characters"),
    ]
    bad_ids, bad_series, said = zip(*bad, strict=True)
    with pytest.raises(SystemExit) as exit:
        run_main(
            monkeypatch, tmp_path, [*bad_ids, *good], dates, [*bad_series, *counts[: len(good)]]
        )
    first, *reasons = exit.value.code.splitlines()  # a text: the status is 1
    assert len(reasons) == len(set(bad_ids)) and first.startswith(f"{len(reasons)} customers")
    reasons.insert(bad_ids.index("twice"), reasons[bad_ids.index("twice")])
    for customer_id, reason, pattern in zip(bad_ids, reasons, said, strict=True):
        assert reason.lstrip("'").startswith(str(customer_id).strip()) and re.search(
            pattern, reason
        )
    assert f"{len(good)} models" in capsys.readouterr().out
    expected = {f"{customer_id}/model.safetensors" for customer_id in good}
    stored = digests(tmp_path)
    del stored["unwritable"]
    assert stored == {name: digests(trained[0])[name] for name in expected}


def test_scores_that_do_not_exist_are_said_and_change_no_mean(
    session_dir, footfall, trained, tmp_path, monkeypatch, capsys
):
    customer_ids, dates, counts = footfall
    weekly = np.resize([10, 20, 30, 40, 50, 60, 70], len(dates))
    closed = np.where(np.arange(len(dates)) < len(dates) - HOLDOUT_DAYS, counts[0], 0)
    names, rows = [*customer_ids[:3], "weekly", "closed"], [*counts[:3], weekly, closed]
    outcomes = run_main(monkeypatch, tmp_path, names, dates, np.array(rows))
    out = capsys.readouterr().out
    assert "1 of 5 have no MASE" in out and "1 of 5 have no WAPE" in out
    assert outcomes["weekly"].existing().keys() == {"wape", "coverage"}
    assert outcomes["closed"].existing().keys() == {"mase", "naive_mase", "coverage"}
    mase = np.mean([outcomes[name].mase for name in [*names[:3], "closed"]])
    assert f"MASE {mase:.3f}" in out and not re.search("inf|nan", out)
    assert b"holdout_mase" not in (tmp_path / "weekly" / "model.safetensors").read_bytes()
    assert b"holdout_mase" in (tmp_path / "closed" / "model.safetensors").read_bytes()


def test_a_fleet_without_any_score_of_a_kind_is_summed_up_without_it():
    (line, said) = train_models.summarize([Scores(np.nan, np.nan, 0.5, 1)]).splitlines()
    assert line == "WAPE 50.0%, interval covers 100.0% of days" and said.startswith("1 of 1")


@pytest.mark.parametrize("days", [0, HOLDOUT_DAYS, 398])
def test_a_fleet_none_of_which_can_be_fitted_is_named_customer_by_customer(
    session_dir, footfall, tmp_path, monkeypatch, days
):
    customer_ids, dates, counts = footfall
    with pytest.raises(SystemExit) as exit:
        run_main(monkeypatch, tmp_path, customer_ids[:3], dates[:days], counts[:3, :days])
    reasons = exit.value.code.splitlines()[1:]
    for customer_id, reason in zip(customer_ids, reasons, strict=False):
        assert reason.startswith(f"{customer_id}: {days} days are too few")
    assert len(reasons) == 3


def test_a_fleet_of_nobody_is_a_failure(session_dir, footfall, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no customers"):
        run_main(monkeypatch, tmp_path, [], footfall[1], np.empty((0, len(footfall[1]))))


def test_series_that_nobody_can_tell_whose_they_are_train_nothing(footfall, tmp_path):
    customer_ids, dates, counts = footfall
    with pytest.raises(ValueError, match=r"470 customer ids for 1188 series: .*customers, days"):
        train_models.train(customer_ids, dates, counts.T, StoreSettings(model_store=str(tmp_path)))
    assert not digests(tmp_path)


def test_outcomes_are_in_the_order_of_the_customers(session_dir, footfall, tmp_path):
    customer_ids, dates, counts = footfall
    names = [*customer_ids[:40], "a b", *customer_ids[40:80]]
    rows = np.insert(counts[:80], 40, 0, axis=0)
    outcomes = train_models.train(names, dates, rows, StoreSettings(model_store=str(tmp_path)))
    assert list(outcomes) == names
