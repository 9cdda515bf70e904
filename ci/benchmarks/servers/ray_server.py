"""Ray Serve: `python ray_server.py HOST PORT MODULE`, until SIGTERM.

The module has an `app`, which may be a builder that takes Settings, or `apps` by route.
"""

import signal
import sys
import threading
from importlib import import_module

import ray
from ray import serve

from forecast_service.settings import Settings
from model_cache import count_loads

NO_ACCESS_LOG = {"enable_access_log": False}  # of the proxy: no server here logs a line per request


def main(host: str, port: str, module: str) -> None:
    hook = {"worker_process_setup_hook": count_loads}
    ray.init("local", log_to_driver=False, runtime_env=hook)
    serve.start(http_options={"host": host, "port": int(port)}, logging_config=NO_ACCESS_LOG)
    served = import_module(module)
    if hasattr(served, "apps"):
        apps = served.apps
    else:
        app = served.app
        apps = {"/": app if isinstance(app, serve.Application) else app(Settings())}
    serve.run_many([serve.RunTarget(app, route, route) for route, app in apps.items()])
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
