"""What goes over HTTP: the request, the response, and an answer to whatever goes wrong."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal, Protocol, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from pydantic_core import from_json

from forecast_service.customer_ids import CUSTOMER_ID, MODEL_ID_HEADER
from forecast_service.errors import (
    BodyTooLargeError,
    BodyTooSlowError,
    CorruptModelError,
    ForbiddenCustomerError,
    InvalidCustomerIdError,
    InvalidHistoryError,
    MissingTokenError,
    ServiceError,
    StoreUnavailableError,
    UnknownCustomerError,
)
from forecast_service.model import COVERAGE, HORIZON, LAGS, SEASON, Forecast, extend_history
from forecast_service.proxy_guard import MAX_BODY_BYTES
from forecast_service.tokens import TENANT_HEADER

MAX_HISTORY = 10_000  # values in a request: 27 years of days
MAX_VALUE = 1e12  # beyond it a value is a mistake, and sums of them come near what a float can hold
MAX_FAULTS = 10  # reported of one request
BODY_TIMEOUT_S = 10  # for the whole of a body
Body = TypeVar("Body", bound=BaseModel)


class Forecaster(Protocol):
    """What a model has to have to be served under this contract."""

    customer_id: str
    version: str

    def predict(self, lags: np.ndarray) -> Forecast: ...


class ForecastRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    sequence_data: Annotated[
        list[Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE, allow_inf_nan=False)]],
        FailFast(),
    ] = Field(
        min_length=SEASON,
        max_length=MAX_HISTORY,
        description=f"Daily values, oldest first. The last {LAGS} count; a shorter history is "
        "extended backwards by its own first week.",
        examples=[[100, 102, 98, 105, 110, 108, 112, 115, 118, 120]],
    )

    @classmethod
    def of(cls, sequence_data: list[float]) -> "ForecastRequest":
        """Check a history that comes from Python. Raises InvalidHistoryError."""
        try:
            return cls(sequence_data=sequence_data)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            raise InvalidHistoryError(f"{where}: {fault['msg']}") from None


class ForecastResponse(BaseModel):
    customer_id: str
    forecast: list[float] = Field(description=f"The next {HORIZON} days.")
    lower: list[float] = Field(description=f"Where the {COVERAGE:.0%} interval begins.")
    upper: list[float] = Field(description=f"Where the {COVERAGE:.0%} interval ends.")
    model_version: str
    padded: Literal[True] | None = Field(
        None, description="There, and true, if the history was extended."
    )


class Problem(BaseModel):
    detail: str


class HandleProblem(Problem):
    status: int = Field(description="What HTTP would have answered.")


class Fault(BaseModel):
    loc: list[str | int] = Field(
        description="Where it is, for instance `body`, `sequence_data`, `3`."
    )
    msg: str = Field(description="What is wanted there.")
    type: str


class InvalidBody(BaseModel):
    detail: list[Fault]


def respond(model: Forecaster, request: ForecastRequest) -> ForecastResponse:
    """Return a model's answer to a request."""
    history = np.array(request.sequence_data)
    forecast, lower, upper = model.predict(extend_history(history))
    return ForecastResponse(
        customer_id=model.customer_id,
        forecast=forecast.tolist(),
        lower=lower.tolist(),
        upper=upper.tolist(),
        model_version=model.version,
        padded=len(history) < LAGS or None,
    )


