"""The HTTP contract, row by row, on both services."""

import contextlib
import gzip
import json
import random
import re
import socket
import threading

import numpy as np
import pytest
import requests
from live_service import (
    FAST,
    HOST,
    MODELS_PER_REPLICA,
    ON_BOTH,
    PORT,
    SERVICE,
    SMALL,
    is_hit,
    make_cold,
    right_answer,
)

from forecast_service.artifact import from_bytes
from forecast_service.contract import MAX_FAULTS
from forecast_service.model import LAGS, extend_history
from lab.chapter import NAMED

UNKNOWN_IDS = 300
pytestmark = ON_BOTH


def send_raw(
    url: str, header_value: bytes, body: bytes = b'{"sequence_data": [1,2,3,4,5,6,7]}'
) -> tuple[int, bytes]:
    """Send a model id that no client library would. Returns status and body."""
    path = f"{url.removeprefix(SERVICE)}/".encode()
    head = b"POST %s HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: %d\r\n"
    head += b"serve_multiplexed_model_id: %s\r\n\r\n"
    with socket.create_connection((HOST, PORT), timeout=30) as connection:
        connection.sendall(head % (path, len(body), header_value) + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    status_line, _, rest = answer.partition(b"\r\n")
    return int(status_line.split()[1]), rest.partition(b"\r\n\r\n")[2]


def send_body(url: str, body: bytes, customer_id: str = "customer_123") -> requests.Response:
    headers = {"serve_multiplexed_model_id": customer_id}
    return requests.post(f"{url}/", headers=headers, data=body, timeout=30)


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
        np.array(extend_history(history))
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
        (b'{"sequence_data": "1,2,3"}', ["body", "sequence_data"], "list|array"),
        (b"[1,2,3,4,5,6,7]", ["body"], "object"),
        (b"sequence_data=1", ["body"], "JSON|required"),
        (b"", ["body"], "JSON|required"),
        (b"\xff\xfe", ["body"], "JSON|required"),
        (b"[" * 100_000, ["body"], "object with sequence_data"),
        (b'{"sequence_data": [1,2,3,%s,5,6,7]}' % (b"9" * 5000), ["body"], "JSON|required"),
    ],
    ids=lambda value: value[:40] if isinstance(value, bytes) else None,
)
def test_a_wrong_body_is_a_422_that_names_the_field_and_what_is_wanted(
    url, store, body, where, wanted
):
    answer = send_body(url, body)
    assert answer.status_code == 422
    fault = answer.json()["detail"][0]
    assert fault["loc"][: len(where)] == where  # FastAPI adds the place where JSON ends
    assert re.search(wanted, fault["msg"], re.IGNORECASE)
    assert len(answer.content) < 5000, "the answer repeats what was sent"


@pytest.mark.parametrize("headers", [{}, {"serve_multiplexed_model_id": ""}])
def test_a_missing_model_id_is_a_400_that_names_the_header(url, store, headers):
    answer = requests.post(url, headers=headers, json={"sequence_data": [1] * 7}, timeout=30)
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
def test_a_malformed_model_id_is_a_400(url, store, model_id):
    status, body = send_raw(url, model_id)
    assert status == 400
    assert b"detail" in body
    assert not store.reads, "a malformed id reached the store"


@pytest.mark.parametrize("model_id", [b"customer\x00_123", b"customer\n_123", b"customer\r_123"])
def test_control_characters_in_the_model_id_are_a_400(url, store, model_id):
    status, _ = send_raw(url, model_id)
    assert status == 400
    assert not store.reads, "a malformed id reached the store"


@pytest.mark.parametrize(
    "model_id", ["customer_000", "a" * 64, "_", "CUSTOMER_123", "customer_123.bak"]
)
def test_an_id_without_a_model_is_a_404_that_names_it(ask, model_id):
    answer = ask(model_id)
    assert answer.status_code == 404
    assert model_id in answer.json()["detail"]


