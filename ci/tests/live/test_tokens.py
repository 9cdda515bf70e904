"""Tenants kept apart on the production service: by HTTP, handle, portfolio and gRPC."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import jwt
import numpy as np
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from key_files import SECRETS, public_pem
from live_service import FAST, SERVICE, LogWatch
from ray import serve

from forecast_service.artifact import from_bytes
from forecast_service.errors import ForbiddenCustomerError, MissingTokenError
from forecast_service.keys import Key
from forecast_service.settings import TokenSettings
from forecast_service.tokens import TENANT_HEADER
from lab.chapter import NAMED
from lab.issue_token import issue
from lab.serving import launch, wait_until

SECRET, NEXT_SECRET = SECRETS
KEY, NEXT_KEY = (Key("HS256", secret.encode()) for secret in SECRETS)
OWN, OWN_WITHOUT_MODEL = "customer_0021", "customer_002"
OTHERS, NOBODYS = NAMED[0], "customer_000"


def bearer(*customers: str, key: Key = KEY) -> str:
    return f"Bearer {issue(key, list(customers), days=1)}"


TENANT = bearer("customer_002*")
TAMPERED = f"{TENANT[:-4]}AAAA"


@pytest.fixture(scope="module")
def tenants(live_store, endpoints, launch_production, tmp_path_factory) -> Iterator[Path]:
    """The service wants tokens, and so does a second portfolio, /keyed. Yields their key file."""
    import serve_portfolio

    key = tmp_path_factory.mktemp("tenants") / "key"
    key.write_text(f"{SECRET}\n")
    launch_production(tenant_key=key)
    launch(serve_portfolio.app(TokenSettings(tenant_key=key)), "keyed", "/keyed")
    yield key
    serve.delete("keyed")
    launch_production()


@pytest.fixture
def ask_as(tenants, store, histories):
    """Ask the live service for a customer's forecast, as a tenant."""

    def ask_as(
        authorization: str | None, customer_id: str | None, body: dict | bytes | None = None
    ) -> requests.Response:
        headers = {"serve_multiplexed_model_id": customer_id, TENANT_HEADER: authorization}
        body = body or {"sequence_data": histories[OTHERS]}
        content = {"data": body} if isinstance(body, bytes) else {"json": body}
        return requests.post(SERVICE, headers=headers, timeout=30, **content)

    return ask_as


@pytest.fixture
def ask_portfolio(tenants, store, histories):
    """Ask a portfolio for forecasts of a tenant's own customer, another's, and nobody's."""

    def ask_portfolio(authorization: str | None, path: str) -> requests.Response:
        body = {"histories": dict.fromkeys((OWN, OTHERS, NOBODYS), histories[OTHERS])}
        headers = {TENANT_HEADER: authorization}
        return requests.post(f"{SERVICE}/{path}", headers=headers, json=body, timeout=30)

    return ask_portfolio


@pytest.fixture
def call_as(tenants, ask_grpc, histories):
    """Ask by gRPC, as a tenant."""

    def call_as(authorization: str | None, customer_id: str):
        metadata = [(TENANT_HEADER, authorization)] if authorization else []
        return ask_grpc(customer_id, histories[OTHERS], *metadata)

    return call_as


@pytest.fixture
def expected(fleet, histories) -> list[float]:
    """The forecast of the tenant's own customer."""
    history = np.array(histories[OTHERS], dtype=float)
    return from_bytes(fleet[OWN], OWN).predict(history).forecast.tolist()


def test_a_tenant_gets_the_forecasts_of_its_own_customers(ask_as, expected):
    for authorization in TENANT, bearer(OWN), bearer("*"):
        assert ask_as(authorization, OWN).json()["forecast"] == expected


@pytest.mark.parametrize(
    ("authorization", "challenge"),
    [
        (None, 'Bearer realm="forecasts"'),
        ("", 'Bearer realm="forecasts"'),
        (TAMPERED, 'Bearer realm="forecasts", error="invalid_token"'),
        (TENANT.removeprefix("Bearer "), 'Bearer realm="forecasts", error="invalid_token"'),
        ("Bearer caf\xe9".encode("latin-1"), 'Bearer realm="forecasts", error="invalid_token"'),
    ],
)
def test_without_a_valid_token_everything_is_a_401_before_any_load(
    ask_as, store, authorization, challenge
):
    answers = [ask_as(authorization, name) for name in (OWN, OTHERS, NOBODYS, "../etc", None)]
    answers += [ask_as(authorization, OWN, body) for body in ({"sequence_data": "many"}, b"{")]
    for answer in answers:
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == challenge
        assert TENANT_HEADER in answer.json()["detail"] or "not valid" in answer.json()["detail"]
    assert not store.reads, "a request without a valid token reached the store"


