"""A replica of a production service, but for its decorators, for the entries to share."""

import asyncio
import gc
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import Generic

from fastapi import FastAPI, Request, Response
from ray import serve

from forecast_service.contract import (
    ForecastRequest,
    ForecastResponse,
    create_api,
    describe,
    read_body,
    respond,
)
from forecast_service.errors import RETRY_AFTER_S, ServiceError
from forecast_service.freed_memory import return_freed_memory
from forecast_service.loader import ModelLoader
from forecast_service.memory import MB, Holder, Model, ModelMemory
from forecast_service.metrics import ServiceMetrics
from forecast_service.reloader import ModelReloader
from forecast_service.replica import answer_headers, model_id
from forecast_service.settings import Settings
from forecast_service.store import ModelStore
from forecast_service.tokens import TENANT_HEADER, Tenants

DEPLOYMENT_OPTIONS = {  # where a service starts; a config file or .options() changes them
    "max_ongoing_requests": 200,  # in a replica at a time; most of them wait for the store
    "max_queued_requests": 400,  # at each proxy and handle; further ones get a 503 at once
    "backpressure_config": {"retry_after_s": RETRY_AFTER_S},
    "graceful_shutdown_wait_loop_s": 0.5,  # between looks whether a replica's last request is done
    "logging_config": {"log_level": "WARNING"},  # at INFO, Ray Serve logs a line per request
}
OBJECTS_BETWEEN_COLLECTIONS = 20_000  # a request's die without one; 700 cost it a fifteenth
LOADING_SHARE = 0.1  # of the budget: artifacts at once, and as much again for what comes of them
FAILED = "This replica no longer {task}: it is to be replaced."
logger = logging.getLogger("ray.serve.forecasts")


class ModelService(Generic[Model]):
    """Answers over HTTP and through a handle, with the model that the request's model id names."""

    def __init__(
        self,
        settings: Settings,
        from_bytes: Callable[[bytes, str], Model],
        artifact: str = "model.safetensors",
        *,
        in_thread: bool = False,
    ):
        """Take settings, and how an artifact becomes a model: see ModelLoader."""
        logger.setLevel(logging.INFO if settings.log_loads else logging.WARNING)
        self.settings = settings
        self.tenants = Tenants.of(settings.tenant_key)
        self.metrics = ServiceMetrics()
        self.store = ModelStore(settings, artifact)
        self.budget_bytes = (settings.model_memory_mb or math.inf) * MB
        self.memory = ModelMemory(
            settings.pinned_customers,
            settings.unload_idle_s or math.inf,
            on_unload=self.metrics.record_unload,
            on_tick=self.metrics.set_memory,
        )
        self.loader = ModelLoader(
            self.store,
            from_bytes,
            self.memory,
            in_thread=in_thread,
            most_bytes_at_once=self.budget_bytes * LOADING_SHARE,
            on_loaded=self.metrics.record_load,
        )
        self.tasks: list[asyncio.Task] = []  # the event loop's own references are weak ones

        @serve.multiplexed(max_num_models_per_replica=settings.models_per_replica)
        async def get_model(customer_id: str) -> Holder[Model]:
            """Put a model into Ray Serve's cache. Its holder is filled by now: no waiting here."""
            return self.loader.hold(customer_id)

        self.get_model = get_model

    async def start(self) -> None:
        """Ask the store if all is well, load the pinned models, and begin to follow the store.

        Raises:
            FileNotFoundError: if the store does not exist.
            ValueError: if the pinned models take more memory than they may.
        """
        await self.store.check()
        self.pinned = await asyncio.gather(*map(self._pin, self.settings.pinned_customers))
        if self.budget_bytes < math.inf:
            self.memory.limit(self.budget_bytes)
            self._keep_up("gives memory back", return_freed_memory())
        self._keep_up("reports its requests", self.metrics.publish())
        self._keep_up("unloads models", self.memory.run())
        if self.settings.reload_check_s:
            reloader = ModelReloader(
                self.loader, self.settings.reload_check_s, self.metrics.record_reload
            )
            self._keep_up("follows the store", reloader.run())
        gc.collect()
        gc.freeze()  # what is there by now stays: no collection has to look at it again
        gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)

    async def check_health(self) -> None:
        """Fail once a task in the background has failed: Ray Serve then replaces the replica.

        Nothing else counts, the store least of all: models in memory are served without it.

        Raises:
            RuntimeError: if one has failed. Why is in the log.
        """
        for task in self.tasks:
            if task.done() and not task.cancelled():
                raise RuntimeError(FAILED.format(task=task.get_name()))

    async def forecast(self, sequence_data: list[float], authorization: str | None = None) -> dict:
        """Answer as HTTP does, for the customer in `handle.options(multiplexed_model_id=...)`.

        `authorization` is what HTTP has in the header TENANT_HEADER.

        Raises:
            ServiceError: one of its kinds, where HTTP would answer with its status.
        """
        with self.metrics.count_request(self._is_hit()):
            if self.tenants:
                self.tenants.require(authorization, serve.get_multiplexed_model_id())
            answer = await self._forecast(ForecastRequest.of(sequence_data))
        return answer.model_dump(exclude_none=True)

    async def answer(self, sequence_data: list[float], authorization: str | None = None) -> dict:
        """Return what forecast() returns, or a HandleProblem where it raises a ServiceError.

        For endpoints in front of the service: Ray Serve logs what a call raises, stack trace and
        all.
        """
        try:
            return await self.forecast(sequence_data, authorization)
        except ServiceError as error:
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
        body = answer.model_dump_json(exclude_none=True)
        headers = answer_headers(hit, time.perf_counter() - started)
        return Response(body, media_type="application/json", headers=headers)

    def _is_hit(self) -> bool:
        return serve.get_multiplexed_model_id() in self.loader

    async def _forecast(self, request: ForecastRequest) -> ForecastResponse:
        customer_id = model_id()
        loaded = await self.loader.load(customer_id)  # waits, or fails, with the cache untouched
        await self.get_model(customer_id)  # makes its holder the most recently used
        return respond(loaded.model, request)  # even if a newer one has come meanwhile

    async def _pin(self, customer_id: str) -> Holder[Model]:
        """Return what the replica holds a model in. Without the model, it starts all the same."""
        holder = self.loader.hold(customer_id)
        try:
            await self.loader.reload(customer_id)
            await self.get_model(customer_id)  # tells the router
        except ServiceError as error:
            self.metrics.record_reload(error)
            logger.warning(f"Not pinned yet: {error}")
        return holder

    def _keep_up(self, what: str, work: Coroutine) -> None:
        """Run in the background what the replica does as long as it lives."""
        task = asyncio.create_task(work, name=what)
        task.add_done_callback(_log_failure)
        self.tasks.append(task)


def _log_failure(task: asyncio.Task) -> None:
    if not task.cancelled():  # as when a replica ends
        logger.error(FAILED.format(task=task.get_name()), exc_info=task.exception())


def create_service_api(title: str) -> FastAPI:
    """Return the HTTP side of a ModelService, for `serve.ingress`."""

    async def post_forecast(request: Request) -> Response:
        """Forecast for the customer in the header `serve_multiplexed_model_id`."""
        return await serve.get_replica_context().servable_object.answer_http(request)

    return create_api(title, post_forecast)
