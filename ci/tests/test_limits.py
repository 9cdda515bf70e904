"""What a request may cost: limits on headers, bodies and time. And what nobody gets to see."""

import contextlib
import socket
import threading
import time
from pathlib import Path

import grpc
import psutil
import pytest
import ray
import requests
from conftest import FAST, GRPC_PORT, NAMED, SERVICE

from http_contract import BODY_TIMEOUT_S
from proxy_guard import MAX_BODY_BYTES, MAX_HEADER_BYTES

HOST, PORT = "127.0.0.1", 8000
HEAD = b"POST %s HTTP/1.1\r\nHost: test\r\nserve_multiplexed_model_id: customer_123\r\n"
CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"  # of a body in chunked encoding
MEGABYTE = 1024 * 1024
ENDLESS = 2000 * MEGABYTE
PATHS = "/", "/portfolio/"


def status_of(connection: socket.socket) -> int:
    """Return the status of the answer that a connection gets."""
    return int(connection.recv(65536).split()[1])


@contextlib.contextmanager
def peak_memory():
    """Yield a function that returns by how many bytes the processes of Serve have grown at most."""

    def used() -> dict[int, int]:
        return {
            process.pid: process.info["memory_info"].rss
            for process in psutil.process_iter(["cmdline", "memory_info"])
            if any("ServeReplica" in a or "ProxyActor" in a for a in process.info["cmdline"] or ())
        }

    def watch() -> None:
        while not done.wait(0.1):
            for pid, rss in used().items():
                peak[pid] = max(peak.get(pid, 0), rss)

    before, peak, done = used(), {}, threading.Event()
    assert before, "no process of Serve was found"
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: max(peak[pid] - before.get(pid, 0) for pid in peak)
    finally:
        done.set()
        watcher.join()


@pytest.mark.parametrize(
    ("size", "statuses"),
    [
        (MAX_HEADER_BYTES // 2, {200}),
        (MAX_HEADER_BYTES + 1, {400, 431}),  # 400 is HAProxy's
        (MEGABYTE, {400, 431}),
    ],
)
def test_headers_are_limited(ask, size, statuses):
    body = b'{"sequence_data": [1,2,3,4,5,6,7]}'
    head = HEAD % b"/" + b"Content-Length: %d\r\n" % len(body)
    with socket.create_connection((HOST, PORT), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):  # it may have been refused by then
            connection.sendall(head + b"X-Large: " + b"x" * size + b"\r\n\r\n" + body)
        assert status_of(connection) in statuses
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
    body = b'{"sequence_data": [1,2,3,4,5,6,7]}'
    head = HEAD % b"/" + b"Content-Length: %d\r\n" % len(body)
    with socket.create_connection((HOST, PORT), timeout=30) as connection:
        connection.sendall(head + name + b": \xff\xfe\r\n\r\n" + body)
        assert status_of(connection) in (200, 400)
    assert ask(NAMED[0]).ok


def test_a_portfolio_over_the_limit_is_a_413_that_says_so(store):
    answer = requests.post(f"{SERVICE}/portfolio", data=b" " * (10 * MEGABYTE), timeout=30)
    assert answer.status_code == 413
    assert f"{MAX_BODY_BYTES} bytes" in answer.json()["detail"]


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


def test_a_body_that_does_not_arrive_is_a_408_and_keeps_nobody_waiting(ask):
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection((HOST, PORT), timeout=60)) for _ in PATHS
        ]
        for connection, path in zip(slow, PATHS, strict=True):
            connection.sendall(HEAD % path.encode() + b"Content-Length: 1000\r\n\r\n{")
        start = time.monotonic()
        assert ask(NAMED[0]).ok
        for connection in slow:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):  # no answer yet: nothing was shown otherwise
                connection.recv(1)
            connection.settimeout(60)
        assert [status_of(connection) for connection in slow] == [408, 408]
        assert time.monotonic() - start < 3 * BODY_TIMEOUT_S
        if not FAST:  # HAProxy keeps its clients' connections as it likes
            while slow[0].recv(65536):  # times out if the connection stays open
                pass


def test_a_grpc_message_is_limited(store, grpc_code):
    import forecast_pb2
    import forecast_pb2_grpc

    unlimited = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"{HOST}:{GRPC_PORT}", options=unlimited) as channel:
        stub = forecast_pb2_grpc.ForecastServiceStub(channel)
        metadata = ("application", "grpc"), ("multiplexed_model_id", NAMED[0])
        for values, code in (
            (10_001, grpc.StatusCode.INVALID_ARGUMENT),
            (1_000_000, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            request = forecast_pb2.ForecastRequest(sequence_data=[1.0] * values)
            with pytest.raises(grpc.RpcError) as raised:
                stub.Forecast(request, metadata=metadata, timeout=30)
            assert raised.value.code() == code


def test_http_listens_on_loopback_only(live_store):
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("inet")
        if connection.status == "LISTEN" and connection.laddr.port == PORT
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.skipif(FAST, reason="Ray writes logs in large batches there, later")
def test_what_a_client_or_an_artifact_did_puts_no_stack_trace_into_answers_or_logs(
    ask, store, fleet, histories, grpc_code
):
    import forecast_pb2
    import forecast_pb2_grpc

    broken, unknown, malformed, good = "customer_0053", "customer_000", "../etc", NAMED[0]
    store.artifacts[broken] = b"broken"
    logs = Path(ray.init(ignore_reinit_error=True).address_info["session_dir"]) / "logs" / "serve"
    before = {path: path.stat().st_size for path in logs.rglob("*.log")}

    histories = dict.fromkeys((broken, unknown, malformed), histories[good]) | {good: [1]}
    said = [ask(name, history).text for name, history in histories.items()]
    said.append(
        requests.post(f"{SERVICE}/portfolio", json={"histories": histories}, timeout=30).text
    )
    with grpc.insecure_channel(f"{HOST}:{GRPC_PORT}") as channel:
        stub = forecast_pb2_grpc.ForecastServiceStub(channel)
        for name, history in histories.items():
            metadata = ("application", "grpc"), ("multiplexed_model_id", name)
            request = forecast_pb2.ForecastRequest(sequence_data=history)
            with pytest.raises(grpc.RpcError) as raised:
                stub.Forecast(request, metadata=metadata, timeout=30)
            said.append(raised.value.details())
    new = "".join(path.read_bytes()[before.get(path, 0) :].decode() for path in logs.rglob("*.log"))
    assert f"Could not load {broken}" in new, "the logs are not those of these requests"
    assert "Traceback" not in new
    assert not [text for text in said if "Traceback" in text or ".py" in text]
