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
    MAX_QUEUED_REQUESTS   that wait for a replica at each proxy and each handle; further ones are
                          answered with 503 at once; default 400
    LOG_LEVEL             of the replicas; at DEBUG Ray Serve logs every eviction, at WARNING no
                          request; default INFO
    RELOAD_CHECK_S        a model that is replaced in the store, or deleted there, is so in memory
                          after this time and one load; 0: never; default 30
    MODEL_STORE, STORE_TIMEOUT_S, STORE_ADDED_DELAY_S: see model_store.py
    TENANT_KEY            turns tokens on, see tenants.py; default off
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
    HANDLE_ERRORS,
    PROBLEMS,
    RETRY_AFTER_S,
    DirectRoute,
    ForecastRequest,
    ForecastResponse,
    create_api,
    describe,
    read_body,
    render,
    require_model_id,
    respond,
)
from model_artifact import from_bytes
from model_loader import Holder, ModelLoader
from model_reloader import ModelReloader
from model_store import ModelStore
from service_metrics import ServiceMetrics
from tenants import TENANT_HEADER, Tenants

MODELS_PER_REPLICA = int(os.environ.get("MODELS_PER_REPLICA", 4))
PINNED_CUSTOMERS = [name for name in os.environ.get("PINNED_CUSTOMERS", "").split(",") if name]
RELOAD_CHECK_S = float(os.environ.get("RELOAD_CHECK_S", 30))
REPLICA_SETTINGS = (
    "MODELS_PER_REPLICA",
    "PINNED_CUSTOMERS",
    "RELOAD_CHECK_S",
    "MODEL_STORE",
    "STORE_TIMEOUT_S",
    "STORE_ADDED_DELAY_S",
    "TENANT_KEY",
)
DEPLOYMENT_OPTIONS = {
    "num_replicas": int(os.environ.get("NUM_REPLICAS", 1)),
    "max_ongoing_requests": int(os.environ.get("MAX_ONGOING_REQUESTS", 200)),
    "max_queued_requests": int(os.environ.get("MAX_QUEUED_REQUESTS", 400)),
    "backpressure_config": {"retry_after_s": RETRY_AFTER_S},
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

api = create_api("Forecasts, a model per customer", DirectRoute)
logger = logging.getLogger("ray.serve")


@api.post(**FORECAST_ROUTE)
async def post_forecast(request: Request) -> Response:
    """Forecast for the customer in the header `serve_multiplexed_model_id`."""
    return await serve.get_replica_context().servable_object.answer_http(request)


@serve.deployment(**DEPLOYMENT_OPTIONS)
@serve.ingress(api)
class ForecastingService:
    """Answers over HTTP and through a handle, with the model that the request's model id names."""

    async def __init__(self):
        self.tenants = Tenants.from_environment()
        self.metrics = ServiceMetrics()
        self.loader = ModelLoader(ModelStore(), from_bytes, on_loaded=self.metrics.record_load)
        self.pinned = await asyncio.gather(*map(self._pin, PINNED_CUSTOMERS))
        if RELOAD_CHECK_S:
            reloader = ModelReloader(self.loader, RELOAD_CHECK_S, self.metrics.record_reload)
            self.reloading = asyncio.create_task(reloader.run())

    @serve.multiplexed(max_num_models_per_replica=MODELS_PER_REPLICA)
    async def get_model(self, customer_id: str) -> Holder[ForecastModel]:
        """Put a model into Ray Serve's cache. It is in memory by now, so this does not wait."""
        return await self.loader.load(customer_id)

    async def forecast(self, sequence_data: list[float], authorization: str | None = None) -> dict:
        """Answer as HTTP does, for the customer in `handle.options(multiplexed_model_id=...)`.

        `authorization` is what HTTP has in the header TENANT_HEADER.

        Raises:
            InvalidHistoryError: if the history is not one that ForecastRequest takes.
            The errors that http_contract.PROBLEMS lists.
        """
        with self.metrics.count_request(self._is_hit()):
            if self.tenants:
                self.tenants.require(authorization, serve.get_multiplexed_model_id())
            answer = await self._forecast(ForecastRequest.of(sequence_data))
        return answer.model_dump(exclude_none=True)

    async def answer(self, sequence_data: list[float], authorization: str | None = None) -> dict:
        """Return what forecast() returns, or a HandleProblem where it raises one of its errors.

        For doors in front of the service: Ray Serve logs what a call raises, stack trace and all.
        """
        try:
            return await self.forecast(sequence_data, authorization)
        except HANDLE_ERRORS as error:
            return describe(error)

    async def answer_http(self, request: Request) -> Response:
        """Answer a POST request. Raises what create_api() turns into an answer."""
        started = time.perf_counter()
        hit = self._is_hit()
        with self.metrics.count_request(hit):
            if self.tenants:
                authorization = request.headers.get(TENANT_HEADER)
                self.tenants.require(authorization, serve.get_multiplexed_model_id())
            answer = await self._forecast(await read_body(request, ForecastRequest))
        return render(answer, hit, time.perf_counter() - started)

    def _is_hit(self) -> bool:
        return serve.get_multiplexed_model_id() in self.loader

    async def _forecast(self, request: ForecastRequest) -> ForecastResponse:
        customer_id = require_model_id(serve.get_multiplexed_model_id())
        holder = await self.loader.load(customer_id)  # waits, or fails, with the cache untouched
        model = holder.model  # for this request, even if a newer one comes meanwhile
        await self.get_model(customer_id)  # makes it the most recently used
        return respond(model, request)

    async def _pin(self, customer_id: str) -> Holder[ForecastModel]:
        """Return what the replica holds a model in. Without the model, it starts all the same."""
        holder = self.loader.hold(customer_id)
        try:
            await self.loader.load(customer_id)
            await self.get_model(customer_id)  # tells the router
        except tuple(PROBLEMS) as error:
            logger.warning(f"Not pinned yet: {error}")
        return holder


app = ForecastingService.bind()
