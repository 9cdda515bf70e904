"""What goes over HTTP: the request, the response, and an answer to whatever goes wrong."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, ClassVar, Literal, Protocol, TypeVar, get_type_hints

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from starlette.types import Receive, Scope, Send

from forecast_service.customer_ids import CUSTOMER_ID, MODEL_ID_HEADER
from forecast_service.errors import (
    BodyTooLargeError,
    BodyTooSlowError,
    ClientLeftError,
    CorruptModelError,
    ForbiddenCustomerError,
    InvalidCustomerIdError,
    InvalidHistoryError,
    LostBodyError,
    MissingTokenError,
    ModelTooLargeError,
    ServiceError,
    StoreUnavailableError,
    UnknownCustomerError,
    UnsupportedEncodingError,
)
from forecast_service.model import COVERAGE, HORIZON, LAGS, SEASON, Forecast, extend_history
from forecast_service.proxy_guard import LOST_BODY, MAX_QUOTED
from forecast_service.tokens import TENANT_HEADER

MAX_HISTORY = 10_000  # values in a request: 27 years of days
MAX_VALUE = 1e12  # beyond it a value is a mistake, and sums of them come near what a float can hold
MAX_VALUE_BYTES = 40  # 24 of the longest float, the rest for a comma, a line end and its indent
MAX_FAULTS = 10  # reported of one request
BODY_TIMEOUT_S = 10  # for the whole of a body
MIN_FIELD_BYTES = 5  # `"":1,`
LEFT = "the client left before its body was complete"
OPENERS = b'"', b"[", b"{"
NUMBERS_AND_SPACE = b"0123456789+-.eE \t\r\n"
Body = TypeVar("Body", bound="RequestBody")
Answer = Callable[[Request], Awaitable[Response]]


class Forecaster(Protocol):
    """What a model has to have to be served under this contract."""

    customer_id: str
    version: str

    @property
    def size_bytes(self) -> int: ...  # of memory: what a budget counts

    def predict(self, lags: Sequence[float]) -> Forecast: ...


class RequestBody(BaseModel):
    """A body of known fields, and how much of what costs time a good one can have.

    Pydantic collects an error for each unknown field, and JSON is parsed to its end whatever is
    wrong with its beginning: what has more than this is refused before.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    max_bytes: ClassVar[int]
    max_fields: ClassVar[int]  # of all objects in it
    max_values: ClassVar[int]  # of all lists and objects in it, these themselves included
    wanted: ClassVar[str]  # after "Input should be "


class ForecastRequest(RequestBody):
    max_bytes = MAX_HISTORY * MAX_VALUE_BYTES
    max_fields = 100  # so many unknown ones are named, ...
    max_values = 2 * MAX_HISTORY  # ... and so many values are counted, for a helpful answer
    wanted = f"an object with sequence_data, a list of at most {MAX_HISTORY} numbers, and no more"

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
    history = request.sequence_data
    forecast, lower, upper = map(list, model.predict(extend_history(history)))
    return ForecastResponse(
        customer_id=model.customer_id,
        forecast=forecast,
        lower=lower,
        upper=upper,
        model_version=model.version,
        padded=len(history) < LAGS or None,
    )


class InvalidBodyError(RequestValidationError):
    """The body is not what is wanted: its errors() say where, and what is."""


async def read_body(request: Request, model: type[Body]) -> Body:
    """Parse a request's body, whatever its headers say of it.

    Raises:
        BodyTooLargeError: if it is over the `max_bytes` of `model`.
        BodyTooSlowError: if it takes over BODY_TIMEOUT_S.
        ClientLeftError: if it ends before it is complete.
        UnsupportedEncodingError: if it is compressed.
        LostBodyError: if the server has dropped it.
        InvalidBodyError: if it is not what `model` takes.
    """
    body, complete = bytearray(), False
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):  # who sends nothing would hold a place
            while not complete:
                try:
                    message = await request.receive()
                except Exception as error:  # Ray's default proxy may end a body so, as an error
                    raise ClientLeftError(LEFT) from error
                if message["type"] == "http.disconnect":
                    raise ClientLeftError(LEFT)
                body += message.get("body", b"")
                if len(body) > model.max_bytes:
                    raise BodyTooLargeError(f"a body is at most {model.max_bytes} bytes")
                complete = not message.get("more_body", False)
    except TimeoutError:
        raise BodyTooSlowError(f"the body did not arrive in {BODY_TIMEOUT_S} s") from None
    if is_crowded(body, model):
        faults = [{"type": "crowded", "loc": ("body",), "msg": f"Input should be {model.wanted}"}]
    else:
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            faults = locate_faults(error)
    require_intact(request, body)
    raise InvalidBodyError(faults)


def require_intact(request: Request, body: bytearray) -> None:
    """Raise UnsupportedEncodingError or LostBodyError, if that is why a body is not right."""
    encodings = ",".join(request.headers.getlist("content-encoding")).lower().split(",")
    for encoding in map(str.strip, encodings):
        if encoding not in ("", "identity"):
            raise UnsupportedEncodingError(
                f"Content-Encoding: {encoding[:MAX_QUOTED]} is not taken: send the body as it is"
            )
    upgrade = request.headers.get("upgrade")
    if upgrade and not body:
        raise LostBodyError(LOST_BODY.format(upgrade[:MAX_QUOTED]))


