"""S3 as a store: what holds for a folder holds for it, and what it alone can get wrong is said."""

import asyncio
import os
import socket
import time

import pytest
from store_suite import CALLS, StoreSuite, run, why_not

from forecast_service.errors import StoreUnavailableError
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore
from lab.s3_server import S3Server
from s3_relay import Relay

TIMEOUT_S = 1
BUCKET = "models"
FLEET = 10_000  # ten pages of a listing
WRITES_AT_ONCE = 32


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
def store(s3_url) -> ModelStore:
    return ModelStore(StoreSettings(model_store=s3_url))


@pytest.fixture
def relay(s3_server, s3_url, monkeypatch) -> Relay:
    """What stands between the S3 server and the stores that a test makes from now on."""
    relay = Relay(s3_server.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", relay.endpoint)
    return relay


@pytest.fixture
def nobody():
    """An address at which nobody listens, for as long as the test runs."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


def impatient(url: str) -> ModelStore:
    return ModelStore(StoreSettings(model_store=url, store_timeout_s=TIMEOUT_S))


class TestS3(StoreSuite):
    """All that holds for a folder, too."""


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


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_bucket_is_a_missing_store(s3_url, call):
    assert (
        why_not(impatient("s3://no-such-bucket/prefix"), call) == "the model store does not exist"
    )


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"),
        ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"),
    ],
)
@pytest.mark.parametrize("call", CALLS)
def test_wrong_credentials_are_refused(s3_url, monkeypatch, caplog, name, code, call):
    monkeypatch.setenv(name, "wrong")
    assert why_not(impatient(s3_url), call) == "the model store refuses the request"
    assert code in caplog.text and f"Check {name}." in caplog.text


@pytest.mark.parametrize("call", CALLS)
def test_credentials_that_are_not_there_are_missed(s3_url, nobody, monkeypatch, caplog, call):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", nobody)  # a machine in AWS asks there for some
    assert why_not(impatient(s3_url), call) == "the model store does not answer"
    assert "Set AWS_ACCESS_KEY_ID" in caplog.text


def test_plain_http_has_to_be_allowed(s3_url, monkeypatch):
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(ValueError, match="AWS_ALLOW_HTTP=true"):
        run(impatient(s3_url).check())


def test_a_start_finds_no_bucket_no_model_and_then_a_model(store, caplog):
    with pytest.raises(FileNotFoundError, match="s3://no-such-bucket/prefix does not exist"):
        run(impatient("s3://no-such-bucket/prefix").check())
    caplog.clear()
    run(store.check())
    assert f"{store.url} has no model.safetensors in it" in caplog.text
    caplog.clear()
    run(store.write("customer_123", b"model"))
    run(store.check())
    assert caplog.text == ""


@pytest.mark.parametrize("call", CALLS)
def test_a_dead_endpoint_is_reported_in_less_than_the_timeout(s3_url, nobody, monkeypatch, call):
    monkeypatch.setenv("AWS_ENDPOINT_URL", nobody)
    started = time.monotonic()
    assert why_not(impatient(s3_url), call) == "the model store does not answer"
    assert time.monotonic() - started < TIMEOUT_S


@pytest.mark.parametrize(
    ("delay_s", "piece"), [(30, 65_536), (TIMEOUT_S / 10, 8)], ids=["late", "dripping"]
)
@pytest.mark.parametrize("call", CALLS)
def test_a_slow_endpoint_is_reported_in_about_the_timeout(store, relay, call, delay_s, piece):
    run(store.write("customer_123", b"model"))
    relay.delay_s, relay.piece = delay_s, piece
    slow = impatient(store.url)
    started = time.monotonic()
    assert why_not(slow, call).startswith("the model store d")  # does not, or did not, answer
    assert time.monotonic() - started < 2 * TIMEOUT_S


def test_a_slow_endpoint_is_asked_twice_and_forgiven(store, relay):
    run(store.write("customer_123", b"model"))
    slow = impatient(store.url)
    relay.delay_s = 30
    why_not(slow, "read")
    prefix = store.url.rpartition("/")[2]
    key = f"GET /{BUCKET}/{prefix}/customer_123/model.safetensors"
    assert relay.requests[key] == 2
    relay.delay_s = 0
    assert run(slow.read("customer_123")).data == b"model"
    assert relay.requests[key] == 3


@pytest.mark.parametrize("call", CALLS)
def test_connections_that_break_are_tried_again_a_bounded_number_of_times(relay, s3_url, call):
    relay.down = True
    assert why_not(impatient(s3_url), call) == "the model store does not answer"
    assert 2 <= relay.requests.total() <= 3


def test_the_reason_gives_no_address_away_and_the_cause_does(relay, s3_url):
    relay.down = True
    with pytest.raises(StoreUnavailableError) as caught:
        run(impatient(s3_url).read("customer_123"))
    assert relay.endpoint not in str(caught.value) and BUCKET not in str(caught.value).split()
    assert relay.endpoint in str(caught.value.__cause__)
