"""The store, on a folder and over HTTP: it answers, or says in time that it does not."""

import asyncio
import os
import socket
import time
from pathlib import Path

import pytest
from conftest import FaultyStore
from hypothesis import given
from hypothesis import strategies as st

from model_store import (
    InvalidCustomerIdError,
    ModelStore,
    StoreUnavailableError,
    UnknownCustomerError,
    artifact_path,
)

ARTIFACT = "model.safetensors"


@pytest.fixture
def folder_store(tmp_path) -> ModelStore:
    return ModelStore(str(tmp_path / "models"))


def run(coroutine):
    return asyncio.run(coroutine)


def test_what_is_written_is_read_listed_and_found(folder_store):
    run(folder_store.write("customer_456", b"old"))
    run(folder_store.write("customer_123", b"first"))
    run(folder_store.write("customer_456", b"new"))
    assert run(folder_store.read("customer_456")).data == b"new"
    assert run(folder_store.list()) == ["customer_123", "customer_456"]
    assert run(folder_store.exists("customer_123"))
    assert not run(folder_store.exists("customer_000"))


def test_the_layout_is_a_folder_per_customer(folder_store, tmp_path):
    run(folder_store.write("customer_123", b"model"))
    assert (tmp_path / "models" / "customer_123" / "model.safetensors").read_bytes() == b"model"


def test_the_tag_changes_with_the_content(folder_store):
    run(folder_store.write("customer_123", b"one"))
    tag = run(folder_store.read("customer_123")).etag
    assert tag == run(folder_store.read("customer_123")).etag
    run(folder_store.write("customer_123", b"another"))
    assert tag != run(folder_store.read("customer_123")).etag


def test_a_missing_customer_is_unknown_and_a_missing_folder_is_unavailable(folder_store, tmp_path):
    with pytest.raises(UnknownCustomerError, match="customer_000"):
        run(folder_store.read("customer_000"))
    (tmp_path / "models").rmdir()
    with pytest.raises(StoreUnavailableError):
        run(folder_store.read("customer_000"))


@given(st.text(max_size=80))
def test_an_id_is_refused_or_stays_inside_its_own_folder(customer_id):
    try:
        path = artifact_path(customer_id, ARTIFACT)
    except InvalidCustomerIdError:
        return
    root = Path("/models")
    assert Path(os.path.normpath(root / path)) == root / customer_id / ARTIFACT
    assert customer_id.isascii() and customer_id.isprintable() and len(customer_id) <= 64


@pytest.mark.parametrize(
    "customer_id", ["", ".", "..", "../a", "a/b", "a\\b", "a\n", "a\0", " a", "-a", "a" * 65, "é"]
)
def test_a_malformed_id_is_refused_by_every_method(folder_store, customer_id):
    for call in folder_store.read, folder_store.exists, lambda id: folder_store.write(id, b""):
        with pytest.raises(InvalidCustomerIdError):
            run(call(customer_id))


def test_a_relative_path_means_a_folder_beside_the_code(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_STORE", "models")
    assert ModelStore().url == (Path(__file__).parents[2] / "content" / "models").as_uri()


def test_a_dead_endpoint_is_unavailable_within_the_timeout(monkeypatch):
    monkeypatch.setenv("STORE_TIMEOUT_S", "4")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    start = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        run(ModelStore(url).read("customer_123"))
    assert time.monotonic() - start < 2 * 4


def test_a_slow_or_failing_server_is_unavailable_and_a_missing_key_is_not(monkeypatch):
    monkeypatch.setenv("STORE_TIMEOUT_S", "1")
    server = FaultyStore()
    store = ModelStore(server.url)
    with pytest.raises(UnknownCustomerError):
        run(store.read("customer_123"))
    server.artifacts["customer_123"] = b"model"
    assert run(store.read("customer_123")).data == b"model"
    server.delay_s = 30
    start = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        run(store.read("customer_123"))
    assert time.monotonic() - start < server.delay_s
    server.delay_s, server.down = 0, True
    with pytest.raises(StoreUnavailableError):
        run(store.read("customer_123"))


def test_a_folder_that_hangs_is_unavailable_within_the_timeout(folder_store, monkeypatch, tmp_path):
    monkeypatch.setenv("STORE_TIMEOUT_S", "0.5")
    monkeypatch.setenv("STORE_ADDED_DELAY_S", "30")
    start = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="did not answer in"):
        run(ModelStore(str(tmp_path)).read("customer_123"))
    assert time.monotonic() - start < 30


def test_a_failing_server_is_asked_again_a_bounded_number_of_times():
    server = FaultyStore()
    server.down = True
    with pytest.raises(StoreUnavailableError):
        run(ModelStore(server.url).read("customer_123"))
    assert 2 <= server.reads["customer_123"] <= 3
