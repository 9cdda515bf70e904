"""What holds for a folder holds for S3, and what only S3 can get wrong has one clear error."""

import asyncio
import os
import socket
import time
from pathlib import Path

import pytest

from model_store import (
    Artifact,
    ModelStore,
    StoreUnavailableError,
    UnknownCustomerError,
    artifact_path,
)
from s3_relay import Relay
from s3_server import S3Server

TIMEOUT_S = 1
BUCKET = "models"
FLEET = 10_000  # ten pages of an S3 listing
WRITES_AT_ONCE = 32
CALLS = {
    "read": lambda store: store.read("customer_123"),
    "read_if_changed": lambda store: store.read_if_changed("customer_123", '"a tag"'),
    "exists": lambda store: store.exists("customer_123"),
    "write": lambda store: store.write("customer_123", b"model"),
    "list": lambda store: store.list(),
}


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3")
    with S3Server(folder, BUCKET, access_key="customer", secret="of-the-tests") as server:
        yield server


@pytest.fixture
def s3_url(s3_server, tmp_path, monkeypatch) -> str:
    """A prefix of its own for each test, with the credentials for it in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def s3_store(s3_url, monkeypatch) -> ModelStore:
    monkeypatch.setenv("MODEL_STORE", s3_url)
    return ModelStore()


@pytest.fixture
def folder_store(tmp_path, monkeypatch) -> ModelStore:
    monkeypatch.setenv("MODEL_STORE", str(tmp_path / "models"))
    return ModelStore()


@pytest.fixture(params=["folder", "s3"])
def store(request) -> ModelStore:
    return request.getfixturevalue(f"{request.param}_store")


@pytest.fixture
def relay(s3_server, s3_store, monkeypatch) -> Relay:
    """What stands between the S3 server and the stores that a test makes from now on."""
    relay = Relay(s3_server.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", relay.endpoint)
    monkeypatch.setenv("STORE_TIMEOUT_S", str(TIMEOUT_S))
    return relay


@pytest.fixture
def nobody(monkeypatch):
    """An address at which nobody listens, for as long as the test runs."""
    monkeypatch.setenv("STORE_TIMEOUT_S", str(TIMEOUT_S))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


def run(coroutine):
    return asyncio.run(coroutine)


def fail(store: ModelStore, call: str) -> str:
    """Return the reason that a call gives for failing."""
    with pytest.raises(StoreUnavailableError) as caught:
        run(CALLS[call](store))
    return str(caught.value)


# A folder and S3 alike


def test_what_is_written_is_read_found_and_listed(store):
    run(store.write("customer_456", b"a model"))
    run(store.write("customer_123", b""))
    assert run(store.read("customer_456")).data == b"a model"
    assert run(store.read("customer_123")).data == b""
    assert run(store.exists("customer_123"))
    assert run(store.list()) == ["customer_123", "customer_456"]


def test_a_new_store_is_empty(store):
    assert run(store.list()) == []


def test_an_overwritten_model_is_gone(store):
    run(store.write("customer_123", b"a long old model"))
    run(store.write("customer_123", b"new"))
    assert run(store.read("customer_123")).data == b"new"
    assert run(store.list()) == ["customer_123"]


def test_a_reader_sees_the_old_model_or_the_new_one_and_no_mixture(store):
    versions = [letter * 100_000 for letter in (b"a", b"b")]

    async def read_while_written() -> set[bytes]:
        async def write_by_turns() -> None:
            for turn in range(40):
                await store.write("customer_123", versions[turn % 2])

        await store.write("customer_123", versions[1])
        writing, seen = asyncio.create_task(write_by_turns()), set()
        while not writing.done():
            seen.add((await store.read("customer_123")).data)
        await writing
        return seen

    assert run(read_while_written()) <= set(versions)


def test_a_customer_without_a_model_is_unknown(store):
    run(store.write("customer_123", b"model"))
    with pytest.raises(UnknownCustomerError, match="customer_000"):
        run(store.read("customer_000"))
    with pytest.raises(UnknownCustomerError, match="customer_000"):
        run(store.read_if_changed("customer_000", run(store.read("customer_123")).etag))
    assert not run(store.exists("customer_000"))


def test_the_tag_stays_with_the_content_and_changes_with_it(store):
    run(store.write("customer_123", b"one"))
    tag = run(store.read("customer_123")).etag
    assert tag == run(store.read("customer_123")).etag
    run(store.write("customer_123", b"two"))
    assert tag != run(store.read("customer_123")).etag


def test_a_model_is_sent_again_only_if_it_changed(store):
    run(store.write("customer_123", b"one"))
    first = run(store.read("customer_123"))
    assert run(store.read_if_changed("customer_123", first.etag)) is None
    run(store.write("customer_123", b"two"))
    second = run(store.read_if_changed("customer_123", first.etag))
    assert second == Artifact(b"two", run(store.read("customer_123")).etag)
    assert run(store.read_if_changed("customer_123", second.etag)) is None


def test_who_has_no_tag_is_sent_the_model(store):
    run(store.write("customer_123", b"model"))
    assert run(store.read_if_changed("customer_123", None)) == run(store.read("customer_123"))


def test_ten_thousand_customers_are_listed_each_once_and_in_order(store):
    customer_ids = [f"customer_{number:05d}" for number in range(FLEET)]
    gate = asyncio.Semaphore(WRITES_AT_ONCE)

    async def write(customer_id: str) -> None:
        async with gate:
            await store.write(customer_id, b"model")

    async def write_all() -> None:
        await asyncio.gather(*map(write, reversed(customer_ids)))

    run(write_all())
    assert run(store.list()) == customer_ids


def test_a_store_lists_nothing_of_its_neighbour(store):
    neighbour = ModelStore(f"{store.url}-2")
    run(neighbour.write("customer_123", b"model"))
    assert run(store.list()) == []
    assert not run(store.exists("customer_123"))


@pytest.mark.parametrize("call", ["read", "read_if_changed", "exists", "list"])
def test_a_missing_folder_is_a_missing_store(folder_store, call):
    Path(os.environ["MODEL_STORE"]).rmdir()
    assert fail(folder_store, call) == "the model store does not exist"


def test_an_added_delay_counts_against_the_timeout(store, monkeypatch):
    monkeypatch.setenv("STORE_TIMEOUT_S", str(TIMEOUT_S))
    monkeypatch.setenv("STORE_ADDED_DELAY_S", "30")
    started = time.monotonic()
    assert fail(ModelStore(), "read") == f"the model store did not answer in {TIMEOUT_S} s"
    assert time.monotonic() - started < 2 * TIMEOUT_S


# S3 only


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_bucket_is_a_missing_store(s3_url, call):
    assert fail(ModelStore("s3://no-such-bucket/prefix"), call) == "the model store does not exist"


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
@pytest.mark.parametrize("call", CALLS)
def test_wrong_credentials_are_refused(s3_url, monkeypatch, name, call):
    monkeypatch.setenv(name, "wrong")
    assert fail(ModelStore(s3_url), call) == "the model store refuses the credentials"


@pytest.mark.parametrize("call", CALLS)
def test_credentials_that_are_not_there_are_missed(s3_url, nobody, monkeypatch, call):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", nobody)  # a machine in AWS asks there for some
    assert fail(ModelStore(s3_url), call) == "the model store was given no credentials"


def test_plain_http_has_to_be_allowed(s3_url, monkeypatch):
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    assert "AWS_ALLOW_HTTP=true" in fail(ModelStore(s3_url), "read")


@pytest.mark.parametrize("call", CALLS)
def test_a_dead_endpoint_is_reported_in_less_than_the_timeout(s3_url, nobody, monkeypatch, call):
    monkeypatch.setenv("AWS_ENDPOINT_URL", nobody)
    started = time.monotonic()
    assert fail(ModelStore(s3_url), call) == "the model store does not answer"
    assert time.monotonic() - started < TIMEOUT_S


@pytest.mark.parametrize(
    ("delay_s", "piece"), [(30, 65_536), (TIMEOUT_S / 10, 8)], ids=["late", "dripping"]
)
@pytest.mark.parametrize("call", CALLS)
def test_a_slow_endpoint_is_reported_in_about_the_timeout(s3_store, relay, call, delay_s, piece):
    run(s3_store.write("customer_123", b"model"))
    relay.delay_s, relay.piece = delay_s, piece
    store = ModelStore()
    started = time.monotonic()
    assert fail(store, call).startswith("the model store d")  # does not answer, did not answer in
    assert time.monotonic() - started < 2 * TIMEOUT_S


def test_a_slow_endpoint_is_asked_twice_and_forgiven(s3_store, relay, s3_server):
    run(s3_store.write("customer_123", b"model"))
    store = ModelStore()
    relay.delay_s = 30
    fail(store, "read")
    path = artifact_path("customer_123", "model.safetensors")
    key = f"GET /{BUCKET}/{s3_store.url.rpartition('/')[2]}/{path}"
    assert relay.requests[key] == 2
    relay.delay_s = 0
    assert run(store.read("customer_123")).data == b"model"
    assert relay.requests[key] == 3


@pytest.mark.parametrize("call", CALLS)
def test_connections_that_break_are_tried_again_a_bounded_number_of_times(relay, call):
    relay.down = True
    assert fail(ModelStore(), call) == "the model store does not answer"
    assert 2 <= relay.requests.total() <= 3


def test_the_reason_gives_no_address_away_and_the_cause_does(relay, s3_server):
    relay.down = True
    with pytest.raises(StoreUnavailableError) as caught:
        run(ModelStore().read("customer_123"))
    assert relay.endpoint not in str(caught.value) and BUCKET not in str(caught.value).split()
    assert relay.endpoint in str(caught.value.__cause__)
