"""What goes over HTTP: the request, the response, and a status for whatever goes wrong."""

from typing import Annotated, Literal, Protocol, TypeVar

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve

from forecasting import COVERAGE, HORIZON, LAGS, SEASON, Forecast, extend_history
from model_artifact import CorruptModelError
from model_store import (
    CUSTOMER_ID,
    InvalidCustomerIdError,
    StoreUnavailableError,
    UnknownCustomerError,
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
MODEL_ID_HEADER = "serve_multiplexed_model_id"
MAX_HISTORY = 10_000  # values in a request: 27 years of days
MAX_VALUE = (
    1e12  # beyond it a value is a mistake, and sums of them would come near what a float can hold
)
MAX_BODY_BYTES = 1024 * 1024  # four times what MAX_HISTORY values take at their longest
MAX_FAULTS = 10  # reported of one request
RETRY_AFTER_S = 2
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
        HTTPException: 413, if it is over MAX_BODY_BYTES.
        RequestValidationError: if it is not what `model` takes.
    """
    body = bytearray()
    async for chunk in request.stream():  # to its end: who still sends would not see an answer
        if len(body) <= MAX_BODY_BYTES:
            body += chunk
    if len(body) > MAX_BODY_BYTES:
        raise HTTPException(413, f"a body is at most {MAX_BODY_BYTES} bytes")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        located = [fault | {"loc": ("body", *fault["loc"])} for fault in faults]
        raise RequestValidationError(located) from None


async def report_problem(request: Request, error: Exception) -> JSONResponse:
    """Answer an error that PROBLEMS lists."""
    status, _ = PROBLEMS[type(error)]
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
    return JSONResponse({"detail": str(error)}, status, headers)


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


HANDLE_ERRORS = *PROBLEMS, InvalidHistoryError  # what a deployment handle of this service may raise


def describe(error: Exception) -> dict[str, int | str]:
    """Return a HandleProblem's fields for one of HANDLE_ERRORS that a deployment handle raised."""
    statuses = [status for kind, (status, _) in PROBLEMS.items() if isinstance(error, kind)]
    cause = getattr(error, "cause", error)  # Ray's own error has the whole remote stack trace
    return {"status": statuses[0] if statuses else 422, "detail": str(cause)}


def create_api(title: str) -> FastAPI:
    """Return a FastAPI application that answers every error above."""
    handlers = {RequestValidationError: report_faults, **dict.fromkeys(PROBLEMS, report_problem)}
    return FastAPI(title=title, version="1.0.0", exception_handlers=handlers)


BODY_RESPONSES = {
    413: {"model": Problem, "description": f"The body is over {MAX_BODY_BYTES} bytes."},
    422: {"model": InvalidBody, "description": "The body is not what is wanted; faults are named."},
}


def json_body(model: type[BaseModel]) -> dict:
    """Return the OpenAPI description of a body that read_body() parses, unseen by FastAPI."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"required": True, "content": content}


FORECAST_ROUTE = {
    "path": "/",
    "operation_id": "forecast",
    "summary": f"Forecast the next {HORIZON} days of a customer",
    "response_model": ForecastResponse,
    "responses": BODY_RESPONSES
    | {status: {"model": Problem, "description": about} for status, about in PROBLEMS.values()},
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
