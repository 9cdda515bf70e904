"""Try the whole HTTP contract against a running service, and exit with 1 if something is off.

    python -m lab.check_service http://127.0.0.1:8000 --customer customer_123

It sends about a hundred small requests for one customer who has a model, for ids that cannot have
one, and bodies that cannot be forecast from; it changes nothing. A service that keeps tenants apart
wants a token for that customer, and Anyscale one of its own: in the environment, as TENANT_TOKEN
and ANYSCALE_SERVICE_TOKEN.
"""

import argparse
import gzip
import json
import math
import os
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import requests

from forecast_service.contract import MAX_HISTORY
from forecast_service.customer_ids import MODEL_ID_HEADER
from forecast_service.model import HORIZON, LAGS, SEASON
from forecast_service.tokens import TENANT_HEADER
from lab.this_machine import SERVICE, ask_directly

TIMEOUT_S = 30  # for an answer
AT_ONCE = 20  # requests
UNKNOWN_IDS = 20
LONGEST_REFUSAL_BYTES = 5000  # one that is longer repeats what was sent
HISTORY = [100.0 + 10 * (day % SEASON) + day for day in range(LAGS)]
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
WRONG_BODIES = {  # and where the answer has to say that it is wrong
    "too few values": (b'{"sequence_data": [1, 2, 3]}', ["body", "sequence_data"]),
    "too many values": (
        json.dumps({"sequence_data": [1] * (MAX_HISTORY + 1)}).encode(),
        ["body", "sequence_data"],
    ),
    "a text for a number": (
        b'{"sequence_data": [1, 2, "3", 4, 5, 6, 7]}',
        ["body", "sequence_data", 2],
    ),
    "NaN": (b'{"sequence_data": [1, 2, NaN, 4, 5, 6, 7]}', ["body", "sequence_data", 2]),
    "an infinite value": (
        b'{"sequence_data": [1, 2, 1e999, 4, 5, 6, 7]}',
        ["body", "sequence_data", 2],
    ),
    "another field": (b'{"historical_values": [1, 2, 3, 4, 5, 6, 7]}', ["body", "sequence_data"]),
    "an unknown field": (b'{"sequence_data": [1, 2, 3, 4, 5, 6, 7], "x": 1}', ["body", "x"]),
    "no JSON": (b"sequence_data=1", ["body"]),
    "no body": (b"", ["body"]),
    "brackets without end": (b"[" * 100_000, ["body"]),
}


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
        body: bytes | None = None,
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
    if short.status_code != 200 or short.json().get("padded") is not True:
        yield f"{SEASON} values are answered {short.status_code}, without padded: true"
    elif weeks.ok and short.json()["forecast"] != weeks.json()["forecast"]:
        yield "a short history is not extended by its own first week"


def takes_long_histories(client: Client) -> Iterator[str]:
    """Of a long history the last values count."""
    answer, expected = client.ask([1.0] * (MAX_HISTORY - LAGS) + HISTORY), client.ask()
    if answer.status_code != 200 or answer.content != expected.content:
        yield f"{MAX_HISTORY} values are not answered as their last {LAGS} ({answer.status_code})"


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
    for number in range(UNKNOWN_IDS):
        customer_id = f"nobody_{number}_{uuid.uuid4().hex}"
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


def refuses_other_methods(client: Client) -> Iterator[str]:
    """Forecasts are asked for by POST."""
    for method in "get", "put", "delete":
        answer = client.ask(method=method)
        if answer.status_code != 405:
            yield f"{method.upper()} is answered {answer.status_code}"


def checks_tokens(client: Client) -> Iterator[str]:
    """Without a valid token nobody gets a forecast from a service that keeps tenants apart."""
    if not client.has_token:
        return
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
    missing = {str(seen.status_code) for seen in posts} - documented.keys()
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
    refuses_wrong_bodies,
    refuses_a_missing_id,
    refuses_malformed_ids,
    knows_who_has_no_model,
    takes_hyphens,
    says_who_answers,
    refuses_compressed_bodies,
    refuses_other_methods,
    checks_tokens,
    documents_itself,  # these two look at all answers before
    keeps_its_secrets,
)


def check_service(url: str, customer_id: str) -> dict[str, list[str]]:
    """Return by check what is off; a check that finds nothing has an empty list.

    Without a first forecast nothing else is tried.

    Raises:
        requests.ConnectionError: if nobody answers at the URL.
    """
    client = Client(url, customer_id)
    found = {}
    for check in CHECKS:
        try:
            found[check.__name__] = list(check(client))
        except requests.ConnectionError as error:
            if not client.answers:
                raise
            found[check.__name__] = [f"the connection broke: {error}"]
        except (requests.Timeout, ValueError, KeyError, TypeError, AttributeError) as error:
            found[check.__name__] = [f"the answer cannot be read: {error!r}"]
        if check is forecasts and client.answers and client.answers[0].status_code != 200:
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", nargs="?", default=SERVICE, help=f"by default {SERVICE}")
    parser.add_argument("--customer", default="customer_123", help="who has a model")
    arguments = parser.parse_args()
    try:
        found = check_service(arguments.url, arguments.customer)
    except requests.ConnectionError as error:
        sys.exit(f"nobody answers at {arguments.url}: {error}")
    except requests.exceptions.InvalidURL as error:
        sys.exit(f"{arguments.url} is no URL such as {SERVICE}: {error}")
    for name, faults in found.items():
        print(f"{'OFF' if faults else 'ok '} {name.replace('_', ' ')}", *faults, sep="\n      ")
    off = sum(map(bool, found.values()))
    print(f"{len(found) - off} of {len(CHECKS)} as the contract says")
    sys.exit(len(found) - off < len(CHECKS))


if __name__ == "__main__":
    main()
