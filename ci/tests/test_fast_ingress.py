"""The fast ingress: what it wants, where it listens, what it keeps. INGRESS=fast for live tests."""

import asyncio
import json
import subprocess
import sys

import numpy as np
import psutil
import pytest
import requests
from conftest import CONTENT, FAST, SERVICE

import fast_ingress
from forecasting import LAGS
from traffic import forecast_request, send

HTTP_PORT, STATISTICS_PORT, METRICS_PORT = 8000, 8404, 9101
REQUESTS, PADDING_BYTES = 1000, 15_000
live = pytest.mark.skipif(not FAST, reason="wants INGRESS=fast")


@pytest.mark.parametrize(
    ("platform", "ray_version", "names"),
    [
        ("darwin", "2.60.0", ["Linux", "darwin", "default ingress"]),
        ("win32", "2.61.1", ["Linux", "win32"]),
        ("linux", "2.59.9", ["Ray 2.60 or later", "2.59.9"]),
        ("linux", "1.99.0", ["Ray 2.60 or later"]),
    ],
)
def test_where_it_cannot_run_it_says_what_it_wants(platform, ray_version, names):
    with pytest.raises(fast_ingress.UnsupportedError) as error:
        fast_ingress.require_support(platform, ray_version)
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize("ray_version", ["2.60.0", "2.61.0rc1", "3.0.0"])
def test_later_versions_of_ray_are_welcome(ray_version):
    fast_ingress.require_support("linux", ray_version)


def test_a_shell_can_evaluate_the_switch():
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    script = f'eval "$("{sys.executable}" fast_ingress.py)" && "{sys.executable}" -c \'{show}\''
    done = subprocess.run(["bash", "-c", script], cwd=CONTENT, capture_output=True, check=True)
    assert fast_ingress.SETTINGS.items() <= json.loads(done.stdout).items()


def test_switching_off_undoes_switching_on(monkeypatch):
    for name in fast_ingress.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    before = dict(fast_ingress.os.environ)
    fast_ingress.enable()
    assert fast_ingress.os.environ != before
    fast_ingress.disable()
    assert fast_ingress.os.environ == before


@live
def test_the_service_listens_on_loopback_only(ask):
    assert ask("customer_123").ok
    listening = {
        connection.laddr
        for process in fast_ingress.haproxy_processes()
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    }
    assert {address.ip for address in listening if address.port == HTTP_PORT} == {"127.0.0.1"}
    # Ray has no setting for these two; fast_ingress.py says so.
    other_ports = {address.port for address in listening if address.ip != "127.0.0.1"}
    assert other_ports <= {STATISTICS_PORT, METRICS_PORT}


@live
def test_requests_go_through_haproxy_and_not_through_rays_proxy(ask):
    assert len(fast_ingress.haproxy_processes()) >= 1
    (pid,) = {process.pid for process in fast_ingress.haproxy_processes()}
    ports = {c.laddr.port for c in fast_ingress.psutil.Process(pid).net_connections("inet")}
    assert HTTP_PORT in ports


@live
def test_a_header_with_hyphens_is_understood(ask, store, histories):
    answer = requests.post(
        SERVICE,
        headers={"serve-multiplexed-model-id": "customer_456"},
        json={"sequence_data": histories["customer_123"]},
        timeout=30,
    )
    assert answer.content == ask("customer_456").content


def serving_bytes() -> int:
    """Return the memory of all processes that requests go through."""
    kinds = "ServeReplica", "ProxyActor", "haproxy"
    processes = psutil.process_iter(["cmdline", "memory_info"])
    return sum(
        process.info["memory_info"].rss
        for process in processes
        if any(kind in part for part in process.info["cmdline"] or () for kind in kinds)
    )


def ask_for_nobodys(ids: list[str]) -> None:
    """Send REQUESTS requests with large headers for customers who do not exist, in turn."""

    def padded(customer_id: str, history: list[float]) -> dict:
        request = forecast_request(customer_id, history)
        return request | {"headers": request["headers"] | {"X-Padding": "x" * PADDING_BYTES}}

    turns, days = np.arange(REQUESTS) % len(ids), np.ones((len(ids), LAGS))
    sent = send(SERVICE, ids, days, turns, concurrency=8, progress=False, request=padded)
    assert set(asyncio.run(sent).status) == {"404"}


@live
def test_made_up_ids_take_no_memory(store):
    """Through Ray's own proxy they do: the notebook shows it."""
    ask_for_nobodys(["nobody"])
    before = serving_bytes()
    ask_for_nobodys([f"nobody_{number}" for number in range(REQUESTS)])
    assert serving_bytes() - before < REQUESTS * PADDING_BYTES / 2
