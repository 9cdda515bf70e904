"""Run a service and watch it: launch it, is it up, what did it log?"""

import contextlib
import io
import logging
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import ray
import requests
import yaml
from ray import serve
from ray.util.state import get_log, list_logs

from lab.this_machine import HOST, PORT, SERVICE, ask_directly, listeners, require_free_port

LAUNCH_TIMEOUT_S = 120
HAPROXY = "haproxy"  # of which several share a port while one takes over from another
Result = TypeVar("Result")


def start_serve(**options: object) -> None:
    """Start Ray Serve at SERVICE on the Ray that this process has joined, unless it runs there.

    `options` are further ones of serve.start().

    Raises:
        RuntimeError: if another program has the port, another Ray Serve included. It names who.
        TimeoutError: if Serve's proxy is not up in time.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # in this process, not in replicas
    if serve.status().proxies:
        require_own_port()
        return
    require_free_port()
    http_options = {"host": HOST, "port": PORT}
    serve.start(proxy_location="EveryNode", http_options=http_options, **options)
    wait_until(lambda: "HEALTHY" in serve.status().proxies.values(), "a healthy proxy", 60)


def stop() -> None:
    """Stop Ray Serve, unless an application runs, and Ray, if this process has started it.

    Ray reports in red that calls to Serve's controller fail, since that is gone: left out here.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        if not serve.status().applications:
            serve.shutdown()
        ray.shutdown()


def require_own_port() -> None:
    """Raise RuntimeError unless this cluster's Ray Serve answers at SERVICE, and nobody else."""
    found, proxies = listeners(), serve.status().proxies
    here = [
        node
        for node in ray.nodes()
        if node["NodeID"] in proxies and node["NodeManagerHostname"] == socket.gethostname()
    ]
    programs = {HAPROXY if HAPROXY in program else program for program in found}
    if len(programs) > max(len(here), 1):  # Linux deals requests out among them
        raise RuntimeError(
            f"{' and '.join(found)} share port {PORT}, and would answer by turns: stop all but "
            "this cluster's Ray Serve"
        )
    try:
        wait_until(lambda: routed() <= set(serve.status().applications), timeout_s=10)
    except (requests.RequestException, TimeoutError):
        raise RuntimeError(
            f"at {SERVICE} answers {' and '.join(found) or 'nobody'}, not this cluster's Ray "
            "Serve: set SERVICE_URL to where that answers, before you start Jupyter"
        ) from None


def routed() -> set[str]:
    """Return the applications to which requests at SERVICE go. Raises requests.RequestException."""
    answer = ask_directly("get", f"{SERVICE}/-/routes", timeout=10)
    if answer.status_code == 503:  # Ray Serve, before its first application
        return set()
    return set(answer.json().values())


def require_free(app_name: str) -> None:
    """Raise RuntimeError if another application than this one answers at SERVICE.

    `serve run` at a route that is taken shuts Ray Serve down, and with it whoever answers there.
    """
    answer = ask_directly("get", f"{SERVICE}/-/routes", timeout=10)
    taken_by = answer.json().get("/", app_name) if answer.ok else app_name
    if taken_by != app_name:
        raise RuntimeError(
            f"the application {taken_by!r} of this cluster answers at {SERVICE}: stop it with "
            f"`serve.delete({taken_by!r})` if it is yours, or run this on another cluster"
        )


def launch(app: serve.Application, name: str = "default", route_prefix: str = "/") -> None:
    """Run an application as `serve run` would, and return when it is up.

    One of the same name is replaced.

    Raises:
        RuntimeError: if it cannot be deployed, or Serve does not run yet and its port is taken.
        TimeoutError: if it takes too long.
    """
    if not serve.status().proxies:
        start_serve()
    target = serve.RunTarget(app, name, route_prefix)
    serve.run_many([target], wait_for_applications_running=False)
    wait_until_running(name, timeout_s=LAUNCH_TIMEOUT_S)


def deploy(config: dict, replicas: int) -> None:
    """Apply a Serve config with `serve deploy`, and return when its application is up.

    The config has one application, in which so many `replicas` are to run.

    Raises:
        RuntimeError: if it cannot be deployed. TimeoutError: if it takes too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "serve_config.yaml"
        file.write_text(yaml.safe_dump(config))
        done = subprocess.run(["serve", "deploy", file], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"serve deploy failed:\n{done.stderr[-2000:]}")
    (application,) = config["applications"]
    wait_until_running(application["name"], replicas, LAUNCH_TIMEOUT_S)


def wait_until_running(
    app_name: str = "default", replicas: int | None = None, timeout_s: float = 60
) -> None:
    """Return when an application runs, those that it replaces are gone, and all replicas are up.

    `replicas` says how many, if the application's configuration is about to change.

    Raises:
        RuntimeError: if it cannot be deployed. TimeoutError: if it takes too long.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        app = serve.status().applications[app_name]
        states = Counter()
        for deployment in app.deployments.values():
            states.update(deployment.replica_states)
        settled = set(states) == {"RUNNING"} and replicas in (None, states["RUNNING"])
        if app.status == "RUNNING" and settled:
            return
        if app.status == "DEPLOY_FAILED":
            why = "\n".join(deployment.message for deployment in app.deployments.values())
            raise RuntimeError(f"{app_name} cannot be deployed: {app.message}\n{why}")
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{app_name} is {app.status} after {timeout_s:g} s, with replicas {dict(states)}: "
                f"{app.message}"
            )
        time.sleep(0.2)


def wait_until(
    look: Callable[[], Result], what: str = "what was waited for", timeout_s: float = 20
) -> Result:
    """Look again and again, until what is seen is true or not empty, and return that.

    Raises:
        TimeoutError: if it takes too long. It says `what` has not happened.
    """
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:g} s, still not: {what}")
        time.sleep(0.1)
    return seen


def log_lines(session_dir: Path, replica: str, text: str) -> list[str]:
    """Return what processes of Serve on this machine logged about a text, oldest first.

    `replica` is part of the log file's name: a replica's id, or its deployment's name.
    """
    logs = sorted((session_dir / "logs" / "serve").glob(f"*{replica}*.log"))
    lines = [line for log in logs for line in log.read_text().splitlines() if text in line]
    return [line.partition(" -- ")[2] for line in lines]


def replica_log(replica: str, text: str, until: str = "") -> list[str]:
    """Return what a replica logged about a text, oldest first, on whichever node it runs.

    `replica` is its id, or its deployment's name. A log is written with a delay: with `until`, wait
    for a line that has this, so that all lines before it are there.

    Raises TimeoutError if it takes too long.
    """

    def read() -> list[str]:
        logs = {}  # by name: two nodes on one machine have one folder of logs
        for node in (node for node in ray.nodes() if node["Alive"]):
            listed = list_logs(node_id=node["NodeID"], glob_filter=f"serve/*{replica}*.log")
            for name in {name for names in listed.values() for name in names} - logs.keys():
                logs[name] = "".join(get_log(node_id=node["NodeID"], filename=name, tail=-1))
        lines = [line for name in sorted(logs) for line in logs[name].splitlines()]
        return lines if not until or any(until in line for line in lines) else []

    lines = wait_until(read, f"a line with {until!r} in the log") if until else read()
    return [line.partition(" -- ")[2] for line in lines if text in line]
