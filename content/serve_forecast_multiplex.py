"""The service: a forecasting model per customer, thousands of them, from one pool of replicas.

    serve run serve_forecast_multiplex:app

Environment, read where the application is built and handed to every replica:
    MODELS_PER_REPLICA    models that a replica keeps in memory; default 4
    PINNED_CUSTOMERS      ids, separated by commas, whose models every replica loads before its
                          first request and holds beside those; default none
    NUM_REPLICAS          replicas in the pool; default 1
    MAX_REPLICAS_PER_NODE so that no more are lost with a node; further ones wait for another node;
                          default: as many as fit, spread while there is a choice
    CPUS_PER_REPLICA      that Ray reserves for each; default 1
    MAX_ONGOING_REQUESTS  that a replica works on at a time; most of them wait for the store;
                          default 200
    LOG_LEVEL             of the replicas; at DEBUG Ray Serve logs every eviction, at WARNING no
                          request; default INFO
    MODEL_STORE, STORE_TIMEOUT_S, STORE_ADDED_DELAY_S: see model_store.py
"""

import asyncio
import logging
import os
import time

from fastapi import Request, Response
from ray import serve

from forecasting import ForecastModel
from http_contract import (
    FORECAST_ROUTE,
    PROBLEMS,
    ForecastRequest,
    ForecastResponse,
    create_api,
    read_body,
    render,
    require_model_id,
    respond,
)
from model_artifact import from_bytes
from model_loader import ModelLoader
from model_store import ModelStore
from service_metrics import ServiceMetrics

MODELS_PER_REPLICA = int(os.environ.get("MODELS_PER_REPLICA", 4))
PINNED_CUSTOMERS = [name for name in os.environ.get("PINNED_CUSTOMERS", "").split(",") if name]
REPLICA_SETTINGS = (
    "MODELS_PER_REPLICA",
    "PINNED_CUSTOMERS",
    "MODEL_STORE",
    "STORE_TIMEOUT_S",
    "STORE_ADDED_DELAY_S",
)
DEPLOYMENT_OPTIONS = {
    "num_replicas": int(os.environ.get("NUM_REPLICAS", 1)),
    "max_ongoing_requests": int(os.environ.get("MAX_ONGOING_REQUESTS", 200)),
    "graceful_shutdown_wait_loop_s": 0.5,  # between looks whether a replica's last request is done
    "logging_config": {"log_level": os.environ.get("LOG_LEVEL", "INFO")},
    "ray_actor_options": {
        "num_cpus": float(os.environ.get("CPUS_PER_REPLICA", 1)),
        # A replica is another process, maybe on another machine: its settings travel with it.
        "runtime_env": {
            "env_vars": {name: os.environ[name] for name in REPLICA_SETTINGS if name in os.environ}
        },
    },
}

if "MAX_REPLICAS_PER_NODE" in os.environ:
    DEPLOYMENT_OPTIONS["max_replicas_per_node"] = int(os.environ["MAX_REPLICAS_PER_NODE"])

api = create_api("Forecasts, a model per customer")
logger = logging.getLogger("ray.serve")


@serve.deployment(**DEPLOYMENT_OPTIONS)
@serve.ingress(api)
class ForecastingService:
    """Answers over HTTP and through a handle, with the model that the request's model id names."""

    async def __init__(self):
        self.metrics = ServiceMetrics()
        self.loader = ModelLoader(ModelStore(), from_bytes, on_loaded=self.metrics.record_load)
        self.pinned = await asyncio.gather(*map(self._pin, PINNED_CUSTOMERS))

    @serve.multiplexed(max_num_models_per_replica=MODELS_PER_REPLICA)
    async def get_model(self, customer_id: str) -> ForecastModel:
        """Put a model into Ray Serve's cache. It is in memory by now, so this does not wait."""
        return await self.loader.load(customer_id)

    async def forecast(self, sequence_data: list[float]) -> dict:
        """Answer as HTTP does, for the customer in `handle.options(multiplexed_model_id=...)`.

        Raises:
            InvalidHistoryError: if the history is not one that ForecastRequest takes.
            The errors that http_contract.PROBLEMS lists.
        """
        with self.metrics.count_request(self._is_hit()):
            answer = await self._forecast(ForecastRequest.of(sequence_data))
        return answer.model_dump(exclude_none=True)

    @api.post(**FORECAST_ROUTE)
    async def post_forecast(self, request: Request) -> Response:
        """Forecast for the customer in the header `serve_multiplexed_model_id`."""
        started = time.perf_counter()
        hit = self._is_hit()
        with self.metrics.count_request(hit):
            answer = await self._forecast(await read_body(request, ForecastRequest))
        return render(answer, hit, time.perf_counter() - started)

    def _is_hit(self) -> bool:
        return serve.get_multiplexed_model_id() in self.loader

    async def _forecast(self, request: ForecastRequest) -> ForecastResponse:
        customer_id = require_model_id(serve.get_multiplexed_model_id())
        model = await self.loader.load(customer_id)  # waits, or fails, with the cache untouched
        await self.get_model(customer_id)  # makes it the most recently used
        return respond(model, request)

    async def _pin(self, customer_id: str) -> ForecastModel | None:
        """Return a model for the replica to hold. Without it, it starts all the same."""
        try:
            model = await self.loader.load(customer_id)
        except tuple(PROBLEMS) as error:
            logger.warning(f"Not pinned: {error}")
            return None
        await self.get_model(customer_id)  # tells the router
        return model


app = ForecastingService.bind()
