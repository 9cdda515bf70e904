"""The model that serves a customer and the one before it: promote a challenger, roll back."""

import math

from forecast_service.artifact import from_bytes, to_bytes
from forecast_service.errors import CorruptModelError, UnknownCustomerError
from forecast_service.model import ForecastModel, Scores
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore

PREVIOUS = "previous.safetensors"  # beside the model that serves, which services read
NO_SCORES = Scores(*[math.nan] * len(Scores._fields))  # of a model without a hold-out


class Versions:
    """A store with two models of a customer. The one that serves is whole at any moment.

    Every method raises StoreUnavailableError, as ModelStore does.
    """

    def __init__(self, settings: StoreSettings):
        """Take a store's settings. Raises what ModelStore does."""
        self.serving, self._previous = ModelStore(settings), ModelStore(settings, PREVIOUS)

    async def read(self, customer_id: str) -> list[ForecastModel]:
        """Return the model that serves, and the previous one if there is a good one.

        Raises:
            UnknownCustomerError, CorruptModelError: of the one that serves.
        """
        models = [from_bytes((await self.serving.read(customer_id)).data, customer_id)]
        try:
            models.append(from_bytes((await self._previous.read(customer_id)).data, customer_id))
        except (UnknownCustomerError, CorruptModelError):
            return models
        return models

    async def promote(self, model: ForecastModel) -> ForecastModel:
        """Let a model serve its customer, and keep the one that served so far.

        Returns it as it is stored, with its version. Killed in between, this leaves the one that
        served in both places.
        """
        data = to_bytes(model, NO_SCORES)
        stored = from_bytes(data, model.customer_id)
        served = await self.serving.read(model.customer_id)
        await self._previous.write(model.customer_id, served.data)
        await self.serving.write(model.customer_id, data)
        return stored

    async def roll_back(self, customer_id: str) -> ForecastModel:
        """Let the previous model serve, which is returned, and keep the other in its place.

        Rolled back once more, that one serves again. Killed in between, this leaves the previous
        model in both places.

        Raises:
            UnknownCustomerError: if there is no previous model.
            CorruptModelError: if it cannot be used.
        """
        try:
            previous = await self._previous.read(customer_id)
        except UnknownCustomerError:
            raise UnknownCustomerError(f"there is no previous model of {customer_id}") from None
        model = from_bytes(previous.data, customer_id)
        served = await self.serving.read(customer_id)
        await self.serving.write(customer_id, previous.data)
        await self._previous.write(customer_id, served.data)
        return model
