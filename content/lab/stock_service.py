"""The pattern as Ray's documentation shows it, on the same models and store: for comparison only.

    serve run lab.stock_service:app

It checks nothing: no id, no body, no token.
"""

from ray import serve
from starlette.requests import Request

from forecast_service.artifact import folded_from_bytes
from forecast_service.model import FoldedModel, extend_history
from forecast_service.service import DEPLOYMENT_OPTIONS
from forecast_service.settings import Settings
from forecast_service.store import ModelStore


@serve.deployment(**DEPLOYMENT_OPTIONS)
class StockForecastingService:
    """Loads a model where the documentation does: in the multiplexed method, and so in its lock."""

    def __init__(self, settings: Settings):
        self.store = ModelStore(settings)

        @serve.multiplexed(max_num_models_per_replica=settings.models_per_replica)
        async def get_model(customer_id: str) -> FoldedModel:
            artifact = await self.store.read(customer_id)
            return folded_from_bytes(artifact.data, customer_id)

        self.get_model = get_model

    async def __call__(self, request: Request) -> dict:
        customer_id = serve.get_multiplexed_model_id()
        model = await self.get_model(customer_id)
        history = (await request.json())["sequence_data"]
        forecast, lower, upper = model.predict(extend_history(history))
        return {
            "customer_id": customer_id,
            "forecast": forecast,
            "lower": lower,
            "upper": upper,
            "model_version": model.version,
        }


def app(settings: Settings) -> serve.Application:
    """Build the application: `serve run` and config files hand the arguments over."""
    return StockForecastingService.bind(settings)
