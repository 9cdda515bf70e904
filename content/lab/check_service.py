"""Try the whole HTTP contract against a running service, and exit with 1 if something is off.

    python -m lab.check_service http://127.0.0.1:8000 --customer customer_123

It sends about a hundred requests for one customer who has a model, for ids that cannot have one,
and bodies that cannot be forecast from; it changes nothing, and takes some ten seconds. A service
that keeps tenants apart wants a token for that customer, and Anyscale one of its own: in the
environment, as TENANT_TOKEN and ANYSCALE_SERVICE_TOKEN.
"""

import argparse
import gzip
import json
import math
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import requests

from forecast_service.contract import MAX_HISTORY, MAX_VALUE, ForecastRequest
from forecast_service.customer_ids import MODEL_ID_HEADER
from forecast_service.model import HORIZON, LAGS, SEASON
from forecast_service.tokens import TENANT_HEADER
from lab.this_machine import SERVICE, ask_directly

TIMEOUT_S = 30  # for an answer
AT_ONCE = 20  # requests
UNKNOWN_IDS = 20
LONGEST_REFUSAL_BYTES = 5000  # one that is longer repeats what was sent
LARGE_HEADER = "x" * 20_000
HISTORY = [100.0 + 10 * (day % SEASON) + day for day in range(LAGS)]
NO_SERVICES = "431"  # a status that only what stands in front of a service answers with
UVICORNS_OWN = "Invalid HTTP request"  # of a body that comes after an Upgrade, without the guard
LABELS = "text/plain", "application/json; charset=utf-16", None  # of a body, which is JSON
MALFORMED_IDS = (
    "../x",
    "a/b",
    "..",
    ".",
    "-rf",
    "a b",
    "a" * 65,
    "caf\u00e9",
    "a%2fb",
    "/etc/passwd",
)
FIELD = ["body", "sequence_data"]
WRONG_VALUES = '"3"', "true", "null", "NaN", "1e999", f"{MAX_VALUE * 1.01}", f"{-MAX_VALUE * 1.01}"
WRONG_BODIES = {  # and where the answer has to say that it is wrong
    "too few values": (json.dumps({"sequence_data": HISTORY[: SEASON - 1]}), FIELD),
    "too many values": (json.dumps({"sequence_data": [1] * (MAX_HISTORY + 1)}), FIELD),
    "another field": ('{"historical_values": [1, 2, 3, 4, 5, 6, 7]}', FIELD),
    "an unknown field": ('{"sequence_data": [1, 2, 3, 4, 5, 6, 7], "x": 1}', ["body", "x"]),
    "no JSON": ("sequence_data=1", ["body"]),
    "no body": ("", ["body"]),
    "brackets without end": ("[" * 100_000, ["body"]),
    **{
        f"the value {value}": (f'{{"sequence_data": [1, 2, {value}, 4, 5, 6, 7]}}', [*FIELD, 2])
        for value in WRONG_VALUES
    },
}


class Unsent:
    """A body that is promised, and does not arrive."""

    def __len__(self) -> int:
        return 100

    def __iter__(self) -> Iterator[bytes]:
        return iter(())


class Client:
    """Asks a service, and keeps its answers."""

    def __init__(self, url: str, customer_id: str):
        self.url, self.customer_id = url.rstrip("/"), customer_id
        self.answers: list[requests.Response] = []
        self._tokens = {}
        if token := os.environ.get("TENANT_TOKEN"):
            self._tokens[TENANT_HEADER] = f"Bearer {token}"
        if token := os.environ.get("ANYSCALE_SERVICE_TOKEN"):
            self._tokens["Authorization"] = f"Bearer {token}"
        self.has_token = TENANT_HEADER in self._tokens

    def ask(
        self,
        history: list[float] = HISTORY,
        customer_id: str | None = None,
        body: str | bytes | Unsent | None = None,
        method: str = "post",
        path: str = "/",
        **headers: str | None,
    ) -> requests.Response:
        """Send a request; headers that are None are left out."""
        name = self.customer_id if customer_id is None else customer_id
        sent = {
            "Content-Type": "application/json",
            MODEL_ID_HEADER: name.encode(),
            **self._tokens,
            **headers,
        }
        data = json.dumps({"sequence_data": history}).encode() if body is None else body
        answer = ask_directly(
            method,
            self.url + path,
            headers={name: value for name, value in sent.items() if value is not None},
            data=data if method == "post" else None,
            timeout=TIMEOUT_S,
            allow_redirects=False,
        )
        self.answers.append(answer)
        return answer