def test_unknown_ids_evict_nothing(ask, store):
    warm = NAMED[:MODELS_PER_REPLICA]
    for customer_id in warm:
        assert ask(customer_id).status_code == 200
    store.reads.clear()
    statuses = {ask(f"nobody_{number}").status_code for number in range(UNKNOWN_IDS)}
    assert statuses == {404}
    assert all(is_hit(ask(customer_id)) for customer_id in warm), "a warm model was evicted"
    assert not set(store.reads) & set(warm), "a warm model was read again"


def test_the_header_may_have_hyphens_and_any_case(url, store):
    for name in "serve-multiplexed-model-id", "Serve_Multiplexed_Model_Id":
        answer = requests.post(
            url, headers={name: "customer_123"}, json={"sequence_data": [1] * 7}, timeout=30
        )
        assert answer.json()["customer_id"] == "customer_123"


def test_an_answer_says_who_gave_it_and_if_the_model_was_in_memory(ask):
    make_cold(ask)
    cold, warm = ask("customer_0024"), ask("customer_0024")
    for answer, outcome in (cold, "miss"), (warm, "hit"):
        name, description, duration = answer.headers["Server-Timing"].split(";")
        assert (name, description) == ("cache", f"desc={outcome}")
        assert float(duration.removeprefix("dur=")) >= 0
    assert cold.headers["X-Replica-Id"] == warm.headers["X-Replica-Id"] != ""
    assert cold.content == warm.content


@pytest.mark.parametrize("days", [7, 10, 27, 28, 10_000])
def test_both_services_give_the_same_answer_to_the_byte(ask, fleet, footfall, url, days):
    customer_ids, _, counts = footfall
    for customer_id in NAMED:
        series = np.tile(counts[customer_ids.index(customer_id)] * 1.1, 9)[-days:].tolist()
        answer = ask(customer_id, series)
        assert answer.content == right_answer(
            fleet[customer_id], customer_id, answer.request.body
        ), f"{url} does not answer as the model does"
        assert answer.headers["Content-Type"] == "application/json"


def test_the_published_clients_are_answered(url, store):
    """What they send to localhost, as their HTTP library sends it."""
    url, source = url.replace("127.0.0.1", "localhost"), random.Random(0)
    published = [100, 102, 98, 105, 110, 108, 112, 115, 118, 120]
    bodies = [("customer_123", published)]
    bodies += [
        (source.choice(NAMED), [source.uniform(90, 110) for _ in range(10)]) for _ in range(100)
    ]
    for customer_id, values in bodies:
        answer = requests.post(
            url,
            headers={"serve_multiplexed_model_id": customer_id},
            json={"sequence_data": values},
        ).json()
        assert answer["customer_id"] == customer_id
        assert len(answer["forecast"]) == 7 and answer["padded"] is True


def test_the_published_client_of_another_field_is_told_the_right_one(url, store):
    answer = requests.post(
        url,
        headers={"Authorization": "Bearer 123", "serve_multiplexed_model_id": "customer_123"},
        json={"historical_values": [100, 102, 98, 105, 110]},
    )
    assert answer.status_code == 422
    assert ["body", "sequence_data"] in [fault["loc"] for fault in answer.json()["detail"]]


def test_unknown_fields_are_named_in_part_and_without_number_not_at_all(url, store):
    for unknown, faults in (50, MAX_FAULTS), (15_000, 1):
        fields = {f"field_{number}": number for number in range(unknown)}
        answer = send_body(url, json.dumps({"sequence_data": [1] * 7} | fields).encode())
        assert answer.status_code == 422
        assert len(answer.json()["detail"]) == faults
        assert len(answer.content) < 2000, "the answer repeats what was sent"


def test_a_compressed_body_is_a_415_that_names_the_encoding(url, store):
    body = gzip.compress(b'{"sequence_data": [1,2,3,4,5,6,7]}')
    headers = {"serve_multiplexed_model_id": "customer_123", "Content-Encoding": "gzip"}
    answer = requests.post(f"{url}/", headers=headers, data=body, timeout=30)
    assert answer.status_code == 415
    assert "gzip" in answer.json()["detail"]
    assert answer.headers["Accept-Encoding"] == "identity"


