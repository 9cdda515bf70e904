"""A Ray of this process's own, started with what Ray reads at its start alone.

Whether or not another Ray runs on this machine, and whatever RAY_ADDRESS says.
"""

import contextlib
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import psutil
import ray
from dotenv import dotenv_values
from ray import serve

from lab.this_machine import HOST, PORT, prepare, require_free_port

FAST_INGRESS_FILE = Path(__file__).parents[1] / "deploy" / "fast_ingress.env"
PROXY_GUARD = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "forecast_service.proxy_guard:middlewares"
}
OLDEST_RAY = 2, 60  # that passes the model id on behind HAProxy
COMMAND_LINE = "RAY_ADDRESS", "RAY_DASHBOARD_ADDRESS"  # with which `serve` and `ray` find this Ray


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


def fast_ingress_settings() -> dict[str, str]:
    """Return the variables of deploy/fast_ingress.env. Raises UnsupportedError."""
    require_support()
    return dotenv_values(FAST_INGRESS_FILE)


def start(*, fast_ingress: bool = False, metrics_every_s: float | None = None) -> Path:
    """Start Ray, in place of one that this process has started before; return its session folder.

    Its proxy is guarded. With `fast_ingress`, HAProxy takes the proxy's place. `metrics_every_s`
    is how often Ray's processes report, by default every 10 s.

    Raises:
        UnsupportedError: if the fast ingress cannot run here.
        RuntimeError: if the port of its proxy is taken. It names who has it.
    """
    settings = dict(PROXY_GUARD)
    if fast_ingress:
        settings |= fast_ingress_settings()
    if metrics_every_s:
        settings["RAY_metrics_report_interval_ms"] = str(round(metrics_every_s * 1000))
    stop()
    prepare()
    require_free_port()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # in this process, not in replicas
    os.environ.pop("RAY_AUTH_MODE", None)  # Ray's default, whatever this machine's other Ray has
    os.environ |= settings
    try:
        context = ray.init("local", logging_level="error", log_to_driver=False)
    finally:
        for name in settings:  # its processes have them; a next Ray may want others
            del os.environ[name]
    os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
    os.environ["RAY_DASHBOARD_ADDRESS"] = f"http://{context.dashboard_url}"
    if fast_ingress:  # says which interface: without it, HAProxy would listen on all
        command = ["serve", "start", "--http-host", HOST, "--http-port", str(PORT)]
        subprocess.run(command, capture_output=True, check=True, env=os.environ | settings)
    return Path(context.address_info["session_dir"])


def stop() -> None:
    """Stop what start() has started, Ray Serve first, and see that no HAProxy of it is left."""
    if not ray.is_initialized():
        return
    nodes = [node["NodeID"] for node in ray.nodes()]
    with contextlib.redirect_stdout(io.StringIO()):  # Ray reports a handle's open call as failed
        serve.shutdown()
        ray.shutdown()
    for name in COMMAND_LINE:
        os.environ.pop(name, None)
    for process in haproxy_processes():
        if any(node in argument for node in nodes for argument in process.info["cmdline"]):
            process.kill()


def haproxy_processes() -> list[psutil.Process]:
    """Return the HAProxy processes on this machine that a Ray Serve started, running or left."""
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "haproxy"
        and any("haproxy-serve" in argument for argument in process.info["cmdline"] or ())
    ]
