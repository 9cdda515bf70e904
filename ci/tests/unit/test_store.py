"""A folder as a store, and a server that fails: it answers, or says in time that it does not."""

import os
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_suite import CALLS, StoreSuite, run, why_not

from faulty_store import FaultyStore
from forecast_service.customer_ids import check_customer_id
from forecast_service.errors import (
    InvalidCustomerIdError,
    StoreUnavailableError,
    UnknownCustomerError,
)
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore


def store_at(place: object, **settings: float) -> ModelStore:
    return ModelStore(StoreSettings(model_store=str(place), **settings))


@pytest.fixture
def store(tmp_path) -> ModelStore:
    (tmp_path / "models").mkdir()
    return store_at(tmp_path / "models")


class TestFolder(StoreSuite):
    """All that holds for S3, too."""


def test_the_layout_is_a_folder_per_customer(store, tmp_path):
    run(store.write("customer_123", b"model"))
    assert (tmp_path / "models" / "customer_123" / "model.safetensors").read_bytes() == b"model"


def test_a_missing_folder_is_named_and_not_made(tmp_path):
    missing = tmp_path / "no such" / "models"
    with pytest.raises(FileNotFoundError) as raised:
        store_at(missing)
    assert str(missing) in str(raised.value) and "train_models.py" in str(raised.value)
    assert list(tmp_path.iterdir()) == [], "a missing store became a new, empty one"


def test_a_file_in_the_place_of_the_folder_is_no_store(tmp_path):
    (tmp_path / "models").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="models"):
        store_at(tmp_path / "models")


def test_training_makes_the_folder(tmp_path):
    settings = StoreSettings(model_store=str(tmp_path / "new" / "models"))
    run(ModelStore(settings, create=True).write("customer_123", b"model"))
    assert run(ModelStore(settings).list()) == ["customer_123"]


def test_without_settings_it_is_the_environments(monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL_STORE", str(tmp_path))
    assert ModelStore().folder == tmp_path


@pytest.mark.parametrize("call", ["read", "read_if_changed", "list"])
def test_a_folder_that_has_gone_is_a_missing_store_and_comes_back(store, call):
    store.folder.rmdir()
    assert why_not(store, call) == "the model store does not exist"
    store.folder.mkdir()
    assert run(store.list()) == []


def test_a_file_where_a_customers_folder_would_be_is_no_model(store):
    (store.folder / "customer_123").write_bytes(b"a stray file")
    with pytest.raises(UnknownCustomerError, match="customer_123"):
        run(store.read("customer_123"))


@given(st.text(max_size=80))
def test_an_id_is_refused_or_stays_inside_its_own_folder(customer_id):
    try:
        check_customer_id(customer_id)
    except InvalidCustomerIdError:
        return
    root = Path("/models")
    assert Path(os.path.normpath(root / customer_id / "model")) == root / customer_id / "model"
    assert customer_id.isascii() and customer_id.isprintable() and len(customer_id) <= 64


@pytest.mark.parametrize("call", CALLS)
def test_a_dead_endpoint_is_unavailable_within_the_timeout(call):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        store = store_at(f"http://127.0.0.1:{unused.getsockname()[1]}", store_timeout_s=4)
        started = time.monotonic()
        assert "does not answer" in why_not(store, call)
        assert time.monotonic() - started < 2 * 4


def test_a_slow_or_failing_server_is_unavailable_and_a_missing_key_is_not():
    server = FaultyStore()
    store = store_at(server.url, store_timeout_s=1)
    with pytest.raises(UnknownCustomerError):
        run(store.read("customer_123"))
    server.artifacts["customer_123"] = b"model"
    assert run(store.read("customer_123")).data == b"model"
    server.delay_s = 30
    started = time.monotonic()
    assert why_not(store, "read").startswith("the model store d")  # does not, or did not, answer
    assert time.monotonic() - started < server.delay_s
    server.delay_s, server.down = 0, True
    assert why_not(store, "read") == "the model store does not answer"
    server.down = False
    assert run(store.read("customer_123")).data == b"model"


def test_a_failing_server_is_asked_again_a_bounded_number_of_times():
    server = FaultyStore()
    server.down = True
    with pytest.raises(StoreUnavailableError) as raised:
        run(store_at(server.url).read("customer_123"))
    assert 2 <= server.reads["customer_123"] <= 3
    assert server.url not in str(raised.value), "clients are told an address"
    assert server.url in str(raised.value.__cause__), "the log does not say which address"
