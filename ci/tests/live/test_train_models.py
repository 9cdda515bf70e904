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
from forecast_service.model import Scores


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
    trained, live_store, tmp_path, monkeypatch
):
    monkeypatch.setenv("MODEL_STORE", str(tmp_path))
    train_models.main()
    assert digests(tmp_path) == digests(trained[0])


def test_one_customer_that_cannot_be_fitted_does_not_stop_the_others(
    live_store, footfall, tmp_path, monkeypatch
):
    customer_ids, dates, counts = footfall
    gappy = counts[:3].astype(float)
    gappy[1, 50] = np.nan
    monkeypatch.setenv("MODEL_STORE", str(tmp_path))
    outcomes = train_models.train(customer_ids[:3], dates, gappy)
    assert [isinstance(outcomes[customer_id], Scores) for customer_id in customer_ids[:3]] == [
        True,
        False,
        True,
    ]
    assert "gap" in outcomes[customer_ids[1]]
