"""Ray Serve: `python ray_server.py HOST PORT MODULE`, until SIGTERM.

The module has an `app`, or `apps` by route.
"""

import signal
import sys
import threading
from importlib import import_module

import ray
from ray import serve

from model_cache import count_loads


def main(host: str, port: str, module: str) -> None:
    ray.init(log_to_driver=False, runtime_env={"worker_process_setup_hook": count_loads})
    quiet = {"log_level": "WARNING"}
    serve.start(http_options={"host": host, "port": int(port)}, logging_config=quiet)
    served = import_module(module)
    apps = served.apps if hasattr(served, "apps") else {"/": served.app}
    serve.run_many([serve.RunTarget(app, route, route) for route, app in apps.items()])
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
