"""What a peer's server does with models: the same in each, so that the frameworks are compared.

Environment, beside that of content/forecast_service/settings.py, which says where models lie, how
far away that is, and how many of them stay in memory:
    LOADS_FILE    grows by a '.' at each read of a model, and by a '?' whenever the store is asked
                  if a model in memory is still the newest; default none
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps

from forecast_service.artifact import folded_from_bytes
from forecast_service.model import FoldedModel, extend_history
from forecast_service.settings import Settings
from forecast_service.store import Artifact, ModelStore


class ModelCache:
    """Models by customer id, the least recently used first. Cold customers do not queue."""

    def __init__(self):
        settings = Settings()
        self._store = ModelStore(settings)
        self._capacity = settings.models_per_replica
        self._models: OrderedDict[str, FoldedModel] = OrderedDict()

    async def get(self, customer_id: str) -> FoldedModel:
        """Return a customer's model. Raises what ModelStore.read and folded_from_bytes raise."""
        if customer_id in self._models:
            self._models.move_to_end(customer_id)
            return self._models[customer_id]
        artifact = await self._store.read(customer_id)
        model = self._models[customer_id] = folded_from_bytes(artifact.data, customer_id)
        if len(self._models) > self._capacity:
            self._models.popitem(last=False)
        return model


def answer(model: FoldedModel, sequence_data: list[float]) -> dict:
    """Return what this project's services answer."""
    forecast, lower, upper = model.predict(extend_history(sequence_data))
    return {
        "customer_id": model.customer_id,
        "forecast": forecast,
        "lower": lower,
        "upper": upper,
        "model_version": model.version,
    }


def count_loads() -> None:
    """Count what this process asks any ModelStore for in LOADS_FILE, if there is one."""
    if path := os.environ.get("LOADS_FILE"):
        counter = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        ModelStore.read = _counted(ModelStore.read, counter, b".")
        ModelStore.read_if_changed = _counted(ModelStore.read_if_changed, counter, b"?")


def _counted(method: Callable, counter: int, mark: bytes) -> Callable:
    @wraps(method)
    async def counted(*args: object) -> Artifact | None:
        os.write(counter, mark)
        return await method(*args)

    return counted