def forecasts(client: Client) -> Iterator[str]:
    """A full history gets a forecast with an interval around it, and says whose it is."""
    answer = client.ask()
    if answer.status_code != 200:
        yield f"{answer.status_code} for {client.customer_id}: {answer.text[:200]}"
        return
    said = answer.json()
    fields = {"customer_id", "forecast", "lower", "upper", "model_version"}
    if set(said) != fields:
        yield f"the answer has the fields {sorted(said)}, not {sorted(fields)}"
        return
    if said["customer_id"] != client.customer_id or not said["model_version"]:
        yield f"it is for {said['customer_id']!r}, by the version {said['model_version']!r}"
    days = said["forecast"], said["lower"], said["upper"]
    if any(len(values) != HORIZON for values in days):
        yield f"it has {[len(values) for values in days]} values, not {HORIZON} each"
    elif not all(isinstance(v, int | float) and math.isfinite(v) for d in days for v in d):
        yield "a value in it is no finite number"
    elif not all(low <= mid <= high for mid, low, high in zip(*days, strict=True)):
        yield "the interval is not around the forecast"
    if not answer.headers.get("Content-Type", "").startswith("application/json"):
        yield f"its Content-Type is {answer.headers.get('Content-Type')}"


def repeats(client: Client) -> Iterator[str]:
    """Requests that are alike get answers that are alike, to the byte, also at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda _: client.ask(), range(AT_ONCE)))
    statuses = {answer.status_code for answer in answers}
    if statuses != {200}:
        yield f"{AT_ONCE} requests at once are answered {sorted(statuses)}"
    elif len({answer.content for answer in answers}) > 1:
        yield "the same request has several answers"


def extends_short_histories(client: Client) -> Iterator[str]:
    """A short history is extended by its first week, and the answer says so."""
    short = client.ask(HISTORY[:SEASON])
    weeks = client.ask((HISTORY[:SEASON] * (LAGS // SEASON + 1))[-LAGS:])
    for answer in short, client.ask(HISTORY[1:]):
        if answer.status_code != 200 or answer.json().get("padded") is not True:
            yield f"it is answered {answer.status_code}, without padded: true"
            return
    if weeks.ok and short.json()["forecast"] != weeks.json()["forecast"]:
        yield "a short history is not extended by its own first week"


def takes_long_histories(client: Client) -> Iterator[str]:
    """Of a long history the last values count."""
    answer, expected = client.ask([1.0] * (MAX_HISTORY - LAGS) + HISTORY), client.ask()
    if answer.status_code != 200 or answer.content != expected.content:
        yield f"{MAX_HISTORY} values are not answered as their last {LAGS} ({answer.status_code})"


def takes_the_largest_values(client: Client) -> Iterator[str]:
    """Values may be as large as MAX_VALUE, above zero and below."""
    for value in MAX_VALUE, -MAX_VALUE:
        answer = client.ask([value] * LAGS)
        if answer.status_code != 200:
            yield f"{LAGS} times {value:g} is answered {answer.status_code}: {answer.text[:100]}"


def takes_any_label(client: Client) -> Iterator[str]:
    """A body is JSON, whatever its Content-Type says."""
    expected = client.ask()
    for label in LABELS:
        answer = client.ask(**{"Content-Type": label})
        if answer.status_code != 200 or answer.content != expected.content:
            yield f"with the Content-Type {label} it is answered {answer.status_code}"


def limits_bodies(client: Client) -> Iterator[str]:
    """A body as large as it may be is taken; one byte more is a 413 that names the limit."""
    largest = json.dumps({"sequence_data": HISTORY}).ljust(ForecastRequest.max_bytes)
    answer = client.ask(body=largest)
    if answer.status_code != 200:
        yield f"{len(largest)} bytes are answered {answer.status_code}: {answer.text[:100]}"
    answer = client.ask(body=f"{largest} ")
    if answer.status_code != 413 or str(ForecastRequest.max_bytes) not in answer.text:
        yield f"{len(largest) + 1} bytes are answered {answer.status_code}: {answer.text[:100]}"


def gives_up_on_slow_bodies(client: Client) -> Iterator[str]:
    """A body that does not arrive is a 408, after BODY_TIMEOUT_S."""
    answer = client.ask(body=Unsent())
    if answer.status_code != 408:
        yield f"it is answered {answer.status_code}: {answer.text[:100]}"


def refuses_wrong_bodies(client: Client) -> Iterator[str]:
    """A body that is not wanted is a 422 that says where it is wrong, and does not repeat it."""
    for what, (body, where) in WRONG_BODIES.items():
        answer = client.ask(body=body)
        if answer.status_code != 422:
            yield f"{what} is answered {answer.status_code}"
            continue
        faults = answer.json()["detail"]
        places = [fault.get("loc", []) for fault in faults if isinstance(fault, dict)]
        if not any(place[: len(where)] == where for place in places):
            yield f"{what}: the answer does not name {where}"
        if len(answer.content) > LONGEST_REFUSAL_BYTES:
            yield f"{what}: the answer repeats what was sent"


def refuses_a_missing_id(client: Client) -> Iterator[str]:
    """A request without a model id is a 400 that names the header."""
    answer = client.ask(**{MODEL_ID_HEADER: None})
    if client.has_token and answer.status_code == 403:
        return  # no customer of this token
    if answer.status_code != 400 or MODEL_ID_HEADER not in answer.text:
        yield f"it is answered {answer.status_code}: {answer.text[:100]}"


def refuses_malformed_ids(client: Client) -> Iterator[str]:
    """What cannot be a customer's id is a 400, and reaches no store."""
    allowed = {400, 403} if client.has_token else {400}
    for customer_id in MALFORMED_IDS:
        answer = client.ask(customer_id=customer_id)
        if answer.status_code not in allowed:
            yield f"{customer_id[:20]!r} is answered {answer.status_code}"


