"""The service: a forecasting model per customer, thousands of them, from one pool of replicas.

    serve run serve_forecast_multiplex:app

Environment, read where the application is built and handed to every replica:
    MODELS_PER_REPLICA    models that a replica keeps in memory; default 4
    NUM_REPLICAS          replicas in the pool; default 1
    LOG_LEVEL             of the replicas; at DEBUG Ray Serve logs every eviction; default INFO
    MODEL_STORE, STORE_TIMEOUT_S, STORE_ADDED_DELAY_S: see model_store.py
"""

import os

from fastapi import Response
from ray import serve

from forecasting import ForecastModel
from http_contract import (
    FORECAST_ROUTE,
    ForecastRequest,
    ForecastResponse,
    ValidBody,
    create_api,
    report_cache,
    require_model_id,
    respond,
)
from model_artifact import from_bytes
from model_loader import ModelLoader
from model_store import ModelStore

MODELS_PER_REPLICA = int(os.environ.get("MODELS_PER_REPLICA", 4))
MAX_ONGOING_REQUESTS = 200  # a replica; they wait for the store at the same time
REPLICA_SETTINGS = "MODELS_PER_REPLICA", "MODEL_STORE", "STORE_TIMEOUT_S", "STORE_ADDED_DELAY_S"
DEPLOYMENT_OPTIONS = {
    "num_replicas": int(os.environ.get("NUM_REPLICAS", 1)),
    "max_ongoing_requests": MAX_ONGOING_REQUESTS,
    "logging_config": {"log_level": os.environ.get("LOG_LEVEL", "INFO")},
    "ray_actor_options": {
        # A replica is another process, maybe on another machine: its settings travel with it.
        "runtime_env": {
            "env_vars": {name: os.environ[name] for name in REPLICA_SETTINGS if name in os.environ}
        }
    },
}

api = create_api("Forecasts, a model per customer")


@serve.deployment(**DEPLOYMENT_OPTIONS)
@serve.ingress(api)
class ForecastingService:
    """Answers over HTTP and through a handle, with the model that the request's model id names."""

    def __init__(self):
        self.loader = ModelLoader(ModelStore(), from_bytes)

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
        answer = await self._forecast(ForecastRequest.of(sequence_data))
        return answer.model_dump(exclude_none=True)

    @api.post(**FORECAST_ROUTE)
    async def post_forecast(self, body: ValidBody, response: Response) -> ForecastResponse:
        """Forecast for the customer in the header `serve_multiplexed_model_id`."""
        with report_cache(response, hit=serve.get_multiplexed_model_id() in self.loader):
            return await self._forecast(body)

    async def _forecast(self, request: ForecastRequest) -> ForecastResponse:
        customer_id = require_model_id(serve.get_multiplexed_model_id())
        model = await self.loader.load(customer_id)  # waits, or fails, with the cache untouched
        await self.get_model(customer_id)  # makes it the most recently used
        return respond(model, request)


app = ForecastingService.bind()
