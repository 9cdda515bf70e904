"""The production service for models of several kinds: linear ones, and any that is an ONNX graph.

    serve run serve_own_models:app models_per_replica=100

Settings: see forecast_service/settings.py. Wants onnxruntime beside the other requirements.
"""

from ray import serve

from forecast_service.contract import Forecaster
from forecast_service.service import DEPLOYMENT_OPTIONS, ModelService, create_service_api
from forecast_service.settings import Settings
from own_models.artifact import from_bytes


@serve.deployment(**DEPLOYMENT_OPTIONS)
@serve.ingress(create_service_api("Forecasts, a model of its own kind per customer"))
class OwnModelsService(ModelService[Forecaster]):
    """Models that take milliseconds to open, in a thread, while others are answered."""

    async def __init__(self, settings: Settings):
        super().__init__(settings, from_bytes, in_thread=True)
        await self.start()


def app(settings: Settings) -> serve.Application:
    """Build the application: `serve run` and config files hand the arguments over."""
    return OwnModelsService.bind(settings)
