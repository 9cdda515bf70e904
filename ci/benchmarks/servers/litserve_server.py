"""LitServe: `python litserve_server.py HOST PORT`. The customer is in the body.

All methods are asynchronous, as its guide wants where predict() waits for something. Its ZeroMQ
queue (fast_queue=True) is not on: 0.2.19 takes the option and goes on without (its issue 751).

Environment:
    WORKERS    processes, each with a cache of its own; default 1
"""

import os
import sys

import litserve

from model_cache import ModelCache, answer, count_loads


class ForecastAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:
        count_loads()
        self.cache = ModelCache()

    async def decode_request(self, request: dict) -> dict:
        return request

    async def predict(self, request: dict) -> dict:
        model = await self.cache.get(request["customer_id"])
        return answer(model, request["sequence_data"])

    async def encode_response(self, output: dict) -> dict:
        return output


if __name__ == "__main__":
    host, port = sys.argv[1:]
    server = litserve.LitServer(
        ForecastAPI(api_path="/", enable_async=True),
        accelerator="cpu",
        workers_per_device=int(os.environ.get("WORKERS", 1)),
    )
    server.run(host=host, port=int(port), log_level="warning", generate_client_file=False)
