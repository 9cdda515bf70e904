"""A folder as a store, and a server that fails: it answers, or says in time that it does not."""

import os
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_suite import CALLS, StoreSuite, run, why_not

from faulty_store import SECRET, FaultyStore
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


@pytest.mark.parametrize("call", ["read", "read_if_changed", "list", "delete"])
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


@pytest.mark.parametrize("call", sorted(CALLS.keys() - {"create"}))  # of which HTTP knows nothing
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


@pytest.fixture
def server(monkeypatch) -> FaultyStore:
    """A store that speaks S3, and the variables for it."""
    server = FaultyStore()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in credentials(server).items():
        monkeypatch.setenv(name, value)
    return server


def credentials(server: FaultyStore) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": SECRET,
        "AWS_ENDPOINT_URL": server.url,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


def in_s3() -> ModelStore:
    return store_at("s3://bucket/prefix", store_timeout_s=4)


def warnings(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name == "ray.serve.forecasts"]


def test_without_the_right_to_list_the_start_says_what_follows_and_what_to_allow(server, caplog):
    server.artifacts, server.may_list = {"customer_123": b"model"}, False
    store = in_s3()
    run(store.check())
    (said,) = warnings(caplog)
    assert "AccessDenied: Access Denied. Allow s3:GetObject" in said
    assert all(part in said for part in ("s3:ListBucket on the bucket", "503", "stays in memory"))
    assert run(store.read("customer_123")).data == b"model"
    with pytest.raises(StoreUnavailableError, match="refuses the request"):
        run(store.read("customer_000"))
    assert len(warnings(caplog)) == 1, "it is said again at each read"
    server.may_list = True
    with pytest.raises(UnknownCustomerError):
        run(store.read("customer_000"))


def test_a_start_with_a_store_that_is_well_says_nothing(server, caplog, store):
    server.artifacts = {"customer_123": b"model"}
    run(in_s3().check())
    run(store.write("customer_123", b"model"))
    run(store.check())
    run(store_at(server.url).check())
    assert warnings(caplog) == []


def test_an_empty_store_is_said_once_and_filled_while_it_is_used(server, caplog, store):
    for empty, place in ((in_s3(), "s3://bucket/prefix"), (store, store.url)):
        caplog.clear()
        run(empty.check())
        (said,) = warnings(caplog)
        assert place in said and "404" in said and "MODEL_STORE" in said
    run(store.write("customer_123", b"model"))
    assert run(store.read("customer_123")).data == b"model"


def test_a_bucket_that_does_not_exist_stops_the_start_and_is_named(server, caplog):
    for code in "NoSuchBucket", "ContainerNotFound":
        server.refusal = 404, code, "It does not exist"
        with pytest.raises(FileNotFoundError, match=f"s3://bucket/prefix .* MODEL_STORE.*{code}"):
            run(in_s3().check())


def test_a_folder_that_has_gone_since_stops_the_start(store):
    store.folder.rmdir()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        run(store.check())


def test_a_store_that_does_not_answer_lets_the_replica_start_and_is_found_again(server, caplog):
    server.artifacts, server.down = {"customer_123": b"model"}, True
    store = in_s3()
    run(store.check())
    (said,) = warnings(caplog)
    assert "does not answer" in said and "500 Internal Server Error" in said
    server.down = False
    assert run(store.read("customer_123")).data == b"model"


def test_a_web_page_is_no_store(server, caplog):
    server.artifacts["-"] = b"<html>"  # as of a page that answers whatever it is asked for
    run(store_at(server.url).check())
    (said,) = warnings(caplog)
    assert "is not the address of a store" in said


