"""BentoML: `bentoml serve bentoml_server:ForecastingService`.

Environment:
    WORKERS    processes, each with a cache of its own; default 1
"""

import os
from typing import Annotated

import bentoml
from annotated_types import MinLen

from forecast_service.model import SEASON
from model_cache import ModelCache, answer, count_loads


# A request's timer stays in memory for all of its timeout. At the default, 60 s, there are so many
# that collecting garbage stops the server for 0.2 s: allow what the benchmark's client waits.
@bentoml.service(
    workers=int(os.environ.get("WORKERS", 1)),
    traffic={"timeout": 10},
    logging={"access": {"enabled": False}},
)
class ForecastingService:
    def __init__(self):
        count_loads()
        self.cache = ModelCache()

    @bentoml.api(route="/")
    async def forecast(
        self, sequence_data: Annotated[list[float], MinLen(SEASON)], ctx: bentoml.Context
    ) -> dict:
        model = await self.cache.get(ctx.request.headers["serve_multiplexed_model_id"])
        return answer(model, sequence_data)
