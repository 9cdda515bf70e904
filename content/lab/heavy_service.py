"""The production service with models of megabytes, to see what a budget of memory does.

    serve run lab.heavy_service:app model_memory_mb=50 models_per_replica=1000

A stand-in: its forecasts are those of the linear models, and each model carries a payload beside.
"""

from dataclasses import dataclass, field, fields

from ray import serve

from forecast_service.artifact import folded_from_bytes
from forecast_service.errors import CorruptModelError
from forecast_service.model import FoldedModel
from forecast_service.service import DEPLOYMENT_OPTIONS, ModelService, create_service_api
from forecast_service.settings import Settings

LENGTH_BYTES = 8  # in front of the linear model's artifact, which the payload follows


@dataclass(frozen=True, eq=False, slots=True)
class HeavyModel(FoldedModel):
    """A linear model that keeps its whole artifact in memory."""

    artifact: bytes = field(kw_only=True)


def add_payload(artifact: bytes, payload: bytes) -> bytes:
    """Return the artifact of a heavy model, from that of a linear one."""
    return len(artifact).to_bytes(LENGTH_BYTES, "little") + artifact + payload


def from_bytes(data: bytes, customer_id: str) -> HeavyModel:
    """Read what add_payload() wrote. Raises CorruptModelError."""
    end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    if end > len(data):
        raise CorruptModelError(f"the model of {customer_id} ends too soon")
    linear = folded_from_bytes(data[LENGTH_BYTES:end], customer_id)
    known = {each.name: getattr(linear, each.name) for each in fields(linear)}
    return HeavyModel(**known, artifact=data)


@serve.deployment(**DEPLOYMENT_OPTIONS)
@serve.ingress(create_service_api("Forecasts, by models of megabytes"))
class HeavyService(ModelService[HeavyModel]):
    """Models that a thread deserializes while others are answered."""

    async def __init__(self, settings: Settings):
        super().__init__(settings, from_bytes, in_thread=True)
        await self.start()


def app(settings: Settings) -> serve.Application:
    """Build the application: `serve run` and config files hand the arguments over."""
    return HeavyService.bind(settings)
