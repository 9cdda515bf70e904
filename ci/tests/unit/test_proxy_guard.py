"""The guard of Ray Serve's proxy: what it lets by, and what it answers in the proxy's place."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from forecast_service.errors import RETRY_AFTER_S
from forecast_service.proxy_guard import MAX_BODY_BYTES, MAX_HEADER_BYTES, middlewares


def guarded(answer: Response) -> TestClient:
    """Return a client of a guarded application that reads a body, and gives this answer."""

    async def endpoint(request):
        await request.body()
        return answer

    routes = [Route("/", endpoint, methods=["POST"])]
    return TestClient(Starlette(routes=routes, middleware=middlewares()))


def test_a_503_in_plain_text_says_when_to_try_again():
    answer = guarded(PlainTextResponse("the queue is full", 503)).post("/")
    assert answer.status_code == 503 and "try again" in answer.json()["detail"]
    assert answer.headers["Retry-After"] == str(RETRY_AFTER_S)


@pytest.mark.parametrize("name", ["X-Accepts", "Vary", "X-Content-Type"])
def test_a_503_in_json_is_left_alone_whatever_its_other_headers_say(name):
    own = Response('{"detail": "mine"}', 503, {name: "text/plain"}, "application/json")
    answer = guarded(own).post("/")
    assert answer.status_code == 503 and answer.json() == {"detail": "mine"}


def test_any_other_answer_in_plain_text_is_left_alone():
    for status in 200, 500:
        answer = guarded(PlainTextResponse("mine", status)).post("/")
        assert (answer.status_code, answer.text) == (status, "mine")


def test_headers_and_bodies_over_the_limit_are_refused_with_the_limit():
    client = guarded(PlainTextResponse("mine"))
    answer = client.post("/", headers={"X-Large": "x" * MAX_HEADER_BYTES})
    assert answer.status_code == 431 and str(MAX_HEADER_BYTES) in answer.json()["detail"]
    assert client.post("/", content=b" " * MAX_BODY_BYTES).text == "mine"


@pytest.mark.parametrize("upgrade", ["h2c", "TLS/1.0"])
def test_a_request_whose_body_an_upgrade_loses_is_answered_before_anything_is_read(upgrade):
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": upgrade}
    answer = guarded(PlainTextResponse("mine")).post("/", content=b"{}", headers=headers)
    assert answer.status_code == 400 and f"Upgrade: {upgrade}" in answer.json()["detail"]
    assert answer.headers["Connection"] == "close"


@pytest.mark.parametrize(
    ("headers", "body"),
    [({"Upgrade": "h2c"}, b"{}"), ({"Connection": "Upgrade", "Upgrade": "h2c"}, b"")],
    ids=["Connection does not ask for it", "no body"],
)
def test_an_upgrade_that_loses_nothing_is_left_to_the_application(headers, body):
    answer = guarded(PlainTextResponse("mine")).post("/", content=body, headers=headers)
    assert answer.text == "mine"
