"""The check of a service passes one that keeps the contract, and names what another one breaks."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.middleware.base import BaseHTTPMiddleware

from forecast_service import contract
from forecast_service.artifact import folded_from_bytes
from forecast_service.contract import (
    MAX_VALUE,
    ForecastRequest,
    create_api,
    read_body,
    respond,
)
from forecast_service.customer_ids import MODEL_ID_HEADER, check_customer_id
from forecast_service.errors import MissingTokenError, UnknownCustomerError
from forecast_service.model import LAGS
from lab import check_service
from lab.traffic import FOOTFALL

CONTENT = FOOTFALL.parents[1]
CUSTOMER = "customer_0001"
COMMAND = sys.executable, "-m", "lab.check_service"
BODY_TIMEOUT_S = 1
OF_ALL_ANSWERS = "documents_itself", "keeps_its_secrets"
Change = Callable[[Request, Response, bytes], tuple[int, dict, bytes]]


def stand_in(fleet: dict[str, bytes], change: Change | None, token: str | None) -> FastAPI:
    """A service that keeps the contract, but for what `change` makes of its answers."""

    async def post_forecast(request: Request) -> Response:
        if token and request.headers.get("Tenant-Authorization") != f"Bearer {token}":
            raise MissingTokenError("no token")
        name = request.headers.get(MODEL_ID_HEADER.replace("_", "-"))
        customer_id = check_customer_id(request.headers.get(MODEL_ID_HEADER, name or ""))
        if customer_id not in fleet:
            raise UnknownCustomerError(f"there is no model for {customer_id}")
        model = folded_from_bytes(fleet[customer_id], customer_id)
        answer = respond(model, await read_body(request, ForecastRequest))
        headers = {"Server-Timing": "cache;desc=hit;dur=0.1", "X-Replica-Id": "one"}
        body = answer.model_dump_json(exclude_none=True)
        return Response(body, media_type="application/json", headers=headers)

    api = create_api("A stand-in", post_forecast)

    async def break_it(request: Request, call_next: Callable) -> Response:
        response = await call_next(request)
        body = b"".join([part async for part in response.body_iterator])
        status, headers = response.status_code, dict(response.headers)
        if change:
            status, headers, body = change(request, response, body)
        headers.pop("content-length", None)
        return Response(body, status, headers)

    api.add_middleware(BaseHTTPMiddleware, dispatch=break_it)
    return api


@pytest.fixture
def serve(fleet, monkeypatch) -> Iterator[Callable[..., str]]:
    """Start a stand-in, and return its URL."""
    monkeypatch.setattr(contract, "BODY_TIMEOUT_S", BODY_TIMEOUT_S)
    running = []

    def serve(change: Change | None = None, token: str | None = None) -> str:
        config = uvicorn.Config(stand_in(fleet, change, token), port=0, log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive(), "the stand-in did not start"
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join()


def off(url: str) -> set[str]:
    found = check_service.check_service(url, CUSTOMER)
    return {name for name, faults in found.items() if faults}


def test_a_service_that_keeps_the_contract_passes(serve):
    url = serve()
    assert off(url) == set()
    done = subprocess.run(
        [*COMMAND, url, "--customer", CUSTOMER], cwd=CONTENT, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stdout
    *checks, untried, count = done.stdout.decode().splitlines()
    assert untried == "--  checks tokens: not tried, TENANT_TOKEN is not set"
    assert all(check.startswith("ok  ") for check in checks) and "checks tokens" not in str(checks)
    assert count == f"{len(checks)} of {len(checks)} as the contract says"


def edit(status: int, wanted: Callable[[dict], object]) -> Change:
    """Change the JSON of the answers that have a status."""

    def change(request: Request, response: Response, body: bytes) -> tuple[int, dict, bytes]:
        if response.status_code == status and "openapi" not in request.url.path:
            said = json.loads(body)
            body = json.dumps(wanted(said) or said).encode()
        return response.status_code, dict(response.headers), body

    return change


def answer(old: int, new: int) -> Change:
    """Answer with another status."""
    return lambda request, response, body: (
        new if response.status_code == old else response.status_code,
        dict(response.headers),
        body,
    )


def drop(header: str, value: str | None = None) -> Change:
    """Leave a header out, or give it another value."""

    def change(request: Request, response: Response, body: bytes) -> tuple[int, dict, bytes]:
        headers = dict(response.headers)
        if header in headers:
            headers[header] = value or ""
        return response.status_code, headers, body

    return change


def leave_out(header: str) -> Change:
    """Send answers without a header."""

    def change(request: Request, response: Response, body: bytes) -> tuple[int, dict, bytes]:
        headers = {name: value for name, value in response.headers.items() if name != header}
        return response.status_code, headers, body

    return change


def asked(matches: Callable[[Request], bool], status: int) -> Change:
    """Give requests that match another status."""
    return lambda request, response, body: (
        status if matches(request) else response.status_code,
        dict(response.headers),
        body,
    )


def length(request: Request) -> int:
    return int(request.headers.get("content-length", 0))


def as_long_as(history: list[float]) -> Callable[[Request], bool]:
    """Match requests whose body is as long as that of a history."""
    expected = len(json.dumps({"sequence_data": history}))
    return lambda request: length(request) == expected


counted = iter(range(1_000_000))
LARGEST = ForecastRequest.max_bytes


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (edit(200, lambda said: said["forecast"].clear()), "forecasts"),
        (
            edit(200, lambda said: said.update(lower=said["upper"], upper=said["lower"])),
            "forecasts",
        ),
        (edit(200, lambda said: said.update(customer_id="other")), "forecasts"),
        (edit(200, lambda said: said.update(model_version="")), "forecasts"),
        (edit(200, lambda said: said.update(extra=1)), "forecasts"),
        (edit(200, lambda said: [said]), "forecasts"),
        (edit(200, lambda said: said.update(upper=[None] * 7)), "forecasts"),
        (edit(200, lambda said: said.update(upper=[1e9 + next(counted)] * 7)), "repeats"),
        (edit(200, lambda said: {**said, "padded": False}), "extends_short_histories"),
        (asked(as_long_as(check_service.HISTORY[1:]), 422), "extends_short_histories"),
        (asked(as_long_as([MAX_VALUE] * LAGS), 422), "takes_the_largest_values"),
        (asked(as_long_as([-MAX_VALUE] * LAGS), 422), "takes_the_largest_values"),
        (answer(422, 400), "refuses_wrong_bodies"),
        (edit(422, lambda said: {"detail": [{"loc": ["body"]}]}), "refuses_wrong_bodies"),
        (edit(422, lambda said: {**said, "sent": "x" * 6000}), "refuses_wrong_bodies"),
        (edit(400, lambda said: {"detail": "no"}), "refuses_a_missing_id"),
        (answer(400, 404), "refuses_malformed_ids"),
        (answer(404, 400), "knows_who_has_no_model"),
        (edit(404, lambda said: {"detail": "unknown"}), "knows_who_has_no_model"),
        (drop("server-timing", "cache;desc=miss;dur=1"), "knows_who_has_no_model"),
        (drop("server-timing"), "says_who_answers"),
        (drop("x-replica-id"), "says_who_answers"),
        (answer(415, 422), "refuses_compressed_bodies"),
        (asked(lambda request: length(request) == LARGEST, 413), "limits_bodies"),
        (asked(lambda request: length(request) == LARGEST + 1, 200), "limits_bodies"),
        (edit(413, lambda said: {"detail": "too large"}), "limits_bodies"),
        (answer(408, 400), "gives_up_on_slow_bodies"),
        (asked(lambda request: "x-large" in request.headers, 500), "survives_odd_headers"),
        (asked(lambda request: "upgrade" in request.headers, 422), "survives_odd_headers"),
        (edit(400, lambda said: {"detail": "no body"}), "survives_odd_headers"),
        (answer(405, 404), "refuses_other_methods"),
        (answer(404, 410), "documents_itself"),
        (answer(422, 500), "keeps_its_secrets"),
        (edit(422, lambda said: {**said, "x": "Traceback"}), "keeps_its_secrets"),
    ],
)
def test_what_a_service_breaks_is_named(serve, monkeypatch, change, check):
    checks = [getattr(check_service, check)]
    if check in OF_ALL_ANSWERS:
        checks = [check for check in check_service.CHECKS if check not in check_service.SLOW]
    monkeypatch.setattr(check_service, "CHECKS", checks)
    assert check in off(serve(change))


def test_long_histories_that_count_whole_are_noticed(serve):
    def change(request: Request, response: Response, body: bytes) -> tuple[int, dict, bytes]:
        if 20_000 < length(request) < LARGEST:
            body = body.replace(b'"upper":[', b'"upper":[1')
        return response.status_code, dict(response.headers), body

    assert off(serve(change)) == {"takes_long_histories"}


@pytest.mark.parametrize("label", ["text/plain", "application/json; charset=utf-16", None])
def test_a_label_that_is_not_taken_is_noticed(serve, label):
    def is_labelled(request: Request) -> bool:
        return request.method == "POST" and request.headers.get("content-type") == label

    client = check_service.Client(serve(asked(is_labelled, 415)), CUSTOMER)
    assert list(check_service.takes_any_label(client)) == [
        f"with the Content-Type {label} it is answered 415"
    ]


def test_a_header_with_hyphens_that_is_not_taken_is_noticed(serve):
    def change(request: Request, response: Response, body: bytes) -> tuple[int, dict, bytes]:
        hyphens = MODEL_ID_HEADER.replace("_", "-") in request.headers
        return 400 if hyphens else response.status_code, dict(response.headers), body

    assert off(serve(change)) == {"takes_hyphens"}


def test_a_service_with_tokens_is_asked_with_one(serve, monkeypatch):
    url = serve(token="secret")
    assert off(url) == {"forecasts"}, "without a token there is nothing to check"
    monkeypatch.setenv("TENANT_TOKEN", "secret")
    assert off(url) == set()
    monkeypatch.setattr(check_service, "CHECKS", [check_service.checks_tokens])
    assert off(serve(leave_out("www-authenticate"), token="secret")) == {"checks_tokens"}
    assert off(serve(answer(401, 403), token="secret")) == {"checks_tokens"}
    monkeypatch.setenv("TENANT_TOKEN", "any")
    assert "checks_tokens" in off(serve())


def test_the_command_exits_with_1_and_says_what_is_off(serve):
    url = serve(answer(404, 400))
    for address, said in (
        (url, "OFF knows who has no model\n      an unknown id is answered 400"),
        ("http://127.0.0.1:1", "nobody answers at http://127.0.0.1:1"),
        ("127.0.0.1:8000", "127.0.0.1:8000 is no URL such as http://"),
        ("http://", "http:// is no URL such as http://"),
    ):
        done = subprocess.run(
            [*COMMAND, address, "--customer", CUSTOMER],
            cwd=CONTENT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert said in done.stdout + done.stderr
