"""What a request may cost the services: limits on headers, bodies and time."""

import contextlib
import socket
import threading
from collections import Counter

import grpc
import pytest
import requests
from live_service import FAST, HOST, PORT, SERVICE, LogWatch, listeners, memory_by_process
from ray import serve
from starlette.requests import Request

from forecast_service.contract import BODY_TIMEOUT_S, ForecastRequest
from forecast_service.proxy_guard import MAX_BODY_BYTES, MAX_HEADER_BYTES
from lab import cluster_metrics
from lab.chapter import NAMED
from lab.serving import launch, wait_until

HEAD = b"POST %s HTTP/1.1\r\nHost: test\r\nserve_multiplexed_model_id: customer_123\r\n"
CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"  # of a body in chunked encoding
MEGABYTE = 1024 * 1024
BODY = b'{"sequence_data": [1,2,3,4,5,6,7]}'
ENDLESS = 2000 * MEGABYTE
PATHS = "/", "/portfolio/"


def status_of(connection: socket.socket) -> int:
    """Return the status of the answer that a connection gets."""
    return int(connection.recv(65536).split()[1])


@contextlib.contextmanager
def peak_memory():
    """Yield a function that returns by how many bytes a process of Serve has grown at most."""

    def watch() -> None:
        while not done.wait(0.1):
            for pid, rss in memory_by_process().items():
                peak[pid] = max(peak.get(pid, 0), rss)

    before, peak, done = memory_by_process(), {}, threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: max((peak[pid] - before.get(pid, 0) for pid in peak), default=0)
    finally:
        done.set()
        watcher.join()