def test_without_a_valid_token_a_large_body_is_refused_unread(ask_as):
    """By the service, which asks for the token first, or by the guard, which has the body first."""
    statuses = {401} if FAST else {401, 413}
    assert ask_as(None, OWN, b"[" * 10_000_000).status_code in statuses


def test_the_token_leaves_the_header_of_anyscales_own_alone(ask_as, store, histories):
    headers = {"serve_multiplexed_model_id": OWN, "Authorization": TENANT}
    body = {"sequence_data": histories[OTHERS]}
    assert requests.post(SERVICE, headers=headers, json=body, timeout=30).status_code == 401
    headers |= {"Authorization": "Bearer of Anyscale", TENANT_HEADER: TENANT}
    assert requests.post(SERVICE, headers=headers, json=body, timeout=30).status_code == 200


def test_anothers_customer_and_nobodys_get_the_same_403_before_any_load(ask_as, store):
    answers = [ask_as(TENANT, name) for name in (OTHERS, NOBODYS, "a" * 64, "customer_01")]
    assert {answer.status_code for answer in answers} == {403}
    assert len({answer.content for answer in answers}) == 1
    own = "date", "x-request-id"  # of every answer
    told = [{k: v for k, v in a.headers.items() if k.lower() not in own} for a in answers]
    assert all(headers == told[0] for headers in told)
    assert not store.reads, "the service looked whether there is such a customer"


def test_anothers_customer_is_forbidden_when_its_model_is_in_memory_too(ask_as):
    unloaded = ask_as(TENANT, NAMED[1])
    assert ask_as(bearer("*"), OTHERS).status_code == 200
    warm = ask_as(TENANT, OTHERS)
    assert (warm.status_code, warm.content) == (403, unloaded.content)


def test_what_is_a_tenants_own_business_is_answered_as_ever(ask_as):
    assert ask_as(TENANT, OWN_WITHOUT_MODEL).status_code == 404
    assert ask_as(TENANT, None).status_code == 400
    assert ask_as(bearer("*"), "../etc").status_code == 400
    assert ask_as(TENANT, OWN, {"sequence_data": [1, 2]}).status_code == 422


def test_an_endpoint_that_has_no_key_is_closed_by_the_service_behind_it(
    ask_portfolio, store, expected
):
    for authorization in None, TAMPERED:
        parts = ask_portfolio(authorization, "portfolio").json()["parts"]
        assert {part["status"] for part in parts.values()} == {401}
    assert not store.reads
    parts = ask_portfolio(TENANT, "portfolio").json()["parts"]
    assert parts[OWN]["forecast"] == expected
    assert parts[OTHERS] == parts[NOBODYS] == {"status": 403, "detail": parts[OTHERS]["detail"]}


def test_a_portfolio_with_the_key_turns_away_who_has_no_valid_token(ask_portfolio, expected):
    for authorization in None, TAMPERED:
        answer = ask_portfolio(authorization, "keyed")
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
        assert answer.json().keys() == {"detail"}
    parts = ask_portfolio(TENANT, "keyed").json()["parts"]
    assert parts[OWN]["forecast"] == expected
    assert parts[OTHERS] == parts[NOBODYS] == {"status": 403, "detail": parts[OTHERS]["detail"]}


def test_the_grpc_endpoint_wants_a_token_and_tells_nobodys_from_anothers_no_more(call_as, expected):
    assert list(call_as(TENANT, OWN).forecast) == expected
    refused = {}
    for asked in (None, OWN), (TAMPERED, OWN), (TENANT, OTHERS), (TENANT, NOBODYS):
        with pytest.raises(grpc.RpcError) as raised:
            call_as(*asked)
        refused[asked] = raised.value.code(), raised.value.details()
    codes = [code for code, _ in refused.values()]
    assert codes == [grpc.StatusCode.UNAUTHENTICATED] * 2 + [grpc.StatusCode.PERMISSION_DENIED] * 2
    assert refused[TENANT, OTHERS] == refused[TENANT, NOBODYS]


