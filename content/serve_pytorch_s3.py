"""A second service, of PyTorch models in an S3 bucket: s3://my-bucket/1/model.pt, 2/model.pt ...

    serve run serve_pytorch_s3:app

Environment: MODEL_STORE and AWS_... as in model_store.py, the rest as in
serve_forecast_multiplex.py, but MODELS_PER_REPLICA, which is 3 here.
"""

import asyncio
import time

import torch
from fastapi import Request, Response
from ray import serve

from http_contract import (
    FORECAST_ROUTE,
    ForecastRequest,
    ForecastResponse,
    create_api,
    read_body,
    render,
    require_model_id,
    respond,
)
from model_loader import Holder, ModelLoader
from model_reloader import ModelReloader
from model_store import ModelStore
from serve_forecast_multiplex import DEPLOYMENT_OPTIONS, RELOAD_CHECK_S
from tenants import TENANT_HEADER, Tenants
from torch_artifact import from_bytes
from torch_forecaster import TorchForecaster

api = create_api("Forecasts, a PyTorch model per district")


@serve.deployment(**DEPLOYMENT_OPTIONS)
@serve.ingress(api)
class PyTorchService:
    """Answers with the district's model that the request's model id names."""

    async def __init__(self):
        self.tenants = Tenants.from_environment()
        torch.set_num_threads(1)  # replicas share the machine's cores
        self.loader = ModelLoader(ModelStore(artifact="model.pt"), from_bytes, in_thread=True)
        if RELOAD_CHECK_S:
            self.reloading = asyncio.create_task(ModelReloader(self.loader, RELOAD_CHECK_S).run())

    @serve.multiplexed(max_num_models_per_replica=3)
    async def get_model(self, model_id: str) -> Holder[TorchForecaster]:
        """Put a model into Ray Serve's cache. It is in memory by now, so this does not wait."""
        return await self.loader.load(model_id)

    async def forecast(self, sequence_data: list[float], authorization: str | None = None) -> dict:
        """Answer a handle as HTTP is answered. Raises what http_contract.HANDLE_ERRORS lists."""
        if self.tenants:
            self.tenants.require(authorization, serve.get_multiplexed_model_id())
        answer = await self._forecast(ForecastRequest.of(sequence_data))
        return answer.model_dump(exclude_none=True)

    @api.post(**FORECAST_ROUTE)
    async def post_forecast(self, request: Request) -> Response:
        """Forecast with the model in the header `serve_multiplexed_model_id`."""
        started = time.perf_counter()
        hit = serve.get_multiplexed_model_id() in self.loader
        if self.tenants:
            authorization = request.headers.get(TENANT_HEADER)
            self.tenants.require(authorization, serve.get_multiplexed_model_id())
        answer = await self._forecast(await read_body(request, ForecastRequest))
        return render(answer, hit, time.perf_counter() - started)

    async def _forecast(self, request: ForecastRequest) -> ForecastResponse:
        model_id = require_model_id(serve.get_multiplexed_model_id())
        holder = await self.loader.load(model_id)
        model = holder.model
        await self.get_model(model_id)
        return respond(model, request)


app = PyTorchService.bind()