def knows_who_has_no_model(client: Client) -> Iterator[str]:
    """An id without a model is a 404 that names it, and costs no other customer its model."""
    client.ask()
    allowed = {404, 403} if client.has_token else {404}
    for _ in range(UNKNOWN_IDS):
        customer_id = uuid.uuid4().hex * 2  # as long as an id may be
        answer = client.ask(customer_id=customer_id)
        if answer.status_code not in allowed:
            yield f"an unknown id is answered {answer.status_code}"
            return
        if answer.status_code == 404 and customer_id not in answer.text:
            yield f"the 404 does not name the id: {answer.text[:100]}"
            return
    if "desc=hit" not in client.ask().headers.get("Server-Timing", "desc=hit"):
        yield f"{UNKNOWN_IDS} unknown ids cost {client.customer_id} its place in memory"


def takes_hyphens(client: Client) -> Iterator[str]:
    """The header's name may have hyphens, which proxies prefer."""
    hyphens = {MODEL_ID_HEADER: None, MODEL_ID_HEADER.replace("_", "-"): client.customer_id}
    answer = client.ask(**hyphens)
    if answer.status_code != 200 or answer.json()["customer_id"] != client.customer_id:
        yield f"with hyphens it is answered {answer.status_code}"


def says_who_answers(client: Client) -> Iterator[str]:
    """An answer says which replica gave it, and if the model was in memory."""
    headers = client.ask().headers
    timing = headers.get("Server-Timing", "")
    if not timing.startswith(("cache;desc=hit;dur=", "cache;desc=miss;dur=")):
        yield f"Server-Timing is {timing!r}"
    if not headers.get("X-Replica-Id"):
        yield "there is no X-Replica-Id"


def refuses_compressed_bodies(client: Client) -> Iterator[str]:
    """A compressed body is a 415 that names the encoding."""
    body = gzip.compress(json.dumps({"sequence_data": HISTORY}).encode())
    answer = client.ask(body=body, **{"Content-Encoding": "gzip"})
    if answer.status_code != 415 or "gzip" not in answer.text:
        yield f"it is answered {answer.status_code}: {answer.text[:100]}"


def survives_odd_headers(client: Client) -> Iterator[str]:
    """Large headers, and an Upgrade that may lose the body, are answered as ever, or refused."""
    answer = client.ask(**{"X-Large": LARGE_HEADER})
    if answer.status_code not in (200, 400, 431):
        yield f"a header of {len(LARGE_HEADER)} characters is answered {answer.status_code}"
    answer = client.ask(**{"Connection": "Upgrade", "Upgrade": "h2c"})
    told = "h2c" in answer.text or UVICORNS_OWN in answer.text
    if answer.status_code != 200 and (answer.status_code != 400 or not told):
        yield f"Upgrade: h2c is answered {answer.status_code}: {answer.text[:100]}"


def refuses_other_methods(client: Client) -> Iterator[str]:
    """Forecasts are asked for by POST."""
    for method in "get", "put", "delete":
        answer = client.ask(method=method)
        if answer.status_code != 405:
            yield f"{method.upper()} is answered {answer.status_code}"


