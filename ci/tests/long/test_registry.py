"""What MLflow calls the champion comes into the store; what differs, and cannot, is named."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forecast_service.artifact import from_bytes, to_bytes
from forecast_service.errors import CorruptModelError
from forecast_service.model import HOLDOUT_DAYS, Scores, fit
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore
from train_models import load_footfall

pytest.importorskip("mlflow", reason="pip install -r chapters/requirements_mlflow.txt")

from mlflow.store.entities import PagedList

from lab.mlflow_server import MlflowServer
from own_models.registry import (
    ALIAS,
    PREFIX,
    SHA256,
    RegistryError,
    _pages,
    compare,
    connect,
    promote,
    register,
    sync,
)

CONTENT = Path(__file__).parents[3] / "content"
SCORES = Scores(*np.ones(4))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def client(server):
    """A client of a registry without models."""
    client = connect(server.url)
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    return client


@pytest.fixture
def store(tmp_path) -> ModelStore:
    return ModelStore(StoreSettings(model_store=str(tmp_path / "models")), create=True)


@pytest.fixture(scope="module")
def artifacts() -> list[bytes]:
    """Two models of customer_123."""
    ids, _, counts = load_footfall()
    model = fit("customer_123", counts[ids.index("customer_123")][:-HOLDOUT_DAYS], "2025-07-02")
    wider = replace(model, half_width=model.half_width * 2)
    return [to_bytes(model, SCORES), to_bytes(wider, SCORES)]


async def held(store: ModelStore, customer_id: str = "customer_123") -> bytes:
    return (await store.read(customer_id)).data


def test_a_promotion_and_a_roll_back_reach_the_store(client, store, artifacts):
    for data in artifacts:
        version = register(client, "customer_123", data)
        promote(client, "customer_123", version)
        (difference,) = asyncio.run(compare(client, store))
        assert (
            f"version {version} is the {ALIAS}, the store has" in difference.what
            and not difference.mended
        )
        (mended,) = asyncio.run(sync(client, store))
        assert mended.mended and asyncio.run(held(store)) == data
        assert asyncio.run(compare(client, store)) == asyncio.run(sync(client, store)) == []
    promote(client, "customer_123", "1")
    asyncio.run(sync(client, store))
    assert asyncio.run(held(store)) == artifacts[0]


def test_a_model_of_another_customer_is_neither_registered_nor_copied(client, store, artifacts):
    with pytest.raises(CorruptModelError, match=r"customer_456.* belongs to another customer"):
        register(client, "customer_456", artifacts[0])
    version = register(client, "customer_123", artifacts[0])
    source = client.get_model_version(PREFIX + "customer_123", version)
    client.create_registered_model(PREFIX + "customer_456")  # by hand, as in the web page
    wrong = client.create_model_version(
        PREFIX + "customer_456", source=source.source, run_id=source.run_id
    )
    promote(client, "customer_456", wrong.version)
    promote(client, "customer_123", version)
    differences = {found.customer_id: found for found in asyncio.run(sync(client, store))}
    assert differences["customer_123"].mended
    assert "belongs to another customer" in differences["customer_456"].what
    assert not differences["customer_456"].mended and asyncio.run(store.list()) == ["customer_123"]


def test_a_customer_without_a_champion_and_one_that_only_the_store_has_are_named(
    client, store, artifacts
):
    register(client, "customer_123", artifacts[0])
    asyncio.run(store.write("customer_789", b"any"))
    what = {found.customer_id: found.what for found in asyncio.run(sync(client, store))}
    assert what == {
        "customer_123": f"no version is the {ALIAS} in the registry",
        "customer_789": "the store has a model, the registry does not know it",
    }


def test_all_pages_of_a_search_are_read():
    """MLflow answers with a hundred at a time."""
    pages = {None: "ab", "2": "cd", "3": "e"}
    tokens = {None: "2", "2": "3", "3": ""}

    def search(filter_string: str, page_token: str | None) -> PagedList:
        assert filter_string == "any"
        return PagedList(pages[page_token], tokens[page_token])

    assert list(_pages(search, "any")) == list("abcde")


def test_models_of_others_are_left_alone(client, store):
    client.create_registered_model("fraud-detector")
    assert asyncio.run(sync(client, store)) == []


def test_an_artifact_that_was_exchanged_in_the_registry_is_not_copied(client, store, artifacts):
    version = register(client, "customer_123", artifacts[0])
    client.set_model_version_tag(PREFIX + "customer_123", version, SHA256, "0" * 64)
    promote(client, "customer_123", version)
    (difference,) = asyncio.run(sync(client, store))
    assert "not what was registered" in difference.what and asyncio.run(store.list()) == []


def test_a_version_without_a_checksum_is_compared_by_its_artifact(client, store, artifacts):
    version = register(client, "customer_123", artifacts[0])
    client.delete_model_version_tag(PREFIX + "customer_123", version, SHA256)
    promote(client, "customer_123", version)
    assert asyncio.run(sync(client, store))[0].mended and asyncio.run(sync(client, store)) == []


def test_a_registry_that_is_down_is_one_clear_error(store):
    with pytest.raises(RegistryError, match=r"http://127.0.0.1:1: it does not answer; the service"):
        asyncio.run(sync(connect("http://127.0.0.1:1"), store))


def test_an_alias_for_a_version_that_is_not_there_is_refused_by_the_registry(client, artifacts):
    register(client, "customer_123", artifacts[0])
    with pytest.raises(RegistryError, match="not found"):
        promote(client, "customer_123", "7")


def test_the_command_mends_and_says_what_is_left(client, server, store, artifacts):
    promote(client, "customer_123", register(client, "customer_123", artifacts[0]))
    command = [sys.executable, "-m", "own_models.registry"]

    def call(do: str, uri: str = server.url) -> subprocess.CompletedProcess:
        environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "MODEL_STORE": store.url}
        return subprocess.run(
            [*command, do],
            cwd=CONTENT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    for do, status, said in (
        ("compare", 1, "1 differences, 1 left"),
        ("sync", 0, "1 differences, 0 left"),
        ("compare", 0, "0 differences, 0 left"),
    ):
        done = call(do)
        assert (done.returncode, said in done.stdout) == (status, True), done.stderr
    assert from_bytes(asyncio.run(held(store)), "customer_123")
    done = call("sync", "http://127.0.0.1:1")
    assert done.returncode == 1 and "it does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    done = call("sync", "")
    assert done.returncode == 1 and "set MLFLOW_TRACKING_URI" in done.stderr
