"""The servers that compare_servers.py and compare_pools.py compare: what to start, how to ask."""

import json
from functools import partial

from lab.local_ray import fast_ingress_settings
from lab.traffic import JSON_BODY, forecast_request
from server_process import HOST, PORT, SERVER_FILES, URL, Server


def ask_in_body(customer_id: str, history: list[float], path: str = "/") -> dict:
    body = {"customer_id": customer_id, "sequence_data": history}
    return {"url": URL + path, "headers": JSON_BODY, "data": json.dumps(body).encode()}


def ask_by_path(customer_id: str, history: list[float]) -> dict:
    return {"url": f"{URL}/{customer_id}", **forecast_request(customer_id, history)}


def ask_open_inference(customer_id: str, history: list[float]) -> dict:
    """Ask as the Open Inference Protocol does, which MLServer speaks."""
    tensor = {"name": "sequence_data", "shape": [len(history)], "datatype": "FP64", "data": history}
    body = json.dumps({"inputs": [tensor]}).encode()
    return {"url": f"{URL}/v2/models/{customer_id}/infer", "headers": JSON_BODY, "data": body}


def read_open_inference(answer: dict) -> dict:
    return {output["name"]: output["data"] for output in answer["outputs"]}


RAY = "python", str(SERVER_FILES / "ray_server.py"), HOST, PORT
# With both ingresses alike: how often Ray reports its metrics. A service's own limits are the same.
RAY_SETTINGS = {"RAY_metrics_report_interval_ms": "10000", "GRPC_ENABLE_FORK_SUPPORT": "0"}
FAST_INGRESS = RAY_SETTINGS | fast_ingress_settings()
UVICORN = "uvicorn", "fastapi_server:app", "--host", HOST, "--port", PORT
MOSEC = "python", str(SERVER_FILES / "mosec_server.py"), "--address", HOST, "--port", PORT
MOSEC_OPTIONS = "--log-level", "error", "--timeout", "10000"  # ms; 3000 would fail our burst
ask_mosec = partial(ask_in_body, path="/inference")
PRODUCTION, SMALL = "serve_forecast_production", "small_service"
SERVERS = {
    "ours": Server(
        "the production service, default ingress", (*RAY, PRODUCTION), environment=RAY_SETTINGS
    ),
    "ours, fast ingress": Server(
        "the production service, fast ingress (HAProxy)",
        (*RAY, PRODUCTION),
        environment=FAST_INGRESS,
    ),
    "ours, 80 lines": Server(
        "the tutorial's service, default ingress", (*RAY, SMALL), environment=RAY_SETTINGS
    ),
    "ours, 80 lines, fast": Server(
        "the tutorial's service, fast ingress (HAProxy)", (*RAY, SMALL), environment=FAST_INGRESS
    ),
    "stock Ray": Server(
        "multiplexing as Ray documents it",
        (*RAY, "lab.stock_service"),
        environment=RAY_SETTINGS,
    ),
    "Ray, no forecast": Server(
        "what Ray allows: multiplexing, a body read, a constant answered; fast ingress (HAProxy)",
        (*RAY, "empty_models"),
        environment=FAST_INGRESS,
        forecasts=False,
    ),
    "Ray per customer": Server(
        "a Serve deployment per customer",
        (*RAY, "ray_per_customer"),
        environment=RAY_SETTINGS,
        ask=ask_by_path,
        preloaded=(4, 12),
    ),
    "FastAPI": Server(
        "FastAPI and an LRU dict on uvicorn",
        (*UVICORN, "--no-access-log", "--log-level", "warning"),
        "fastapi",
    ),
    "BentoML": Server(
        "BentoML service with an LRU",
        ("bentoml", "serve", "bentoml_server:ForecastingService", "--host", HOST, "--port", PORT),
        "bentoml",
        {"BENTOML_DO_NOT_TRACK": "true"},
    ),
    "LitServe": Server(
        "LitServe API with an LRU, asynchronous",
        ("python", str(SERVER_FILES / "litserve_server.py"), HOST, PORT),
        "litserve",
        ask=ask_in_body,
    ),
    "MOSEC": Server("MOSEC worker with an LRU", (*MOSEC, *MOSEC_OPTIONS), "mosec", ask=ask_mosec),
    "MOSEC, batches": Server(
        "MOSEC worker with an LRU and dynamic batching",
        (*MOSEC, *MOSEC_OPTIONS),
        "mosec",
        {"MAX_BATCH_SIZE": "32"},
        ask=ask_mosec,
    ),
    "MLServer": Server(
        "MLServer, every customer's model preloaded",
        ("mlserver", "start", "."),
        "mlserver",
        {
            "MLSERVER_MODEL_REPOSITORY_IMPLEMENTATION": "mlserver_runtime.Fleet",
            "MLSERVER_HOST": HOST,
            "MLSERVER_HTTP_PORT": PORT,
            "MLSERVER_DEBUG": "false",
            "MLSERVER_PARALLEL_WORKERS": "0",  # the default, a second process, is half as fast
        },
        ask=ask_open_inference,
        read=read_open_inference,
        preloaded=(32, 2000),
    ),
}
