"""What goes over HTTP: the request, the response, and a status for whatever goes wrong."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal, Protocol, TypeVar

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from forecasting import COVERAGE, HORIZON, LAGS, SEASON, Forecast, extend_history
from model_artifact import CorruptModelError
from model_store import (
    CUSTOMER_ID,
    InvalidCustomerIdError,
    StoreUnavailableError,
    UnknownCustomerError,
)
from proxy_guard import MAX_BODY_BYTES, RETRY_AFTER_S, UNAVAILABLE
from tenants import (
    TENANT_HEADER,
    ForbiddenCustomerError,
    InvalidTokenError,
    MissingTokenError,
    is_on,
)

PROBLEMS = {
    InvalidCustomerIdError: (400, "The model id is missing or malformed."),
    UnknownCustomerError: (404, "This customer has no model."),
    CorruptModelError: (502, "This customer's stored model is damaged."),
    StoreUnavailableError: (
        503,
        "The model store does not answer; retry after `Retry-After` seconds.",
    ),
}
NO_GOOD_TOKEN = f"The header `{TENANT_HEADER}` has no token, or none that is good."
TOKEN_PROBLEMS = {  # while tenants are kept apart
    MissingTokenError: (401, NO_GOOD_TOKEN),
    InvalidTokenError: (401, NO_GOOD_TOKEN),
    ForbiddenCustomerError: (403, "The token is not for this customer, if there is one."),
}
STATUSES = {kind: status for kind, (status, _) in (PROBLEMS | TOKEN_PROBLEMS).items()}
MODEL_ID_HEADER = "serve_multiplexed_model_id"
MAX_HISTORY = 10_000  # values in a request: 27 years of days
MAX_VALUE = (
    1e12  # beyond it a value is a mistake, and sums of them would come near what a float can hold
)
MAX_FAULTS = 10  # reported of one request
BODY_TIMEOUT_S = 10  # for the whole of a body
CHALLENGE = 'Bearer realm="forecasts"'  # as RFC 6750 has it
PROBLEM_HEADERS = {
    StoreUnavailableError: {"Retry-After": str(RETRY_AFTER_S)},
    MissingTokenError: {"WWW-Authenticate": CHALLENGE},
    InvalidTokenError: {"WWW-Authenticate": f'{CHALLENGE}, error="invalid_token"'},
}
Body = TypeVar("Body", bound=BaseModel)


class Forecaster(Protocol):
    """What a model has to have to be served under this contract."""

    customer_id: str
    version: str

    def predict(self, lags: np.ndarray) -> Forecast: ...


class InvalidHistoryError(ValueError):
    """A history that came through a deployment handle is not one to forecast from."""


class ForecastRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    sequence_data: list[
        Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE, allow_inf_nan=False)]
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
            raise InvalidHistoryError(
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            ) from None


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


async def read_body(request: Request, model: type[Body]) -> Body:
    """Parse a request's body, whatever its content type says.

    Raises:
        HTTPException: 413, if it is over MAX_BODY_BYTES; 408, if it takes over BODY_TIMEOUT_S.
        RequestValidationError: if it is not what `model` takes.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):  # who sends nothing would hold a place
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise HTTPException(413, f"a body is at most {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        late = f"the body did not arrive in {BODY_TIMEOUT_S} s"
        raise HTTPException(408, late, {"Connection": "close"}) from None
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        located = [fault | {"loc": ("body", *fault["loc"])} for fault in faults]
        raise RequestValidationError(located) from None


async def report_problem(request: Request, error: Exception) -> JSONResponse:
    """Answer an error that STATUSES lists."""
    kind = type(error)
    return JSONResponse({"detail": str(error)}, STATUSES[kind], PROBLEM_HEADERS.get(kind))


async def report_faults(request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer a body that is no ForecastRequest: where it is at fault, and what is wanted there."""
    faults = [Fault(**fault).model_dump() for fault in error.errors()[:MAX_FAULTS]]
    return JSONResponse({"detail": faults}, 422)


def require_model_id(model_id: str) -> str:
    """Return a request's model id. Raises InvalidCustomerIdError if there is none."""
    if not model_id:
        raise InvalidCustomerIdError(
            f"no model id: name the customer in the header {MODEL_ID_HEADER}"
        )
    return model_id


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


def render(answer: ForecastResponse, hit: bool, elapsed_s: float) -> Response:
    """Return an answer as HTTP.

    Its headers say who answers, how long it took, and if the model was in memory.
    """
    outcome = "hit" if hit else "miss"
    headers = {
        "Server-Timing": f"cache;desc={outcome};dur={elapsed_s * 1000:.1f}",
        "X-Replica-Id": serve.get_replica_context().replica_id.unique_id,
    }
    body = answer.model_dump_json(exclude_none=True)
    return Response(body, media_type="application/json", headers=headers)


HANDLE_ERRORS = *STATUSES, InvalidHistoryError  # what a deployment handle of this service may raise
NO_ANSWER = BackPressureError, RayActorError  # no replica took a call of a handle, or it died
TRY_AGAIN = {"status": 503, "detail": UNAVAILABLE}


def describe(error: Exception) -> dict[str, int | str]:
    """Return a HandleProblem's fields for one of HANDLE_ERRORS."""
    return {"status": STATUSES.get(type(error), 422), "detail": str(error)}


BODY_RESPONSES = {
    408: {"model": Problem, "description": f"The body took over {BODY_TIMEOUT_S} s to arrive."},
    413: {"model": Problem, "description": f"The body is over {MAX_BODY_BYTES} bytes."},
    422: {"model": InvalidBody, "description": "The body is not what is wanted; faults are named."},
}


def describe_problems(problems: dict[type, tuple[int, str]]) -> dict:
    """Return the OpenAPI description of errors with their statuses."""
    return {status: {"model": Problem, "description": about} for status, about in problems.values()}


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request itself, and makes the response.

    FastAPI documents it, and spends no time on parameters that the endpoint does not have.
    """

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:
        return self.endpoint


def create_api(title: str, route_class: type[APIRoute] = APIRoute) -> FastAPI:
    """Return a FastAPI application that answers every error above.

    While tenants are kept apart, its OpenAPI document asks for a token. The routes check it.
    """
    handlers = {RequestValidationError: report_faults, **dict.fromkeys(STATUSES, report_problem)}
    options = {"title": title, "version": "1.0.0", "exception_handlers": handlers}
    if is_on():
        token = APIKeyHeader(name=TENANT_HEADER, description="`Bearer <token>`", auto_error=False)
        options["dependencies"] = [Security(token)]
        options["responses"] = describe_problems(TOKEN_PROBLEMS)
    app = FastAPI(**options)
    app.router.route_class = route_class
    return app


def json_body(model: type[BaseModel]) -> dict:
    """Return the OpenAPI description of a body that read_body() parses, unseen by FastAPI."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"required": True, "content": content}


FORECAST_ROUTE = {
    "path": "/",
    "operation_id": "forecast",
    "summary": f"Forecast the next {HORIZON} days of a customer",
    "response_model": ForecastResponse,
    "responses": BODY_RESPONSES | describe_problems(PROBLEMS),
    "openapi_extra": {
        "parameters": [
            {
                "name": MODEL_ID_HEADER,
                "in": "header",
                "required": True,
                "description": "The customer; the header's name may have hyphens instead.",
                "schema": {"type": "string", "pattern": f"^{CUSTOMER_ID.pattern}$"},
                "example": "customer_123",
            }
        ],
        "requestBody": json_body(ForecastRequest),
    },
}