REFUSALS = {
    "another region": (400, "AuthorizationHeaderMalformed", "'us-east-1' is wrong", "AWS_REGION"),
    "expired": (400, "ExpiredToken", "The provided token has expired", "Renew"),
    "a wrong clock": (403, "RequestTimeTooSkewed", "The difference is too large", "clock"),
    "archived": (403, "InvalidObjectState", "Not valid for the storage class", "Restore"),
    "a wrong key": (403, "InvalidAccessKeyId", "The key does not exist", "AWS_ACCESS_KEY_ID"),
    "a wrong secret": (403, "SignatureDoesNotMatch", "It does not match", "AWS_SECRET"),
    "a key of KMS": (400, "KMS.DisabledException", "The key is disabled", ""),
    "one unheard of": (418, "Teapot", "Short and stout", ""),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("call", ["read", "read_if_changed", "list"])
def test_the_log_has_the_stores_own_code_and_the_client_does_not(server, caplog, refusal, call):
    *server.refusal, advice = REFUSALS[refusal]
    status, code, message = server.refusal
    store = in_s3()
    with pytest.raises(StoreUnavailableError) as raised:
        run(CALLS[call](store))
    assert str(raised.value) == "the model store refuses the request"
    cause = str(raised.value.__cause__)
    assert f"{status} " in cause and cause.endswith(f"{code}: {message}") and "\n" not in cause
    why_not(store, call)
    (said,) = warnings(caplog)
    assert cause in said and advice in said
    assert SECRET not in said, "the answer's token is logged"


def test_a_store_that_asks_for_patience_does_not_answer(server, caplog):
    server.refusal = 503, "SlowDown", "Please reduce your request rate."
    assert why_not(in_s3(), "read") == "the model store does not answer"
    assert "SlowDown: Please reduce your request rate." in warnings(caplog)[0]


def test_a_bucket_in_another_region_that_only_redirects_is_told(server, caplog):
    server.refusal = 301, "PermanentRedirect", ""
    why_not(in_s3(), "read")
    (said,) = warnings(caplog)
    assert "region" in said and "Set AWS_REGION" in said


def test_what_is_wrong_with_the_way_to_a_store_is_told(server, caplog, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert why_not(in_s3(), "read") == "the model store does not answer"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid")
    why_not(in_s3(), "read")
    refused, unknown = warnings(caplog)
    assert "Connection refused" in refused and "Name or service not known" in unknown


def test_plain_http_that_is_not_allowed_stops_the_start(server, caplog, monkeypatch):
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(ValueError, match="AWS_ALLOW_HTTP=true"):
        run(in_s3().check())


@pytest.mark.parametrize("name", credentials(FaultyStore()))
@pytest.mark.parametrize(
    "spoil",
    ["{}\n", "{}\r\n", " {}", "{}\t", '"{}"', "a\nb", "{}\u200b"],
    ids=["newline", "CRLF", "blank", "tab", "quotes", "inner newline", "invisible"],
)
def test_a_variable_that_cannot_be_used_stops_the_start_by_its_name(
    server, monkeypatch, name, spoil
):
    value = spoil.format(credentials(server)[name])
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=name) as raised:
        in_s3()
    assert value.strip('" \t\r\n') not in str(raised.value), "the message tells a secret"


@pytest.mark.parametrize(
    "address", ["", "minio", "minio:9000", "http://", "ftp://a", "http://a:b@c", "http://a:99999"]
)
@pytest.mark.parametrize("name", ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_that_is_no_address_stops_the_start(server, monkeypatch, name, address):
    monkeypatch.setenv(name, address)
    with pytest.raises(ValueError, match=f"{name} is not an address such as https://"):
        in_s3()


def test_variables_of_other_stores_and_those_with_json_do_not_matter(server, monkeypatch):
    server.artifacts = {"customer_123": b"model"}
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "a\n")
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    monkeypatch.setenv("AWS_STS_REGIONAL_ENDPOINTS", "regional")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", '{\n"a": 1}\n')
    with pytest.raises(ValueError, match="Unable to decode service account"):
        store_at("gs://bucket")
    assert run(in_s3().read("customer_123")).data == b"model"


@given(
    st.sampled_from([name for name in credentials(FaultyStore()) if name != "AWS_ALLOW_HTTP"]),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12),
)
def test_no_variable_makes_a_read_panic(name, value):
    with pytest.MonkeyPatch.context() as patch:
        for variable, good in credentials(ANSWERS_NOTHING).items():
            patch.setenv(variable, good)
        patch.setenv(name, value)
        try:
            store = in_s3()
        except ValueError as error:
            assert name in str(error)
            return
        with pytest.raises((UnknownCustomerError, StoreUnavailableError)) as raised:
            run(store.read("customer_123"))
        assert getattr(raised.value.__cause__, "code", None) != "RustPanic"


ANSWERS_NOTHING = FaultyStore()


def test_a_panic_that_nothing_foresaw_is_unavailable_and_stops_the_start(
    server, caplog, monkeypatch
):
    for name in "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY":
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "not a path")
    assert why_not(in_s3(), "read") == "the model store does not answer"
    with pytest.raises(ValueError, match="check the variables"):
        run(in_s3().check())


def test_a_store_without_tags_is_compared_by_checksum(server):
    server.artifacts, server.has_tags = {"customer_123": b"one"}, False
    store = store_at(server.url)
    first = run(store.read("customer_123"))
    assert first.etag and first.etag == run(store.read("customer_123")).etag
    assert run(store.read_if_changed("customer_123", first.etag)) is None
    server.artifacts["customer_123"] = b"two"
    second = run(store.read_if_changed("customer_123", first.etag))
    assert second.data == b"two" and second.etag != first.etag


@pytest.mark.parametrize("place", ["/proc/models", __file__], ids=["not to be made", "a file"])
def test_a_folder_that_cannot_be_made_is_named(place):
    with pytest.raises(ValueError, match=f"the model store {place} cannot be opened"):
        ModelStore(StoreSettings(model_store=place), create=True)
