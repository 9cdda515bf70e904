"""The fast ingress: what it wants, where it listens, what it keeps."""

import asyncio
import subprocess

import numpy as np
import psutil
import pytest
from live_service import CONTENT, FAST, HOST, SERVICE, listeners, memory_by_process

from forecast_service.model import LAGS
from lab import local_ray
from lab.traffic import forecast_request, send

OTHER_PORTS = {8404, 9101}  # of HAProxy: statistics and metrics
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
    with pytest.raises(local_ray.UnsupportedError) as error:
        local_ray.require_support(platform, ray_version)
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize("ray_version", ["2.60.0", "2.61.0rc1", "3.0.0"])
def test_later_versions_of_ray_are_welcome(ray_version):
    local_ray.require_support("linux", ray_version)


def test_a_shell_can_read_the_switch():
    script = "set -a; . deploy/fast_ingress.env; set +a; env -0"
    done = subprocess.run(["bash", "-c", script], cwd=CONTENT, capture_output=True, check=True)
    read = dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line)
    assert local_ray.fast_ingress_settings().items() <= read.items()


@live
def test_haproxy_answers_on_loopback_and_not_rays_proxy(ask):
    assert ask("customer_123").ok
    pids = {connection.pid for connection in listeners()}
    assert {psutil.Process(pid).name() for pid in pids} == {"haproxy"}
    open_to_all = {
        connection.laddr.port
        for pid in pids
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == "LISTEN" and connection.laddr.ip != HOST
    }
    assert open_to_all <= OTHER_PORTS, "deploy/fast_ingress.env names no further ones"


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
    """Through Ray's own proxy they do, which keeps each id that it has seen."""
    ask_for_nobodys(["nobody"])
    before = sum(memory_by_process().values())
    ask_for_nobodys([f"nobody_{number}" for number in range(REQUESTS)])
    assert sum(memory_by_process().values()) - before < REQUESTS * PADDING_BYTES / 2
