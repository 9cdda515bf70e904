"""Ray Serve: `python ray_server.py HOST PORT MODULE`, until SIGTERM.

The module has a deployment and an `app`, which may be a builder that takes Settings, or `apps` by
route.

Environment:
    WORKERS    replicas of the deployment; default 1
"""

import os
import signal
import sys
import threading
from importlib import import_module
from types import ModuleType

import ray
from ray import serve

from forecast_service.settings import Settings
from model_cache import count_loads

NO_ACCESS_LOG = {"enable_access_log": False}  # of the proxy: no server here logs a line per request


def build(served: ModuleType) -> dict[str, serve.Application]:
    """Return a module's applications by route."""
    if hasattr(served, "apps"):
        return served.apps
    (deployment,) = (each for each in vars(served).values() if isinstance(each, serve.Deployment))
    workers = int(os.environ.get("WORKERS", 1))
    cores = min(1, os.cpu_count() / workers)  # of each, or Ray would not start more than it has
    deployment = deployment.options(num_replicas=workers, ray_actor_options={"num_cpus": cores})
    arguments = () if isinstance(served.app, serve.Application) else (Settings(),)
    return {"/": deployment.bind(*arguments)}


def main(host: str, port: str, module: str) -> None:
    hook = {"worker_process_setup_hook": count_loads}
    ray.init("local", log_to_driver=False, runtime_env=hook)
    serve.start(http_options={"host": host, "port": int(port)}, logging_config=NO_ACCESS_LOG)
    apps = build(import_module(module))
    serve.run_many([serve.RunTarget(app, route, route) for route, app in apps.items()])
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