@pytest.mark.parametrize(
    ("size", "status"),
    [(MAX_HEADER_BYTES // 2, 200), (MAX_HEADER_BYTES + 1, 431), (MEGABYTE, 431)],
)
def test_headers_are_limited_by_the_guard_with_431_and_by_haproxy_with_400(ask, size, status):
    """Where there is neither, as on Anyscale, what stands in front of Ray has to limit them."""
    head = HEAD % b"/" + b"Content-Length: %d\r\n" % len(BODY)
    with socket.create_connection((HOST, PORT), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):  # it may have been refused by then
            connection.sendall(head + b"X-Large: " + b"x" * size + b"\r\n\r\n" + BODY)
        assert status_of(connection) == (400 if FAST and status == 431 else status)
    assert ask(NAMED[0]).ok


@pytest.mark.parametrize(
    "name",
    [
        b"serve_multiplexed_model_id",
        b"X-Request-ID",
        b"X-Session-ID",
        b"X-Request-Timeout-Seconds",
        b"X-Request-Disconnect-Disabled",
    ],
)
def test_a_header_that_is_no_text_is_no_500(ask, name):
    """By the guard, which answers 400; HAProxy passes them on, to a replica that can take them."""
    head = HEAD % b"/" + b"Content-Length: %d\r\n" % len(BODY)
    with socket.create_connection((HOST, PORT), timeout=30) as connection:
        connection.sendall(head + name + b": \xff\xfe\r\n\r\n" + BODY)
        assert status_of(connection) in ((200, 400) if FAST else (400,))
    assert ask(NAMED[0]).ok


@pytest.mark.parametrize("path", [*PATHS, "/small/"])
def test_a_body_over_the_limit_is_a_413_that_says_so(store, endpoints, path):
    headers = {"serve_multiplexed_model_id": NAMED[0]}
    limit = MAX_BODY_BYTES if path == "/portfolio/" else ForecastRequest.max_bytes
    for size, limits in (limit + 1, {limit}), (10 * MEGABYTE, {limit, MAX_BODY_BYTES}):
        answer = requests.post(SERVICE + path, headers=headers, data=b" " * size, timeout=30)
        assert answer.status_code == 413
        said = answer.json()["detail"]
        assert any(f"{limit} bytes" in said for limit in limits), said


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Uploads:
    """Somebody else's application, on the same cluster."""

    async def __call__(self, request: Request) -> str:
        return str(len(await request.body()))


def test_another_application_that_wants_more_than_the_guard_lets_in_is_told_so(live_store):
    """Behind HAProxy too: Ray then puts the guard around each replica's own HTTP server."""
    launch(Uploads.bind(), "uploads", "/uploads")
    try:
        answer = requests.post(f"{SERVICE}/uploads", data=b" " * 1000, timeout=30)
        assert (answer.status_code, answer.text) == (200, "1000")
        answer = requests.post(f"{SERVICE}/uploads", data=b" " * (2 * MEGABYTE), timeout=30)
        assert answer.status_code == 413
        assert f"{MAX_BODY_BYTES} bytes" in answer.json()["detail"]
    finally:
        serve.delete("uploads")


@pytest.mark.parametrize("path", [*PATHS, "/small/"])
def test_a_client_that_leaves_in_mid_body_leaves_no_trace_but_a_count(
    session_dir, ask, endpoints, path
):
    log = LogWatch(session_dir)

    def counted() -> Counter:
        """Return the production service's requests by outcome, as far as they are reported."""
        outcomes = Counter()
        for name, labels, value, *_ in cluster_metrics.read_metrics(session_dir):
            if name == "ray_forecast_requests_total" and labels["application"] == "default":
                outcomes[labels["outcome"]] += value
        return outcomes

    def left() -> float:
        return sum(counted()[outcome] for outcome in ("ClientLeftError", "CancelledError"))

    if path == "/":  # the other two count nothing of their own
        for _ in range(2):  # the first report to come may be of a time before an earlier test's end
            reported = counted().total()
            assert ask(NAMED[0]).ok
            wait_until(lambda: counted().total() > reported, "requests are reported")  # noqa: B023
        before = left()
    assert ask(NAMED[0]).ok
    with socket.create_connection((HOST, PORT), timeout=30) as connection:
        connection.sendall(HEAD % path.encode() + b"Content-Length: 1000\r\n\r\n{")
        with pytest.raises(TimeoutError):  # no answer: the service waits for the rest
            connection.settimeout(1)
            connection.recv(1)
    if path == "/":
        wait_until(lambda: left() == before + 1, "the client is counted")
    assert ask(NAMED[0]).ok
    logs = [line for pattern in ("replica_*.log", "proxy_*.log") for line in [log.new(pattern)]]
    assert not any("Traceback" in text or " 500 " in text for text in logs), logs


def test_a_body_without_an_end_does_not_fill_the_memory(ask):
    ask(NAMED[0])
    with (
        peak_memory() as growth,
        socket.create_connection((HOST, PORT), timeout=30) as connection,
    ):
        connection.sendall(HEAD % b"/" + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(ENDLESS // 0x10000):
                connection.sendall(CHUNK)
        with contextlib.suppress(ConnectionError):
            assert status_of(connection) == 413
        assert growth() < ENDLESS / 100
    assert ask(NAMED[0]).ok


def test_a_body_that_does_not_arrive_is_a_408_and_keeps_nobody_waiting(ask, endpoints):
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection((HOST, PORT), timeout=60)) for _ in PATHS
        ]
        for connection, path in zip(slow, PATHS, strict=True):
            connection.sendall(HEAD % path.encode() + b"Content-Length: 1000\r\n\r\n{")
        assert ask(NAMED[0]).ok
        for connection in slow:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):  # no answer yet: nothing was shown otherwise
                connection.recv(1)
            connection.settimeout(3 * BODY_TIMEOUT_S)
        assert [status_of(connection) for connection in slow] == [408, 408]
        if not FAST:  # HAProxy keeps its clients' connections as it likes
            while slow[0].recv(65536):  # times out if the connection stays open
                pass


def test_http_listens_on_loopback_only(live_store):
    assert {connection.laddr.ip for connection in listeners()} == {HOST}


def test_what_a_client_or_an_artifact_did_puts_no_stack_trace_into_answers_or_logs(
    session_dir, ask, ask_grpc, store, histories
):
    """Over HTTP and gRPC, and through answer() of a handle: see test_handles.py."""
    broken, unknown, malformed, good = "customer_0053", "customer_000", "../etc", NAMED[0]
    store.artifacts[broken] = b"broken"
    log = LogWatch(session_dir)
    histories = dict.fromkeys((broken, unknown, malformed), histories[good]) | {good: [1]}
    said = [ask(name, history).text for name, history in histories.items()]
    body = {"histories": histories}
    said.append(requests.post(f"{SERVICE}/portfolio", json=body, timeout=30).text)
    for name, history in histories.items():
        with pytest.raises(grpc.RpcError) as raised:
            ask_grpc(name, history)
        said.append(raised.value.details())
    logs = "replica_*.log", "proxy_*.log"
    wait_until(lambda: f"Could not load {broken}" in log.new(logs[0]), "the failure is logged")
    assert not [line for name in logs for line in log.new(name).splitlines() if "Traceback" in line]
    assert not [text for text in said if "Traceback" in text or ".py" in text]
