"""Turn on Ray Serve's fast ingress: HAProxy, which sends each customer to a replica of its own.

    eval "$(python fast_ingress.py)"          # before Ray starts, which reads the settings then
    ray start --head
    serve start --http-host 127.0.0.1         # without it, HAProxy listens on all interfaces
    serve run serve_forecast_multiplex:app

Whatever the host, Ray lets HAProxy's own pages listen on all interfaces, on the ports 8404
(statistics) and 9101 (metrics): leave them to a firewall.
"""

import os
import shlex
import sys

import psutil
import ray

OLDEST_RAY = 2, 60  # earlier versions lose the model id on this way
SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Not by load, as is the default, but by a hash of the customer. A consistent one: the plain one
    # sends most customers elsewhere whenever a replica is added or lost. The weight gives each
    # replica many places on the hash's ring, and so an even share. Ray copies this value into
    # HAProxy's configuration, where each of these is a line.
    "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "\n    ".join(
        ("hdr(serve_multiplexed_model_id)", "hash-type consistent", "default-server weight 100")
    ),
    # Ray would parse a log line of HAProxy's for every request. The service counts its own.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # How long a replica that is to stop goes on answering, instead of 30 s: HAProxy hears at once.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
}


class UnsupportedError(RuntimeError):
    """The fast ingress cannot run here."""


def require_support(platform: str = sys.platform, ray_version: str = ray.__version__) -> None:
    """Raise UnsupportedError, with what to do, if the fast ingress cannot run here."""
    version = tuple(int(part) for part in ray_version.split(".")[:2])
    if version < OLDEST_RAY:
        oldest = ".".join(map(str, OLDEST_RAY))
        raise UnsupportedError(f"the fast ingress wants Ray {oldest} or later, not {ray_version}")
    if not platform.startswith("linux"):
        raise UnsupportedError(
            f"the fast ingress wants Linux, not {platform}: use the default ingress, "
            "which serves the same answers"
        )


def enable() -> None:
    """Set this process's environment, for the Ray that it starts next.

    Raises:
        UnsupportedError: if the fast ingress cannot run here.
    """
    require_support()
    os.environ |= SETTINGS


def disable() -> None:
    """Undo enable()."""
    for name in SETTINGS:
        os.environ.pop(name, None)


def haproxy_processes() -> list[psutil.Process]:
    """Return the HAProxy processes on this machine that a Ray Serve started, running or left."""
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "haproxy"
        and any("haproxy-serve" in argument for argument in process.info["cmdline"] or ())
    ]


if __name__ == "__main__":
    try:
        require_support()
    except UnsupportedError as error:
        sys.exit(str(error))
    for name, value in SETTINGS.items():
        print(f"export {name}={shlex.quote(value)}")
