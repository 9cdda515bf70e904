"""What the notebooks need to run and watch a service: launch it, is it up, what did it log?"""

import os
import subprocess
import time
from collections import Counter

import ray
from ray import serve
from ray.util.state import get_log, list_logs

LAUNCH_TIMEOUT_S = 120


def launch(import_path: str, *options: str, **settings: str | float) -> None:
    """Run an application on the running cluster with `serve run`, and return when it is up.

    `options` are those of `serve run`, `settings` its environment variables. An application of the
    same name is replaced.

    Raises:
        RuntimeError: if it cannot be deployed. TimeoutError: if it takes too long.
    """
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    command = ["serve", "run", import_path, *options, "--non-blocking"]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LAUNCH_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(
            f"{import_path} is not up after {LAUNCH_TIMEOUT_S} s: {serve.status().applications}"
        ) from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    app_name = options[options.index("--name") + 1] if "--name" in options else "default"
    wait_until_running(app_name)


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
            raise RuntimeError(f"{app_name} cannot be deployed: {app.message}")
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{app_name} is {app.status} after {timeout_s:g} s, with replicas {dict(states)}: "
                f"{app.message}"
            )
        time.sleep(0.2)


def log_lines(replica: str, text: str) -> list[str]:
    """Return what replicas logged about a text, oldest first.

    `replica` is part of the log file's name: a replica's id, or its deployment's name. Ray's state
    API reads the logs from whichever node has them.
    """
    lines = []
    for node in (node["NodeID"] for node in ray.nodes() if node["Alive"]):
        for names in list_logs(node_id=node, glob_filter=f"serve/*{replica}*").values():
            for name in names:
                lines += "".join(get_log(node_id=node, filename=name, tail=-1)).splitlines()
    return [line.partition(" -- ")[2] for line in lines if text in line]