def checks_tokens(client: Client) -> Iterator[str]:
    """Without a valid token nobody gets a forecast from a service that keeps tenants apart."""
    for what, token in ("no token", None), ("an invalid token", "Bearer none"):
        answer = client.ask(**{TENANT_HEADER: token})
        if answer.status_code != 401 or "WWW-Authenticate" not in answer.headers:
            yield f"{what} is answered {answer.status_code}"


def documents_itself(client: Client) -> Iterator[str]:
    """The OpenAPI document has the route, and every status that it was seen to answer with."""
    answer = client.ask(method="get", path="/openapi.json")
    try:
        documented = answer.json()["paths"]["/"]["post"]["responses"]
    except (ValueError, KeyError):
        yield f"/openapi.json is answered {answer.status_code}, without the route POST /"
        return
    posts = [seen for seen in client.answers if seen.request.method == "POST"]
    missing = {str(seen.status_code) for seen in posts} - documented.keys() - {NO_SERVICES}
    if missing:
        yield f"it does not say what {', '.join(sorted(missing))} means"


def keeps_its_secrets(client: Client) -> Iterator[str]:
    """Nothing that a client sends is a 500, and no answer has a stack trace."""
    for answer in client.answers:
        if answer.status_code == 500 or "Traceback" in answer.text or '.py", line' in answer.text:
            request = answer.request
            yield f"{answer.status_code} for {request.method} {str(request.body)[:60]}"


CHECKS = (
    forecasts,
    repeats,
    extends_short_histories,
    takes_long_histories,
    takes_the_largest_values,
    takes_any_label,
    refuses_wrong_bodies,
    limits_bodies,
    refuses_a_missing_id,
    refuses_malformed_ids,
    knows_who_has_no_model,
    takes_hyphens,
    says_who_answers,
    refuses_compressed_bodies,
    survives_odd_headers,
    refuses_other_methods,
    checks_tokens,
    gives_up_on_slow_bodies,
    documents_itself,  # these two look at all answers before
    keeps_its_secrets,
)
NEED_A_TOKEN = (checks_tokens,)  # of a tenant: without one they are not tried
SLOW = (gives_up_on_slow_bodies,)  # to be at work beside the others


def check_service(url: str, customer_id: str) -> dict[str, list[str]]:
    """Return by check what is off; a check that finds nothing has an empty list.

    Without a first forecast nothing else is tried, and without TENANT_TOKEN none of NEED_A_TOKEN.

    Raises:
        requests.RequestException: if the URL is none, or nobody answers there.
    """
    client = Client(url, customer_id)
    if client.ask().status_code != 200:
        return {forecasts.__name__: _faults(forecasts, client)}
    checks = [check for check in CHECKS if client.has_token or check not in NEED_A_TOKEN]
    with ThreadPoolExecutor() as pool:
        beside = {check: pool.submit(_faults, check, client) for check in checks if check in SLOW}
        return {
            check.__name__: beside[check].result() if check in beside else _faults(check, client)
            for check in checks
        }


def _faults(check: Callable[[Client], Iterator[str]], client: Client) -> list[str]:
    try:
        return list(check(client))
    except requests.ConnectionError as error:
        return [f"the connection broke: {error}"]
    except (requests.Timeout, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"the answer cannot be read: {error!r}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", nargs="?", default=SERVICE, help=f"by default {SERVICE}")
    parser.add_argument("--customer", default="customer_123", help="who has a model")
    arguments = parser.parse_args()
    try:
        found = check_service(arguments.url, arguments.customer)
    except (requests.ConnectionError, requests.Timeout) as error:
        sys.exit(f"nobody answers at {arguments.url}: {error}")
    except requests.RequestException as error:
        sys.exit(f"{arguments.url} is no URL such as {SERVICE}: {error}")
    for name, faults in found.items():
        print(f"{'OFF' if faults else 'ok '} {_words(name)}", *faults, sep="\n      ")
    untried = () if os.environ.get("TENANT_TOKEN") else NEED_A_TOKEN
    for check in untried:
        print(f"--  {_words(check.__name__)}: not tried, TENANT_TOKEN is not set")
    kept, count = list(found.values()).count([]), len(CHECKS) - len(untried)
    print(f"{kept} of {count} as the contract says")
    sys.exit(kept < count)


def _words(name: str) -> str:
    return name.replace("_", " ")


if __name__ == "__main__":
    main()
