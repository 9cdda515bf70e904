"""Whatever is sent to the live services, the answer is one that their OpenAPI documents name.

FUZZ_EXAMPLES says how much is sent: by default little, the long tier goes deeper. The store and its
models are good here, so no 5xx is right.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest
import requests
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from live_service import HOST, ON_BOTH, PORT, SERVICE, right_answer, serving
from schemathesis import Case, GenerationMode

from forecast_service.customer_ids import MODEL_ID_HEADER
from forecast_service.proxy_guard import DECODED_HEADERS
from fuzzing import SEED, json_values
from fuzzing import fuzz as fuzz_with
from lab.chapter import NAMED

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 25))
fuzz = partial(fuzz_with, examples=EXAMPLES)
PATHS = "/", "/small/", "/portfolio/"
BODY = b'{"sequence_data": [1,2,3,4,5,6,7]}'
GOOD = b"POST / HTTP/1.1\r\nHost: test\r\nserve_multiplexed_model_id: customer_123\r\n"
GOOD += b"Connection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(BODY)
TIMEOUT_S = 30
PATIENCE_S = 1  # with a server that may be waiting for the rest of what is no request yet


@pytest.fixture(autouse=True)
def unharmed(ask, endpoints, fleet) -> Iterator[None]:
    """Require that the same processes are there afterwards, and that their answers are right."""
    before = serving()
    assert before, "no process of Serve was found"
    yield
    for name in NAMED:
        answer = ask(name)
        assert answer.content == right_answer(fleet[name], name, answer.request.body)
    assert serving() == before, "a process has died"


@pytest.mark.parametrize("path", PATHS)
def test_the_document_holds_for_all_that_schemathesis_makes_of_it(path, tmp_path):
    command = ["schemathesis", "run", f"{SERVICE}{path}openapi.json", "--no-color"]
    command += ["--max-examples", str(EXAMPLES), "--seed", str(SEED), "--generation-database=none"]
    command += ["--phases", "examples,coverage,fuzzing", "--continue-on-failure"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    sent = int(re.search(r"(\d+) generated", done.stdout)[1])
    assert sent > EXAMPLES / 2, "next to nothing was tried"


def cases(url: str, **given_parts) -> st.SearchStrategy[Case]:
    """Return requests that are as a document says, and ones that depart from it."""
    operation = schemathesis.openapi.from_url(f"{url}/openapi.json")["/"]["POST"]
    return st.one_of(operation.as_strategy(mode, **given_parts) for mode in GenerationMode)


@ON_BOTH
def test_fuzzed_bodies_for_customers_get_the_right_forecast_or_are_refused(url, fleet):
    statuses = Counter()
    by_customer = {name: cases(url, headers={MODEL_ID_HEADER: name}) for name in NAMED}

    @fuzz
    @given(st.sampled_from(NAMED).flatmap(by_customer.get))
    def check(case: Case) -> None:
        answer = case.call_and_validate(timeout=TIMEOUT_S)
        statuses[answer.status_code] += 1
        if answer.status_code == 200:
            name, sent = answer.json()["customer_id"], answer.request
            assert name == sent.headers[MODEL_ID_HEADER]
            assert answer.content == right_answer(fleet[name], name, sent.body)

    check()
    assert set(statuses) == {200, 422}, statuses


def test_fuzzed_portfolios_have_an_answer_for_each_part():
    statuses = Counter()
    days = st.lists(st.floats(-1e12, 1e12) | st.integers(0, 1000), min_size=7, max_size=40)
    ids = st.sampled_from(NAMED) | st.text(max_size=70)
    histories = st.dictionaries(ids, days | json_values, min_size=1, max_size=8)
    document = f"{SERVICE}/portfolio/openapi.json"
    operation = schemathesis.openapi.from_url(document)["/"]["POST"]

    @fuzz
    @given(histories)
    def check(histories: dict) -> None:
        body = json.dumps({"histories": histories})
        answer = requests.post(f"{SERVICE}/portfolio/", data=body, timeout=TIMEOUT_S)
        operation.validate_response(answer)
        assert answer.status_code == 200
        parts = answer.json()["parts"]
        assert parts.keys() == histories.keys()
        statuses.update(part.get("status", 200) for part in parts.values())

    check()
    assert {200, 404, 422} <= set(statuses) <= {200, 400, 404, 422}, statuses


def is_whole(data: bytes) -> bool:
    """Return whether a server has no reason to wait for more of a request: it has to answer."""
    head, end, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"\r\nContent-Length: (\d+)\r\n", head + b"\r\n")
    return bool(end) and (length is None or int(length[1]) <= len(body))


def send(data: bytes) -> int | None:
    """Send bytes over a connection of their own. Return the first answer's status, if any."""
    with socket.create_connection((HOST, PORT), timeout=TIMEOUT_S) as connection:
        with contextlib.suppress(ConnectionError):  # refused before all was sent
            connection.sendall(data)
        connection.settimeout(TIMEOUT_S if is_whole(data) else PATIENCE_S)
        try:
            start = connection.recv(65536)
        except (TimeoutError, ConnectionError):
            return None
    return int(start.split()[1]) if start.startswith(b"HTTP/") else None


values = st.binary(max_size=40).map(lambda value: value.translate(None, b"\r\n\0"))
values |= st.text(max_size=20).map(lambda text: text.encode().translate(None, b"\r\n\0"))
values |= st.sampled_from([b"0", b"-1", b"1e-9", b"1e300", b"inf", b"nan", b"?1", b"1" * 8000])


@fuzz
@given(st.sampled_from([*DECODED_HEADERS, b"traceparent", b"accept", b"host", b"cookie"]), values)
def test_any_value_of_a_header_that_the_proxy_reads_is_no_5xx(name, value):
    hyphened = name.replace(b"_", b"-")
    status = send(GOOD + hyphened + b": " + value + b"\r\n\r\n" + BODY)
    assert status in {200, 400, 404, 408}, status


@st.composite
def damaged_requests(draw) -> bytes:
    """A good request in which a piece is replaced by any bytes."""
    request = GOOD + b"\r\n" + BODY
    start, end = sorted(draw(st.integers(0, len(request))) for _ in range(2))
    end = min(end, start + 30)
    tokens = st.sampled_from([b"\r\n", b"\0", b": ", b" ", b"HTTP/9.9", b"chunked", b"-1", b"\xff"])
    return request[:start] + draw(tokens | st.binary(max_size=20)) + request[end:]


@fuzz
@given(damaged_requests())
def test_what_is_hardly_http_is_refused_or_waited_for(data):
    status = send(data)
    assert status in {None, 200, 400, 404, 405, 408, 413, 415, 422, 431}, status
