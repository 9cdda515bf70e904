"""The HTTP contract, row by row, on the live service."""

import random
import socket

import numpy as np
import pytest
import requests
from conftest import NAMED, SERVICE

from forecasting import LAGS, extend_history
from model_artifact import from_bytes

HOST, PORT = "127.0.0.1", 8000


def send_raw(
    header_value: bytes, body: bytes = b'{"sequence_data": [1,2,3,4,5,6,7]}'
) -> tuple[int, bytes]:
    """Send a model id that no client library would. Returns status and body."""
    head = b"POST / HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: %d\r\n"
    head += b"serve_multiplexed_model_id: %s\r\n\r\n"
    with socket.create_connection((HOST, PORT), timeout=30) as connection:
        connection.sendall(head % (len(body), header_value) + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    status_line, _, rest = answer.partition(b"\r\n")
    return int(status_line.split()[1]), rest.partition(b"\r\n\r\n")[2]


def send_body(body: bytes, customer_id: str = "customer_123") -> requests.Response:
    return requests.post(
        SERVICE, headers={"serve_multiplexed_model_id": customer_id}, data=body, timeout=30
    )


@pytest.mark.parametrize("days", [28, 29, 400, 10_000])
def test_a_full_history_gets_the_forecast_of_the_customers_own_model(ask, fleet, footfall, days):
    customer_ids, _, counts = footfall
    for customer_id in NAMED:
        series = np.tile(counts[customer_ids.index(customer_id)], 9)[-days:]
        answer = ask(customer_id, series.tolist())
        model = from_bytes(fleet[customer_id], customer_id)
        expected = model.predict(series[-LAGS:].astype(float))
        assert answer.status_code == 200
        assert answer.json() == {
            "customer_id": customer_id,
            "forecast": expected.forecast.tolist(),
            "lower": expected.lower.tolist(),
            "upper": expected.upper.tolist(),
            "model_version": model.version,
        }


@pytest.mark.parametrize("days", [7, 10, 14, 27])
def test_a_short_history_is_extended_by_its_first_week_and_says_so(ask, fleet, days):
    history = [100.0 + day**1.5 for day in range(days)]
    answer = ask("customer_123", history).json()
    expected = from_bytes(fleet["customer_123"], "customer_123").predict(
        extend_history(np.array(history))
    )
    assert answer["forecast"] == expected.forecast.tolist()
    assert answer["padded"] is True


@pytest.mark.parametrize(
    ("body", "where", "wanted"),
    [
        (b'{"sequence_data": [1,2,3,4,5,6]}', ["body", "sequence_data"], "at least 7"),
        (b'{"sequence_data": []}', ["body", "sequence_data"], "at least 7"),
        (
            b'{"sequence_data": [%s 1]}' % (b"1," * 10_000),
            ["body", "sequence_data"],
            "at most 10000",
        ),
        (b'{"sequence_data": [1,2,3,"4",5,6,7]}', ["body", "sequence_data", 3], "valid number"),
        (b'{"sequence_data": [1,2,3,true,5,6,7]}', ["body", "sequence_data", 3], "valid number"),
        (b'{"sequence_data": [1,2,3,null,5,6,7]}', ["body", "sequence_data", 3], "valid number"),
        (b'{"sequence_data": [1,2,3,NaN,5,6,7]}', ["body", "sequence_data", 3], "finite"),
        (b'{"sequence_data": [1,2,3,-Infinity,5,6,7]}', ["body", "sequence_data", 3], "finite"),
        (b'{"sequence_data": [1,2,3,1e400,5,6,7]}', ["body", "sequence_data", 3], "finite"),
        (
            b'{"sequence_data": [1,2,3,1e300,5,6,7]}',
            ["body", "sequence_data", 3],
            "less than or equal",
        ),
        (b'{"sequence_data": [1,2,3,4,5,6,7], "horizon": 3}', ["body", "horizon"], "not permitted"),
        (b'{"historical_values": [1,2,3,4,5,6,7]}', ["body", "sequence_data"], "required"),
        (b'{"sequence_data": "1,2,3"}', ["body", "sequence_data"], "list"),
        (b"[1,2,3,4,5,6,7]", ["body"], "object"),
        (b"sequence_data=1", ["body"], "Invalid JSON"),
        (b"", ["body"], "Invalid JSON"),
        (b"\xff\xfe", ["body"], "Invalid JSON"),
        (b"[" * 100_000, ["body"], "Invalid JSON"),
        (b'{"sequence_data": [1,2,3,%s,5,6,7]}' % (b"9" * 5000), ["body"], "Invalid JSON"),
    ],
    ids=lambda value: value[:40] if isinstance(value, bytes) else None,
)
def test_a_wrong_body_is_a_422_that_names_the_field_and_what_is_wanted(store, body, where, wanted):
    answer = send_body(body)
    assert answer.status_code == 422
    fault = answer.json()["detail"][0]
    assert fault["loc"] == where
    assert wanted.lower() in fault["msg"].lower() or wanted in ("list", "object")
    assert len(answer.content) < 5000, "the answer repeats what was sent"


def test_a_body_of_10_megabytes_is_refused_and_named(store):
    answer = send_body(b'{"sequence_data": [%s1]}' % (b"1," * 5_000_000))
    assert answer.status_code == 413
    assert "1048576 bytes" in answer.json()["detail"]


@pytest.mark.parametrize("headers", [{}, {"serve_multiplexed_model_id": ""}])
def test_a_missing_model_id_is_a_400_that_names_the_header(store, headers):
    answer = requests.post(SERVICE, headers=headers, json={"sequence_data": [1] * 7}, timeout=30)
    assert answer.status_code == 400
    assert "serve_multiplexed_model_id" in answer.json()["detail"]


@pytest.mark.parametrize(
    "model_id",
    [
        b"../customer_123",
        b"customer_123/../customer_456",
        b"..",
        b".",
        b"/etc/passwd",
        b"a/b",
        b"a%2fb",
        b"a b",
        b"a\tb",
        b"-rf",
        b"a" * 65,
        b"a" * 10_000,
        "customer_é".encode(),
        "客户".encode(),
        b"customer_\xe9",
        b"\xff\xfe",
    ],
    ids=lambda value: repr(value[:30]),
)
def test_a_malformed_model_id_is_a_400(store, model_id):
    status, body = send_raw(model_id)
    assert status == 400
    assert b"detail" in body
    assert not store.reads, "a malformed id reached the store"


@pytest.mark.parametrize("model_id", [b"customer\x00_123", b"customer\n_123", b"customer\r_123"])
def test_control_characters_in_the_model_id_are_a_400(store, model_id):
    status, _ = send_raw(model_id)
    assert status == 400
    assert not store.reads, "a malformed id reached the store"


@pytest.mark.parametrize(
    "model_id", ["customer_000", "a" * 64, "_", "CUSTOMER_123", "customer_123.bak"]
)
def test_an_id_without_a_model_is_a_404_that_names_it(ask, model_id):
    answer = ask(model_id)
    assert answer.status_code == 404
    assert model_id in answer.json()["detail"]


def test_bad_ids_evict_nothing(ask, store):
    warm = NAMED[:4]
    for customer_id in warm:
        assert ask(customer_id).status_code == 200
    store.reads.clear()
    statuses = {ask(f"nobody_{number}").status_code for number in range(1000)}
    assert statuses == {404}
    for customer_id in warm:
        assert ask(customer_id).headers["Server-Timing"].startswith("cache;desc=hit")
    assert not set(store.reads) & set(warm), "a warm model was evicted"


def test_the_header_may_have_hyphens_and_any_case(store):
    for name in "serve-multiplexed-model-id", "Serve_Multiplexed_Model_Id":
        answer = requests.post(
            SERVICE, headers={name: "customer_123"}, json={"sequence_data": [1] * 7}, timeout=30
        )
        assert answer.json()["customer_id"] == "customer_123"


def test_the_requests_of_the_reference_tutorials_clients_are_answered(store):
    source = random.Random(0)
    for customer_id in NAMED:
        answer = requests.post(
            "http://localhost:8000",
            headers={"serve_multiplexed_model_id": customer_id},
            json={"sequence_data": [source.uniform(90, 110) for _ in range(10)]},
            timeout=30,
        )
        assert len(answer.json()["forecast"]) == 7


def test_the_openapi_document_tells_the_contract(store):
    document = requests.get(f"{SERVICE}/openapi.json", timeout=30).json()
    operation = document["paths"]["/"]["post"]
    (header,) = operation["parameters"]
    assert (header["name"], header["in"], header["required"]) == (
        "serve_multiplexed_model_id",
        "header",
        True,
    )
    statuses = {"200", "400", "404", "408", "413", "422", "502", "503"}
    assert set(operation["responses"]) == statuses
    assert "security" not in operation, "it asks for a token that nobody checks"
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    (example,) = schema["properties"]["sequence_data"]["examples"]
    headers = {header["name"]: header["example"]}
    answer = requests.post(SERVICE, headers=headers, json={"sequence_data": example}, timeout=30)
    assert answer.status_code == 200
    assert set(answer.json()) <= set(
        document["components"]["schemas"]["ForecastResponse"]["properties"]
    )
    assert requests.get(f"{SERVICE}/docs", timeout=30).ok
