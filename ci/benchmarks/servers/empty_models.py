"""What Ray Serve itself takes, of time and memory: no forecast, and an empty object for a model.

A multiplexed handler that reads the body and answers a constant. What a service answers in less
than this, it cannot have; what a model takes beyond this is the service's own.
"""

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from forecast_service.service import DEPLOYMENT_OPTIONS
from forecast_service.settings import Settings

CONSTANT = b"{}"


@serve.deployment(**DEPLOYMENT_OPTIONS)
class EmptyModels:
    def __init__(self, settings: Settings):
        @serve.multiplexed(max_num_models_per_replica=settings.models_per_replica)
        async def get_model(customer_id: str) -> object:
            return object()

        self.get_model = get_model

    async def __call__(self, request: Request) -> Response:
        await self.get_model(serve.get_multiplexed_model_id())
        await request.body()
        return Response(CONSTANT, media_type="application/json")


def app(settings: Settings) -> serve.Application:
    """Build the application, as the other services' modules do."""
    return EmptyModels.bind(settings)