def send_in_parts(url: str, more_headers: bytes, pause_s: float) -> tuple[int, bytes]:
    """Send a good request, its body a little after its headers. Returns status and answer."""
    body = b'{"sequence_data": [1,2,3,4,5,6,7]}'
    head = b"POST %s/ HTTP/1.1\r\nHost: test\r\nserve_multiplexed_model_id: customer_123\r\n"
    head += b"Content-Length: %d\r\n%s\r\n\r\n"
    with socket.create_connection((HOST, PORT), timeout=30) as connection:
        connection.sendall(head % (url.removeprefix(SERVICE).encode(), len(body), more_headers))
        threading.Event().wait(pause_s)
        with contextlib.suppress(ConnectionError):  # it may have been answered by then
            connection.sendall(body)
        answer = b""
        while not answer.endswith(b"}"):  # all answers are JSON; 100 Continue may come before
            answer += connection.recv(65536)
    return int(answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").split()[1]), answer


@pytest.mark.parametrize("pause_s", [0, 0.001, 0.2], ids=["at once", "soon", "in two parts"])
def test_a_java_client_gets_its_forecast_or_is_told_of_the_header(url, ask, pause_s):
    """HAProxy strips the upgrade; uvicorn, under Ray's own proxy, drops the body."""
    assert ask("customer_123").ok
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"
    status, answer = send_in_parts(url, upgrade, pause_s)
    if FAST:
        assert status == 200
    else:
        assert status == 400 and b"Upgrade: h2c" in answer and b"HTTP_1_1" in answer
        assert b"\r\nconnection: close\r\n" in answer.lower()


@pytest.mark.parametrize("pause_s", [0, 0.001, 0.2], ids=["at once", "soon", "in two parts"])
def test_other_upgrades_are_named_and_what_is_none_is_answered(url, ask, pause_s):
    assert ask("customer_123").ok
    status, answer = send_in_parts(url, b"Connection: Upgrade\r\nUpgrade: TLS/1.0", pause_s)
    assert status == 400 and b"Upgrade: TLS/1.0" in answer
    assert send_in_parts(url, b"Upgrade: h2c", pause_s)[0] == 200  # Connection does not ask for it
    assert send_in_parts(url, b"Expect: 100-continue", pause_s)[0] == 200


def test_the_openapi_document_tells_the_contract(url, store):
    document = requests.get(f"{url}/openapi.json", timeout=30).json()
    operation = document["paths"]["/"]["post"]
    header, *others = operation["parameters"]
    assert (header["name"], header["in"], header["required"]) == (
        "serve_multiplexed_model_id",
        "header",
        True,
    )
    statuses = {"200", "400", "404", "408", "413", "415", "422", "502", "503"}
    production = {"401", "403", "507"}
    assert set(operation["responses"]) == statuses | (production if url == SERVICE else set())
    token = [] if url == SMALL else [("tenant-authorization", "header", False)]
    assert [(other["name"], other["in"], other["required"]) for other in others] == token
    assert "security" not in operation, "it asks for a token that nobody checks"
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    (example,) = schema["properties"]["sequence_data"]["examples"]
    headers = {header["name"]: header["example"]}
    answer = requests.post(url, headers=headers, json={"sequence_data": example}, timeout=30)
    assert answer.status_code == 200
    assert set(answer.json()) <= set(
        document["components"]["schemas"]["ForecastResponse"]["properties"]
    )
    assert requests.get(f"{url}/docs", timeout=30).ok


def test_other_methods_are_a_405(url, store):
    for method in "GET", "PUT", "PATCH", "DELETE", "OPTIONS":
        assert requests.request(method, f"{url}/", timeout=30).status_code == 405
