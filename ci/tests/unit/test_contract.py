"""What goes over HTTP: whatever is sent, the answer is a forecast or names what is wanted."""

import asyncio
import gc
import gzip
import json
import time

import numpy as np
import pytest
from fastapi import Request, Response
from starlette.middleware.gzip import GZipMiddleware
from starlette.testclient import TestClient

from forecast_service.contract import (
    FORECAST_ROUTE,
    MAX_FAULTS,
    MAX_HISTORY,
    MAX_VALUE,
    ForecastRequest,
    ForecastResponse,
    create_api,
    read_body,
    respond,
)
from forecast_service.errors import ClientLeftError
from forecast_service.model import HORIZON, LAGS, SEASON, Forecast

MAX_BYTES = ForecastRequest.max_bytes
GOOD = [100, 102, 98, 105, 110, 108, 112, 115, 118, 120]
SECRET = "quite-unlikely-words"
BODIES = {  # by what is wrong with it: the body, and where that is
    "a value that is text": ({"sequence_data": [*GOOD, SECRET]}, ["sequence_data", 10]),
    "an unknown field": ({"sequence_data": GOOD, SECRET: 1}, [SECRET]),
    "the field of another tutorial": ({"historical_values": GOOD}, ["sequence_data"]),
    "a short history": ({"sequence_data": GOOD[: SEASON - 1]}, ["sequence_data"]),
    "a long history": ({"sequence_data": [1] * (MAX_HISTORY + 1)}, ["sequence_data"]),
    "a value too large": ({"sequence_data": [*GOOD, 1e13]}, ["sequence_data", 10]),
    "a truth for a number": ({"sequence_data": [*GOOD, True]}, ["sequence_data", 10]),
    "a list": ([SECRET], []),
    "null": (None, []),
}
RAW_BODIES = {
    "nothing": b"",
    "no JSON": SECRET.encode(),
    "half of it": b'{"sequence_data": [1, 2',
    "NaN": b'{"sequence_data": [1, 2, 3, 4, 5, 6, NaN]}',
    "infinity": b'{"sequence_data": [1, 2, 3, 4, 5, 6, -Infinity]}',
    "a number beyond floats": b'{"sequence_data": [1, 2, 3, 4, 5, 6, 1e999]}',
    "NaN in an unknown field": b'{"sequence_data": [1, 2, 3, 4, 5, 6, 7], "x": NaN}',
    "a number of 5000 digits": b'{"sequence_data": [1, 2, 3, 4, 5, 6, ' + b"9" * 5000 + b"]}",
    "deep nesting": b"[" * 100_000,
    "deep nesting that ends": b'{"x": ' * 5000 + b"1" + b"}" * 5000,
    "invalid UTF-8": b'{"sequence_data": "\xff\xfe"}',
    "half a surrogate": b'{"\\ud800": 1}',
    "a NUL": b'{"sequence_data": [1, 2, 3, 4, 5, 6, 7]}\0',
    "UTF-16": '{"sequence_data": [1, 2, 3, 4, 5, 6, 7]}'.encode("utf-16"),
}


class Flat:
    """A model whose forecast is the last value."""

    customer_id = "customer_123"
    version = "abc"

    def predict(self, lags: np.ndarray) -> Forecast:
        assert len(lags) == LAGS
        return Forecast(*(np.full(HORIZON, lags[-1]) + width for width in (0, -1, 1)))


def small_api():
    """The tutorial's way: FastAPI parses the body, through a JsonRoute."""
    api = create_api("a test")

    @api.post(**FORECAST_ROUTE)
    async def post_forecast(request: ForecastRequest, response: Response) -> ForecastResponse:
        return respond(Flat(), request)

    return api


def production_api():
    """The production service's way: past FastAPI, and reads the body itself."""

    async def post_forecast(request: Request) -> Response:
        answer = respond(Flat(), await read_body(request, ForecastRequest))
        return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")

    return create_api("a test", post_forecast)


def production_api_with_middleware():
    """What a fork's middleware makes of that: all goes through FastAPI."""
    api = production_api()
    api.add_middleware(GZipMiddleware, minimum_size=1_000_000)
    return api


