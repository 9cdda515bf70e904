"""The production service: a forecasting model per customer, from one pool of replicas.

    serve run serve_forecast_production:app models_per_replica=100

Settings: see forecast_service/settings.py. Replicas, CPUs, limits and log level are Ray Serve's own
settings: see deploy/serve_config.yaml.
"""

from ray import serve

from forecast_service.artifact import folded_from_bytes
from forecast_service.model import FoldedModel
from forecast_service.service import DEPLOYMENT_OPTIONS, ModelService, create_service_api
from forecast_service.settings import Settings


@serve.deployment(**DEPLOYMENT_OPTIONS)
@serve.ingress(create_service_api("Forecasts, a model per customer"))
class ForecastingService(ModelService[FoldedModel]):
    """Linear models, which load in microseconds."""

    async def __init__(self, settings: Settings):
        super().__init__(settings, folded_from_bytes)
        await self.start()


def app(settings: Settings) -> serve.Application:
    """Build the application: `serve run` and config files hand the arguments over."""
    return ForecastingService.bind(settings)
