"""What goes over HTTP: whatever is sent, the answer is a forecast or names what is wanted."""

import json

import numpy as np
import pytest
from fastapi import Request, Response
from starlette.testclient import TestClient

from forecast_service.contract import (
    FORECAST_ROUTE,
    MAX_FAULTS,
    MAX_HISTORY,
    PRODUCTION_ROUTE,
    DirectRoute,
    ForecastRequest,
    ForecastResponse,
    create_api,
    read_body,
    respond,
)
from forecast_service.model import HORIZON, LAGS, SEASON, Forecast
from forecast_service.proxy_guard import MAX_BODY_BYTES

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
        assert lags.shape == (LAGS,)
        return Forecast(*(np.full(HORIZON, lags[-1]) + width for width in (0, -1, 1)))


def small_api():
    """The tutorial's way: FastAPI parses the body, through a JsonRoute."""
    api = create_api("a test")

    @api.post(**FORECAST_ROUTE)
    async def post_forecast(request: ForecastRequest, response: Response) -> ForecastResponse:
        return respond(Flat(), request)

    return api


def production_api():
    """The production service's way: the endpoint reads the body itself."""
    api = create_api("a test", DirectRoute)

    @api.post(**PRODUCTION_ROUTE)
    async def post_forecast(request: Request) -> Response:
        answer = respond(Flat(), await read_body(request, ForecastRequest))
        return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")

    return api


@pytest.fixture(scope="module", params=[small_api, production_api], ids=["small", "production"])
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


def test_eighty_thousand_unknown_fields_are_ten_faults(client):
    body = {"sequence_data": GOOD} | {f"x{number}": 1 for number in range(80_000)}
    faults = require_named_faults(post(client, json.dumps(body, separators=(",", ":")).encode()))
    assert len(faults) == MAX_FAULTS


def test_a_history_full_of_faults_is_one_fault(client):
    answer = post(client, json.dumps({"sequence_data": ["x"] * MAX_HISTORY}).encode())
    assert len(require_named_faults(answer)) == 1


def test_production_refuses_a_body_that_is_too_large():
    answer = post(TestClient(production_api()), b" " * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413 and str(MAX_BODY_BYTES) in answer.json()["detail"]


def test_both_services_document_the_same_forecast():
    paths = [api().openapi()["paths"]["/"]["post"] for api in (small_api, production_api)]
    small, production = paths
    assert small["operationId"] == production["operationId"] == "forecast"
    assert small["responses"].keys() <= production["responses"].keys()
    assert small["responses"]["200"] == production["responses"]["200"]
    assert {"400", "404", "422", "502", "503"} <= small["responses"].keys()
    assert {"401", "403", "408", "413"} <= production["responses"].keys()
    assert "requestBody" in small and "requestBody" in production