def test_the_handle_wants_a_token_as_well(tenants, store, histories, expected):
    def forecast(customer_id: str, *authorization: str) -> dict:
        handle = serve.get_app_handle("default").options(multiplexed_model_id=customer_id)
        return handle.forecast.remote(histories[OTHERS], *authorization).result(timeout_s=30)

    assert forecast(OWN, TENANT)["forecast"] == expected
    with pytest.raises(MissingTokenError):
        forecast(OWN)
    with pytest.raises(ForbiddenCustomerError):
        forecast(OTHERS, TENANT)
    assert not set(store.reads) & {OTHERS}


@pytest.mark.parametrize(("path", "statuses"), [("", {"401", "403"}), ("/keyed", {"401"})])
def test_the_openapi_document_asks_for_the_token(tenants, path, statuses):
    document = requests.get(f"{SERVICE}{path}/openapi.json", timeout=30).json()
    (operation,) = document["paths"]["/"].values()
    assert statuses <= set(operation["responses"])
    assert TENANT_HEADER in [parameter["name"] for parameter in operation["parameters"]]


@pytest.fixture
def ways(ask_as, ask_portfolio, call_as) -> Callable[[str], set[str]]:
    """Return by which ways a token is good."""

    def ways(authorization: str) -> set[str]:
        found = {"HTTP"} if ask_as(authorization, OWN).ok else set()
        if ask_portfolio(authorization, "keyed").ok:
            found.add("portfolio")
        with suppress(grpc.RpcError):
            call_as(authorization, OWN)
            found.add("gRPC")
        return found

    return ways


def test_keys_change_under_a_running_service_and_lock_nobody_out(
    session_dir, tenants, ask_as, ways
):
    """Old and new secret side by side; the public key of a provider; that key without armour."""
    everywhere, replica = {"HTTP", "portfolio", "gRPC"}, ask_as(TENANT, OWN).headers["X-Replica-Id"]
    private = rsa.generate_private_key(65537, 2048)
    body = b"".join(public_pem(private).splitlines()[1:-1])
    new = bearer("customer_002*", key=NEXT_KEY)
    provided = bearer("customer_002*", key=Key("RS256", private))
    claims = jwt.decode(new.removeprefix("Bearer "), options={"verify_signature": False})
    forged = f"Bearer {jwt.encode(claims, body, 'HS256')}"
    assert (ways(TENANT), ways(new), ways(provided), ways(forged)) == (
        everywhere,
        set(),
        set(),
        set(),
    )

    def wait_for(condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, what, timeout_s=60)

    try:
        tenants.write_text(f"{SECRET}\n{NEXT_SECRET}\n")
        wait_for(lambda: ways(new) == everywhere, "the next secret is good")
        assert ways(TENANT) == everywhere, "a tenant is locked out"

        tenants.write_bytes(public_pem(private))
        wait_for(lambda: ways(provided) == everywhere, "the provider's key is good")
        assert (ways(TENANT), ways(new), ways(forged)) == (set(), set(), set())

        log = LogWatch(session_dir)
        tenants.write_bytes(body)
        kept = "the same keys as before"
        wait_for(lambda: log.new("replica_*.log").count(kept) == 2, "both have refused the file")
        assert (ways(provided), ways(forged)) == (everywhere, set())
    finally:
        tenants.write_text(SECRET)
    wait_for(lambda: ways(TENANT) == everywhere, "the first secret is good again")
    assert ask_as(TENANT, OWN).headers["X-Replica-Id"] == replica, "a replica has started anew"


def test_logs_hold_no_secret_no_token_and_no_stack_trace(
    session_dir, tenants, ask_as, ask_portfolio, call_as
):
    log, cold = LogWatch(session_dir), "customer_0029"
    for authorization in TENANT, TAMPERED, None:
        for customer_id in cold, OTHERS, OWN_WITHOUT_MODEL:
            ask_as(authorization, customer_id)
        for path in "portfolio", "keyed":
            ask_portfolio(authorization, path)
        with suppress(grpc.RpcError):
            call_as(authorization, OTHERS)
    wait_until(lambda: f"Cold load of {cold}" in log.new("replica_*.log"), "the load is logged")
    assert "Traceback" not in log.new("replica_*.log") + log.new("proxy_*.log")
    ever = log.ever()
    for secret in SECRET, TENANT.rpartition(".")[2], TAMPERED.rpartition(".")[2]:
        assert secret.encode() not in ever