async def read_body(request: Request, model: type[Body]) -> Body:
    """Parse a request's body, whatever its content type says.

    Raises:
        BodyTooLargeError: if it is over MAX_BODY_BYTES.
        BodyTooSlowError: if it takes over BODY_TIMEOUT_S.
        RequestValidationError: if it is not what `model` takes.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):  # who sends nothing would hold a place
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise BodyTooLargeError(f"a body is at most {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise BodyTooSlowError(f"the body did not arrive in {BODY_TIMEOUT_S} s") from None
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        located = [fault | {"loc": ("body", *fault["loc"])} for fault in faults[:MAX_FAULTS]]
        raise RequestValidationError(located) from None


class JsonRequest(Request):
    """A request whose body is JSON or a fault that FastAPI answers with 422, whatever it holds."""

    async def json(self) -> object:
        try:
            return from_json(await self.body())
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None


class JsonRoute(APIRoute):
    """A route of FastAPI's own kind, with typed parameters, that reads a JsonRequest.

    FastAPI would take a body for JSON only if its content type says so: here it need not.
    """

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            headers = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
            return await handle(JsonRequest(request.scope | {"headers": headers}, request.receive))

        return handle_json


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request itself, and makes the response.

    FastAPI documents it, and spends no time on parameters that the endpoint does not have.
    """

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:
        return self.endpoint


def create_api(title: str, route_class: type[APIRoute] = JsonRoute) -> FastAPI:
    """Return a FastAPI application that answers a ServiceError, and a body that is not wanted."""
    handlers = {ServiceError: report_problem, RequestValidationError: report_faults}
    app = FastAPI(
        title=title, version="1.0.0", exception_handlers=handlers, strict_content_type=False
    )
    app.router.route_class = route_class
    return app


async def report_problem(request: Request, error: ServiceError) -> JSONResponse:
    """Answer with the status and the headers of an error."""
    return JSONResponse({"detail": str(error)}, error.status, error.headers)


async def report_faults(request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer where a body is at fault, and what is wanted there: never with what was sent.

    FastAPI's own handler sends the input back, and fails on one that JSON has no word for.
    """
    faults = [Fault(**fault).model_dump() for fault in error.errors()[:MAX_FAULTS]]
    return JSONResponse({"detail": faults}, 422)


def describe(error: ServiceError) -> dict[str, int | str]:
    """Return a HandleProblem's fields."""
    return {"status": error.status, "detail": str(error)}


def describe_responses(*errors: type[ServiceError]) -> dict[int | str, dict]:
    """Return the OpenAPI description of errors, and of a body that is not wanted."""
    return {
        422: {"model": InvalidBody, "description": "The body is not what is wanted, and where."},
        **{error.status: {"model": Problem, "description": error.__doc__} for error in errors},
    }


def json_body(model: type[BaseModel]) -> dict:
    """Return the OpenAPI description of a body that read_body() parses, unseen by FastAPI."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"required": True, "content": content}


MODEL_ID_PARAMETER = {
    "name": MODEL_ID_HEADER,
    "in": "header",
    "required": True,
    "description": "The customer; the header's name may have hyphens instead.",
    "schema": {"type": "string", "pattern": f"^{CUSTOMER_ID.pattern}$"},
    "example": "customer_123",
}
TOKEN_PARAMETER = {
    "name": TENANT_HEADER,
    "in": "header",
    "required": False,
    "description": "`Bearer <token>`: wanted if the service was started with a tenant_key.",
    "schema": {"type": "string"},
}
BODY_ERRORS = BodyTooSlowError, BodyTooLargeError
TOKEN_ERRORS = MissingTokenError, ForbiddenCustomerError
FORECAST_ROUTE = {  # of FastAPI's post(): what both services document alike
    "path": "/",
    "operation_id": "forecast",
    "summary": f"Forecast the next {HORIZON} days of a customer",
    "response_model": ForecastResponse,
    "response_model_exclude_none": True,
    "responses": describe_responses(
        InvalidCustomerIdError, UnknownCustomerError, CorruptModelError, StoreUnavailableError
    ),
    "openapi_extra": {"parameters": [MODEL_ID_PARAMETER]},
}
PRODUCTION_ROUTE = {
    **FORECAST_ROUTE,
    "responses": FORECAST_ROUTE["responses"] | describe_responses(*BODY_ERRORS, *TOKEN_ERRORS),
    "openapi_extra": {
        "parameters": [MODEL_ID_PARAMETER, TOKEN_PARAMETER],
        "requestBody": json_body(ForecastRequest),
    },
}
