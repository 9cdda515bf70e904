"""A second service, of PyTorch models in an S3 bucket: s3://my-bucket/1/model.pt, 2/model.pt ...

    MODEL_STORE=s3://my-bucket serve run serve_pytorch_s3:app models_per_replica=3

Settings: see forecast_service/settings.py.
"""

import torch
from ray import serve

from forecast_service.service import DEPLOYMENT_OPTIONS, ModelService, create_service_api
from forecast_service.settings import Settings
from torch_models.artifact import from_bytes
from torch_models.forecaster import TorchForecaster


@serve.deployment(**DEPLOYMENT_OPTIONS)
@serve.ingress(create_service_api("Forecasts, a PyTorch model per district"))
class PyTorchService(ModelService[TorchForecaster]):
    """Models of some MB, which a thread deserializes while others are answered."""

    async def __init__(self, settings: Settings):
        torch.set_num_threads(1)  # replicas share the machine's cores
        super().__init__(settings, from_bytes, artifact="model.pt", in_thread=True)
        await self.start()


def app(settings: Settings) -> serve.Application:
    """Build the application: `serve run` and config files hand the arguments over."""
    return PyTorchService.bind(settings)