APIS = small_api, production_api, production_api_with_middleware


@pytest.fixture(scope="module", params=APIS, ids=[api.__name__ for api in APIS])
def client(request) -> TestClient:
    return TestClient(request.param(), raise_server_exceptions=False)


def post(client: TestClient, body: bytes, content_type: str | None = "application/json"):
    headers = {"Content-Type": content_type} if content_type else {}
    return client.post("/", content=body, headers=headers)


def require_named_faults(answer) -> list[dict]:
    assert answer.status_code == 422, answer.text
    faults = json.loads(answer.content)["detail"]
    assert 1 <= len(faults) <= MAX_FAULTS
    for fault in faults:
        assert fault.keys() == {"loc", "msg", "type"} and fault["msg"]
        assert fault["loc"][0] == "body"
    return faults


@pytest.mark.parametrize("days", [SEASON, 10, LAGS - 1, LAGS, MAX_HISTORY])
def test_a_history_is_answered_and_a_short_one_is_said_to_be_extended(client, days):
    answer = post(client, json.dumps({"sequence_data": [*range(days)]}).encode())
    assert answer.status_code == 200
    expected = {"customer_id": "customer_123", "model_version": "abc"}
    expected |= {"forecast": [days - 1] * 7, "lower": [days - 2] * 7, "upper": [days] * 7}
    assert answer.json() == expected | ({"padded": True} if days < LAGS else {})


def test_json_may_come_without_a_content_type(client):
    body = json.dumps({"sequence_data": GOOD}).encode()
    assert post(client, body, None).status_code == 200
    require_named_faults(post(client, b"[" + body, None))


def test_a_body_is_read_whatever_its_content_type_says(client):
    body = json.dumps({"sequence_data": GOOD}).encode()
    for content_type in "text/plain", "application/x-www-form-urlencoded", "nonsense":
        assert post(client, body, content_type).status_code == 200
        require_named_faults(post(client, b"[" + body, content_type))


@pytest.mark.parametrize("wrong", BODIES)
def test_a_wrong_body_is_a_422_that_says_where_and_repeats_no_value(client, wrong):
    body, where = BODIES[wrong]
    answer = post(client, json.dumps(body).encode())
    faults = require_named_faults(answer)
    assert ["body", *where] in [fault["loc"] for fault in faults]
    if SECRET not in where:
        assert SECRET not in answer.text, "the answer echoes what was sent"


@pytest.mark.parametrize("wrong", RAW_BODIES)
def test_a_body_of_any_bytes_is_a_422(client, wrong):
    answer = post(client, RAW_BODIES[wrong])
    require_named_faults(answer)
    assert len(answer.content) < 4000, "the answer echoes what was sent"


def test_unknown_fields_are_named_in_part_and_without_number_not_at_all(client):
    few = {"sequence_data": GOOD} | {
        f"x{number}": 1 for number in range(ForecastRequest.max_fields - 1)
    }
    faults = require_named_faults(post(client, json.dumps(few).encode()))
    assert [fault["loc"] for fault in faults] == [["body", f"x{n}"] for n in range(MAX_FAULTS)]
    many = few | {f"y{number}": 1 for number in range(30_000)}
    (fault,) = require_named_faults(post(client, json.dumps(many).encode()))
    assert fault["loc"] == ["body"]
    assert "sequence_data" in fault["msg"] and str(MAX_HISTORY) in fault["msg"]


def test_a_history_full_of_faults_is_one_fault(client):
    answer = post(client, json.dumps({"sequence_data": ["x"] * MAX_HISTORY}).encode())
    (fault,) = require_named_faults(answer)
    assert fault["loc"] == ["body", "sequence_data", 0]


def test_a_name_of_any_length_is_not_sent_back_in_full(client):
    answer = post(client, json.dumps({"sequence_data": GOOD, "x" * 300_000: 1}).encode())
    require_named_faults(answer)
    assert len(answer.content) < 1000


