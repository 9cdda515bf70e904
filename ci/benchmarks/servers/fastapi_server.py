"""FastAPI and a dict of models: `uvicorn fastapi_server:app`. What an engineer writes by hand.

uvicorn takes the number of processes from WEB_CONCURRENCY. Each has a cache of its own.
"""

from typing import Annotated

from fastapi import FastAPI, Header
from pydantic import BaseModel, Field

from forecast_service.model import SEASON
from model_cache import ModelCache, answer, count_loads


class ForecastRequest(BaseModel):
    sequence_data: list[float] = Field(min_length=SEASON)


class ForecastResponse(BaseModel):
    customer_id: str
    forecast: list[float]
    lower: list[float]
    upper: list[float]
    model_version: str


CustomerId = Annotated[str, Header(alias="serve_multiplexed_model_id")]
app = FastAPI()
count_loads()
cache = ModelCache()


@app.post("/")
async def forecast(body: ForecastRequest, customer_id: CustomerId) -> ForecastResponse:
    return ForecastResponse(**answer(await cache.get(customer_id), body.sequence_data))
