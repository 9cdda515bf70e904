"""The pattern as Ray's documentation shows it, on the same models and store: for comparison only.

    serve run serve_stock_multiplex:app

Reads the environment variables of serve_forecast_multiplex.py.
"""

import numpy as np
from ray import serve
from starlette.requests import Request

from forecasting import ForecastModel, extend_history
from model_artifact import from_bytes
from model_store import ModelStore
from serve_forecast_multiplex import DEPLOYMENT_OPTIONS, MODELS_PER_REPLICA


@serve.deployment(**DEPLOYMENT_OPTIONS)
class StockForecastingService:
    """Loads a model where the documentation does: in the multiplexed method, and so in its lock."""

    def __init__(self):
        self.store = ModelStore()

    @serve.multiplexed(max_num_models_per_replica=MODELS_PER_REPLICA)
    async def get_model(self, customer_id: str) -> ForecastModel:
        artifact = await self.store.read(customer_id)
        return from_bytes(artifact.data, customer_id)

    async def __call__(self, request: Request) -> dict:
        customer_id = serve.get_multiplexed_model_id()
        model = await self.get_model(customer_id)
        history = np.array((await request.json())["sequence_data"], dtype=float)
        forecast, lower, upper = model.predict(extend_history(history))
        return {
            "customer_id": customer_id,
            "forecast": forecast.tolist(),
            "lower": lower.tolist(),
            "upper": upper.tolist(),
            "model_version": model.version,
        }


app = StockForecastingService.bind()