@pytest.mark.parametrize("indent", [None, 4], ids=["compact", "pretty"])
def test_the_longest_floats_have_room_however_they_are_laid_out(client, indent):
    longest = -2.2250738585072014e-308
    assert len(repr(longest)) == 24 and abs(longest) < MAX_VALUE
    body = json.dumps({"sequence_data": [longest] * MAX_HISTORY}, indent=indent)
    body = body.replace("\n", "\r\n").encode()
    assert len(body) > MAX_BYTES / 2
    assert post(client, body).status_code == 200


def test_a_body_that_is_too_large_is_a_413_that_names_the_limit(client):
    answer = post(client, b" " * (MAX_BYTES + 1))
    assert answer.status_code == 413 and f"{MAX_BYTES} bytes" in answer.json()["detail"]


def filled(head: str, unit, tail: str) -> bytes:
    """Return a body of the largest size that is read, full of what unit() makes of a number."""
    parts, size = [], len(head) + len(tail)
    while size + len(part := unit(len(parts))) + 1 <= MAX_BYTES:
        parts.append(part)
        size += len(part) + 1
    return (head + ",".join(parts) + tail).encode()


def in_history(part: str) -> bytes:
    return filled('{"sequence_data":[', lambda number: part, "]}")


SEVEN = '"sequence_data":[1,2,3,4,5,6,7]'
COSTLY = {  # what takes a parser or a validator long, or took it long at some time
    "unknown fields": filled(f"{{{SEVEN},", lambda number: f'"{number:x}":1', "}"),
    "unknown fields of lists": filled(f"{{{SEVEN},", lambda number: f'"{number:x}" : []', "}"),
    "unknown fields, escaped": filled(f"{{{SEVEN},", lambda n: f'"\\u00e9{n:x}":1', "}"),
    "one field again and again": filled("{", lambda number: SEVEN, "}"),
    "lists in an unknown field": filled(f'{{{SEVEN},"x":[', lambda number: "[]", "]}"),
    "objects in an unknown field": filled(f'{{{SEVEN},"x":[', lambda number: '{"":{}}', "]}"),
    "lists in a list": filled("[", lambda number: "[]", "]"),
    "deep lists": in_history("[" * 190 + "]" * 190),
    "lists of one": in_history("[1]"),
    "objects of one": in_history('{"":1}'),
    "too many values": in_history("1"),
    "texts": in_history('"\\n"'),
    "nothing but null": in_history("null"),
    "numbers of 4300 digits": in_history("9" * 4300),
    "numbers of 25 digits": in_history("9" * 25),
    "numbers beyond floats": in_history("1e999"),
    "one long number": f'{{"sequence_data":[0.{"9" * (MAX_BYTES - 30)},"x"]}}'.encode(),
    "one long text": f'{{"sequence_data":["{chr(233) * (MAX_BYTES // 2 - 30)}"]}}'.encode(),
    "one long name": f'{{{SEVEN},"{"x" * (MAX_BYTES - 60)}":1}}'.encode(),
    "white space": b" " * MAX_BYTES,
    "a fault at the end": b'{"sequence_data":['
    + b"1.2345678901234567," * (MAX_HISTORY - 1)
    + b'"x"]}',
}


async def least_seconds(api, body: bytes, status: int) -> float:
    """Return the CPU time that an application takes at least to answer a body, with this status."""
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    seconds, answered = [], []

    async def receive() -> dict:
        return {"type": "http.request", "body": body}

    async def send(message: dict) -> None:
        answered.append(message)

    for _ in range(5):
        started = time.thread_time()
        await api(scope, receive, send)
        seconds.append(time.thread_time() - started)
    assert answered[0]["status"] == status, body[:60]
    return min(seconds)


@pytest.mark.parametrize("make_api", [small_api, production_api], ids=["small", "production"])
def test_no_body_costs_more_than_a_few_good_ones(make_api):
    """What is measured is 1 to 3; it was 100 to 700 for the first of them."""
    api = make_api()
    gc.freeze()  # of all that the tests have made: to look through it would be what is measured
    longest = {"sequence_data": [n + 0.2345678901234 for n in range(MAX_HISTORY)]}
    good_s = asyncio.run(least_seconds(api, json.dumps(longest).encode(), 200))
    for name, body in COSTLY.items():
        ratio = asyncio.run(least_seconds(api, body, 422)) / good_s
        assert ratio < 8, f"{name}: as much as {ratio:.0f} good ones"
    gc.unfreeze()


