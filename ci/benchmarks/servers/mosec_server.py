"""MOSEC: `python mosec_server.py --port PORT`. The customer is in the body.

A worker sees no header.

Environment:
    MAX_BATCH_SIZE    requests that the worker takes at once; default 1. A worker has no event loop
                      of its own: without batches, cold customers wait for one another.
    WORKERS           processes, each with a cache of its own; default 1
"""

import asyncio
import os

import mosec

from model_cache import ModelCache, answer, count_loads

MAX_BATCH_SIZE = int(os.environ.get("MAX_BATCH_SIZE", 1))
WORKERS = int(os.environ.get("WORKERS", 1))
MAX_WAIT_MS = 1  # for a batch to fill; the shortest that there is


class Forecaster(mosec.Worker):
    def __init__(self):
        count_loads()
        self.cache = ModelCache()
        self.runner = asyncio.Runner()

    def forward(self, data: dict | list[dict]) -> dict | list[dict]:
        if isinstance(data, dict):
            return self.runner.run(self.forecast(data))
        return self.runner.run(self.forecast_all(data))

    async def forecast(self, request: dict) -> dict:
        return answer(await self.cache.get(request["customer_id"]), request["sequence_data"])

    async def forecast_all(self, requests: list[dict]) -> list[dict]:
        return await asyncio.gather(*map(self.forecast, requests))


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(
        Forecaster, num=WORKERS, max_batch_size=MAX_BATCH_SIZE, max_wait_time=MAX_WAIT_MS
    )
    server.run()
