"""Ray Serve without multiplexing: an application for each customer, with one deployment in it.

Environment:
    PRELOADED    customers, the first in the order of their ids, that it serves, at /CUSTOMER_ID
"""

import asyncio
import os

from ray import serve
from starlette.requests import Request

from forecast_service.artifact import folded_from_bytes
from forecast_service.service import DEPLOYMENT_OPTIONS
from forecast_service.store import ModelStore
from model_cache import answer


@serve.deployment(
    **DEPLOYMENT_OPTIONS,
    ray_actor_options={"num_cpus": 0.05},  # or the machine would hold as many as it has cores
)
class OneForecaster:
    def __init__(self, customer_id: str, artifact: bytes):
        self.model = folded_from_bytes(artifact, customer_id)

    async def __call__(self, request: Request) -> dict:
        return answer(self.model, (await request.json())["sequence_data"])


async def read_first(customers: int) -> dict[str, bytes]:
    store = ModelStore()
    customer_ids = (await store.list())[:customers]
    artifacts = await asyncio.gather(*map(store.read, customer_ids))
    return {name: read.data for name, read in zip(customer_ids, artifacts, strict=True)}


apps = {
    f"/{customer_id}": OneForecaster.bind(customer_id, data)
    for customer_id, data in asyncio.run(read_first(int(os.environ["PRELOADED"]))).items()
}
