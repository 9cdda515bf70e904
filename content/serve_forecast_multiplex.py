"""A forecasting model per customer, thousands of them, from one pool of replicas.

serve run serve_forecast_multiplex:app
"""

import asyncio
import time
from weakref import WeakValueDictionary

from fastapi import Response
from ray import serve

from forecast_service.artifact import folded_from_bytes
from forecast_service.contract import (
    FORECAST_ROUTE,
    ForecastRequest,
    ForecastResponse,
    create_api,
    respond,
)
from forecast_service.model import FoldedModel
from forecast_service.replica import answer_headers, model_id
from forecast_service.store import ModelStore

api = create_api("Forecasts, a model per customer")


@serve.deployment(
    max_ongoing_requests=200,  # at a time in a replica: most of them wait for the store
    max_queued_requests=400,  # in front of it; further ones are refused at once
    logging_config={"log_level": "DEBUG", "enable_access_log": False},  # loads, evictions
)
@serve.ingress(api)
class ForecastingService:
    def __init__(self):
        self.store = ModelStore()
        self.in_memory = WeakValueDictionary()  # what the cache or a request holds on to
        self.reads = {}  # one per customer, however many requests wait for it

    @serve.multiplexed(max_num_models_per_replica=4)
    async def get_model(self, customer_id: str) -> FoldedModel:
        """Fill Ray Serve's cache, one model at a time. It is in memory by now: no waiting here."""
        return await self.load(customer_id)

    async def load(self, customer_id: str) -> FoldedModel:
        if (model := self.in_memory.get(customer_id)) is not None:
            return model
        if customer_id not in self.reads:
            self.reads[customer_id] = asyncio.create_task(self.read(customer_id))
        return await asyncio.shield(self.reads[customer_id])  # a client that leaves stops nobody

    async def read(self, customer_id: str) -> FoldedModel:
        try:
            artifact = await self.store.read(customer_id)
            model = self.in_memory[customer_id] = folded_from_bytes(artifact.data, customer_id)
            return model
        finally:
            del self.reads[customer_id]

    @api.post(**FORECAST_ROUTE)
    async def post_forecast(self, request: ForecastRequest, response: Response) -> ForecastResponse:
        started, customer_id = time.perf_counter(), model_id()
        hit = customer_id in self.in_memory
        model = await self.load(customer_id)  # waits, or fails, before anything is evicted
        await self.get_model(customer_id)  # makes it the most recently used
        response.headers.update(answer_headers(hit, time.perf_counter() - started))
        return respond(model, request)

    async def forecast(self, sequence_data: list[float]) -> dict:
        """Answer a deployment handle. Raises the errors that HTTP answers with a status."""
        request = ForecastRequest.of(sequence_data)
        return (await self.post_forecast(request, Response())).model_dump(exclude_none=True)


app = ForecastingService.bind()
