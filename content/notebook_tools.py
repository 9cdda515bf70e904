"""What the notebooks need to watch a service: is it up, and what did its replicas log?"""

import time

import ray
from ray import serve
from ray.util.state import get_log, list_logs


def wait_until_running(app_name: str = "default", timeout_s: float = 60) -> None:
    """Return when an application runs. Raises RuntimeError if it failed, TimeoutError if late."""
    deadline = time.monotonic() + timeout_s
    while (app := serve.status().applications[app_name]).status != "RUNNING":
        if app.status == "DEPLOY_FAILED":
            raise RuntimeError(f"{app_name} cannot be deployed: {app.message}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{app_name} is {app.status} after {timeout_s:g} s: {app.message}")
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
