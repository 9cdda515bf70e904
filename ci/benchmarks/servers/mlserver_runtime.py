"""MLServer: `mlserver start .`, with a model of its own for each customer, as its guide has it.

It loads them all when it starts, and has neither a load on demand nor an LRU.

Environment:
    PRELOADED    customers, the first in the order of their ids, that it serves
"""

import os

import numpy as np
from mlserver import MLModel, ModelSettings
from mlserver.codecs import NumpyCodec
from mlserver.repository import ModelRepository
from mlserver.types import InferenceRequest, InferenceResponse

from forecast_service.artifact import folded_from_bytes
from forecast_service.model import extend_history
from forecast_service.store import ModelStore


class Forecaster(MLModel):
    async def load(self) -> bool:
        artifact = await ModelStore().read(self.name)
        self.forecaster = folded_from_bytes(artifact.data, self.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        history = self.decode(payload.inputs[0], default_codec=NumpyCodec).ravel().tolist()
        forecast = self.forecaster.predict(extend_history(history))._asdict()
        outputs = [NumpyCodec.encode_output(name, np.array(v)) for name, v in forecast.items()]
        return InferenceResponse(model_name=self.name, outputs=outputs)


class Fleet(ModelRepository):
    """Stands for a folder per customer with a model-settings.json in it."""

    def __init__(self, root: str):
        """Take the folder that MLServer was started in, which has nothing to say."""

    async def find(self, name: str) -> list[ModelSettings]:
        return [settings for settings in await self.list() if settings.name == name]

    async def list(self) -> list[ModelSettings]:
        customer_ids = (await ModelStore().list())[: int(os.environ["PRELOADED"])]
        implementation = f"{__name__}.{Forecaster.__name__}"
        return [ModelSettings(name=name, implementation=implementation) for name in customer_ids]