def test_a_bug_is_a_500_and_is_left_to_the_log():
    async def fail(request: Request) -> Response:
        raise ZeroDivisionError("a bug")

    api = create_api("a test", fail)
    answer = TestClient(api, raise_server_exceptions=False).post("/", json={})
    assert answer.status_code == 500 and "bug" not in answer.text
    with pytest.raises(ZeroDivisionError, match="a bug"):
        TestClient(api).post("/", json={})


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "GZIP", "identity, x-gzip"])
def test_a_compressed_body_is_a_415_that_names_the_encoding(client, encoding):
    body = gzip.compress(json.dumps({"sequence_data": GOOD}).encode())
    answer = client.post("/", content=body, headers={"Content-Encoding": encoding})
    assert answer.status_code == 415
    assert encoding.lower().rpartition(" ")[2] in answer.json()["detail"]
    assert answer.headers["Accept-Encoding"] == "identity"


def test_a_body_that_says_it_is_not_compressed_is_read(client):
    body = json.dumps({"sequence_data": GOOD}).encode()
    for encoding in "identity", "Identity", "":
        answer = client.post("/", content=body, headers={"Content-Encoding": encoding})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (json.dumps({"sequence_data": GOOD}).encode("utf-16"), "application/json; charset=utf-16"),
        (json.dumps({"sequence_data": GOOD}).encode("utf-16-le"), "application/json"),
        (json.dumps({"sequence_data": GOOD}).encode("utf-8-sig"), "application/json"),
        (b"sequence_data=1&sequence_data=2", "application/x-www-form-urlencoded"),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--", "multipart/form-data"),
        (b"", "application/json"),
    ],
    ids=["UTF-16", "UTF-16 without a mark", "a byte order mark", "form", "multipart", "nothing"],
)
def test_what_is_no_json_is_told_that_json_in_utf_8_is_wanted(client, body, content_type):
    (fault,) = require_named_faults(post(client, body, content_type))
    assert "JSON in UTF-8" in fault["msg"]


def test_a_body_lost_in_an_upgrade_is_a_400_that_names_the_header_and_what_to_do(client):
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}
    answer = client.post("/", content=b"", headers=headers)  # as uvicorn passes it on
    assert answer.status_code == 400
    assert "Upgrade: h2c" in answer.json()["detail"] and "HTTP_1_1" in answer.json()["detail"]
    assert answer.headers["Connection"] == "close"
    body = json.dumps({"sequence_data": GOOD}).encode()  # as other servers do
    assert client.post("/", content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("make_api", [small_api, production_api], ids=["small", "production"])
@pytest.mark.parametrize(
    "said", [{"type": "http.disconnect"}, OSError("cancelled")], ids=["a message", "an error"]
)
def test_a_client_that_leaves_in_mid_body_is_no_fault_of_the_service(make_api, said):
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    begun = {"type": "http.request", "body": b'{"sequence_data": [1,', "more_body": True}
    arriving, answered = iter([begun, said]), []

    async def receive() -> dict:
        message = next(arriving)
        if isinstance(message, Exception):  # as Ray's default proxy may have it
            raise message
        return message

    async def send(message: dict) -> None:
        answered.append(message)

    asyncio.run(make_api()(scope, receive, send))  # raises nothing, so the log has no traceback
    assert answered[0]["status"] == ClientLeftError.status == 499


def test_both_services_document_the_same_forecast():
    paths = [api().openapi()["paths"]["/"]["post"] for api in (small_api, production_api)]
    small, production = paths
    assert small["operationId"] == production["operationId"] == "forecast"
    assert small["responses"].keys() <= production["responses"].keys()
    assert small["responses"]["200"] == production["responses"]["200"]
    common = {"200", "400", "404", "408", "413", "415", "422", "502", "503"}
    assert small["responses"].keys() == common
    assert production["responses"].keys() == common | {"401", "403", "507"}
    for words in "model id", "Upgrade":
        assert words in small["responses"]["400"]["description"]
    assert "requestBody" in small and "requestBody" in production
