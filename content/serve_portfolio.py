"""Composition: one request, the forecasts of many customers, and their total.

    serve run serve_portfolio:app --name portfolio --route-prefix /portfolio

Asks the application of serve_forecast_production.py, which runs under its default name. If that one
has a tenant_key, it checks every customer's token; given the same one (tenant_key=...), this
application turns a request without a valid token away before it fans out.
"""

import asyncio
from typing import Any

from fastapi import Request
from pydantic import BaseModel, Field
from ray import serve

from forecast_service.contract import (
    BODY_ERRORS,
    TOKEN_PARAMETER,
    ForecastResponse,
    HandleProblem,
    RequestBody,
    create_api,
    describe_responses,
    json_body,
    read_body,
)
from forecast_service.errors import MissingTokenError
from forecast_service.model import HORIZON
from forecast_service.proxy_guard import MAX_BODY_BYTES
from forecast_service.replica import NO_ANSWER, TRY_AGAIN
from forecast_service.service import DEPLOYMENT_OPTIONS
from forecast_service.settings import TokenSettings
from forecast_service.tokens import TENANT_HEADER, Tenants

MAX_CUSTOMERS = 1000  # in a request
FORECASTS_AT_ONCE = 200  # in all requests: what a forecaster takes, with its queue left to others

api = create_api("Forecasts of a portfolio of customers")


class PortfolioRequest(RequestBody):
    max_bytes = MAX_BODY_BYTES  # MAX_CUSTOMERS with the values that count, however many digits
    max_fields = 2 * MAX_CUSTOMERS  # so many customers are counted, for a helpful answer
    max_values = max_bytes // 2  # that is, any number that has the room
    wanted = f"an object with histories, an object of at most {MAX_CUSTOMERS} fields, and no more"

    histories: dict[str, Any] = Field(
        min_length=1,
        max_length=MAX_CUSTOMERS,
        description="By customer id, what the forecast service takes as `sequence_data`. "
        "Checked there, so that a wrong one does not cost the others their forecast.",
        examples=[{"customer_123": [100, 102, 98, 105, 110, 108, 112], "customer_456": [1] * 28}],
    )


class PortfolioResponse(BaseModel):
    total: list[float] = Field(description=f"Of the next {HORIZON} days: the sum of all forecasts.")
    parts: dict[str, ForecastResponse | HandleProblem] = Field(description="By customer id.")


PORTFOLIO_ROUTE = {
    "path": "/",
    "response_model_exclude_none": True,
    "responses": describe_responses(*BODY_ERRORS, MissingTokenError),
    "openapi_extra": {"parameters": [TOKEN_PARAMETER], "requestBody": json_body(PortfolioRequest)},
}


@serve.deployment(**DEPLOYMENT_OPTIONS, ray_actor_options={"num_cpus": 0})  # it only waits
@serve.ingress(api)
class PortfolioService:
    """Fans out to the forecasters, each call with its own customer's model id."""

    def __init__(self, settings: TokenSettings):
        self.tenants = Tenants.of(settings.tenant_key)
        self.forecasters = serve.get_app_handle("default")
        self.at_once = asyncio.Semaphore(FORECASTS_AT_ONCE)

    @api.post(**PORTFOLIO_ROUTE)
    async def post_portfolio(self, request: Request) -> PortfolioResponse:
        """Forecast for every customer at once. One that fails has an error for its part."""
        authorization = request.headers.get(TENANT_HEADER)
        if self.tenants:
            self.tenants.customers(authorization)  # or raise; the forecasters check each customer
        histories = (await read_body(request, PortfolioRequest)).histories
        parts = await asyncio.gather(
            *(self._part(name, history, authorization) for name, history in histories.items())
        )
        forecasts = [part["forecast"] for part in parts if "forecast" in part]
        total = [round(sum(day), 2) for day in zip(*forecasts, strict=True)] or [0.0] * HORIZON
        return PortfolioResponse(total=total, parts=dict(zip(histories, parts, strict=True)))

    async def _part(self, customer_id: str, history: Any, authorization: str | None) -> dict:
        forecaster = self.forecasters.options(multiplexed_model_id=customer_id)
        try:
            async with self.at_once:
                return await forecaster.answer.remote(history, authorization)
        except NO_ANSWER:
            return TRY_AGAIN


def app(settings: TokenSettings) -> serve.Application:
    """Build the application: `serve run` and config files hand the arguments over."""
    return PortfolioService.bind(settings)