def is_crowded(body: bytearray, model: type[RequestBody]) -> bool:
    """Return whether a body has more fields or values than a good one can, without parsing it."""
    if max(map(body.rfind, OPENERS)) < MIN_FIELD_BYTES * model.max_fields:
        return body.count(b",") > model.max_values  # as in a good one, all else is in the beginning
    marks = body.translate(None, NUMBERS_AND_SPACE)
    values = sum(map(marks.count, (b",", b"[", b"{")))
    return marks.count(b'":') > model.max_fields or values > model.max_values


def locate_faults(error: ValidationError) -> list[dict]:
    """Return where a body is at fault, and what is wanted there: at most MAX_FAULTS times."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    for fault in faults[:MAX_FAULTS]:
        names = (part if isinstance(part, int) else part[:MAX_QUOTED] for part in fault["loc"])
        fault["loc"] = ("body", *names)
        if fault["type"] == "json_invalid":
            fault["msg"] += ". Input should be JSON in UTF-8"
    return faults[:MAX_FAULTS]


class ParsedRequest(Request):
    """A request whose body FastAPI takes from read_body()."""

    def __init__(self, request: Request, parsed: RequestBody):
        # FastAPI asks for json() only if a content type says so, or if there is none
        headers = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
        super().__init__(request.scope | {"headers": headers}, request.receive)
        self._parsed = parsed

    async def body(self) -> bytes:
        return b"{}"  # not empty: there is one

    async def json(self) -> RequestBody:
        return self._parsed


class JsonRoute(APIRoute):
    """A route of FastAPI's own kind, with typed parameters, whose body comes from read_body()."""

    def get_route_handler(self) -> Answer:
        handle = super().get_route_handler()
        kinds = [kind for kind in get_type_hints(self.endpoint).values() if isinstance(kind, type)]
        model = next((kind for kind in kinds if issubclass(kind, RequestBody)), None)
        if model is None:
            return handle

        async def handle_json(request: Request) -> Response:
            return await handle(ParsedRequest(request, await read_body(request, model)))

        return handle_json


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request itself, and makes the response."""

    def get_route_handler(self) -> Answer:
        return self.endpoint


class DirectAPI(FastAPI):
    """A FastAPI application that answers one route past FastAPI's own layers.

    They would take about a third of the time that a forecast takes beside Ray. FastAPI documents
    the route, and answers whatever else is asked: all of it, once the application has middleware.
    """

    def __init__(self, answer: Answer, route: dict, **options):
        """Take what answers a POST at a route, the arguments of post(), and those of FastAPI()."""
        super().__init__(**options)
        self.router.route_class = DirectRoute
        self.post(**route)(answer)
        self.router.routes.insert(0, self.router.routes.pop())  # Ray looks a request's route up
        self._answer, self._path = answer, route["path"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        is_direct = is_post and scope["path"] == scope.get("root_path", "") + self._path
        if self.user_middleware or not is_direct:
            return await super().__call__(scope, receive, send)
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except ServiceError as error:
            response = await report_problem(request, error)
        except RequestValidationError as error:
            response = await report_faults(request, error)
        except Exception:  # a bug: as FastAPI does, say so, and leave it to Ray Serve to log it
            await JSONResponse({"detail": "Internal Server Error"}, 500)(scope, receive, send)
            raise
        await response(scope, receive, send)


def create_api(title: str, answer: Answer | None = None) -> FastAPI:
    """Return a FastAPI application that answers a ServiceError, and a body that is not wanted.

    With `answer` it is a DirectAPI, whose PRODUCTION_ROUTE that answers.
    """
    handlers = {ServiceError: report_problem, RequestValidationError: report_faults}
    options = {"title": title, "version": "1.0.0", "exception_handlers": handlers}
    options["strict_content_type"] = False
    if answer:
        return DirectAPI(answer, PRODUCTION_ROUTE, **options)
    app = FastAPI(**options)
    app.router.route_class = JsonRoute
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
    described = {
        422: {"model": InvalidBody, "description": "The body is not what is wanted, and where."}
    }
    for error in errors:
        before = described.get(error.status, {}).get("description")
        words = f"{before} Or: {error.__doc__}" if before else error.__doc__
        described[error.status] = {"model": Problem, "description": words}
    return described


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
BODY_ERRORS = LostBodyError, BodyTooSlowError, BodyTooLargeError, UnsupportedEncodingError
TOKEN_ERRORS = MissingTokenError, ForbiddenCustomerError
FORECAST_ROUTE = {  # of FastAPI's post(): what both services document alike
    "path": "/",
    "operation_id": "forecast",
    "summary": f"Forecast the next {HORIZON} days of a customer",
    "response_model": ForecastResponse,
    "response_model_exclude_none": True,
    "responses": describe_responses(
        InvalidCustomerIdError,
        UnknownCustomerError,
        *BODY_ERRORS,
        CorruptModelError,
        StoreUnavailableError,
    ),
    "openapi_extra": {"parameters": [MODEL_ID_PARAMETER]},
}
PRODUCTION_ROUTE = {
    **FORECAST_ROUTE,
    "responses": FORECAST_ROUTE["responses"]
    | describe_responses(*TOKEN_ERRORS, ModelTooLargeError),
    "openapi_extra": {
        "parameters": [MODEL_ID_PARAMETER, TOKEN_PARAMETER],
        "requestBody": json_body(ForecastRequest),
    },
}
