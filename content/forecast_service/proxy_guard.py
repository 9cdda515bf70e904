"""Keep Ray Serve's proxy from failing over a request's headers or size, and say when to try again.

Before any deployment has a say, the proxy takes headers of any size; decodes some as UTF-8, and
fails on other bytes; takes in a body as fast as it comes, and keeps what no replica has read yet;
answers requests that find its queue full; and has no answer for those of a replica that dies. It
loads this guard if Ray is started with

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=forecast_service.proxy_guard:middlewares

The guard then stands before every application of the cluster, whoever's it is.
"""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forecast_service.errors import RETRY_AFTER_S

DECODED_HEADERS = (
    b"serve_multiplexed_model_id",
    b"x_request_disconnect_disabled",
    b"x_request_id",
    b"x_request_timeout_seconds",
    b"x_session_id",
)
MAX_HEADER_BYTES = 16 * 1024  # of all names and values
MAX_BODY_BYTES = 1024 * 1024  # of any application; the forecasters' own limit is lower
LOST_BODY = (  # what uvicorn does to a request with Upgrade: ...
    "no body: the server drops that of a request with Upgrade: {}. Send it without this header, "
    "in HTTP/1.1 (in Java, HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1))"
)
MAX_QUOTED = 64  # characters of what a client sent
UNAVAILABLE = "the service is overloaded, or has just lost a replica: try again"


class RefuseBadHeaders:
    """ASGI middleware that answers in the proxy's place: 400 where it would fail, 431 for size."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope.get("headers", ())
        if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
            problem = {"detail": f"the headers are over {MAX_HEADER_BYTES} bytes"}
            return await JSONResponse(problem, 431)(scope, receive, send)
        for name, value in headers:
            if name.lower().replace(b"-", b"_") in DECODED_HEADERS and not is_utf8(value):
                problem = {"detail": f"the header {name.decode()} is not UTF-8"}
                return await JSONResponse(problem, 400)(scope, receive, send)
        if upgrade := lost_upgrade(scope):  # at once: uvicorn takes the body for a next request
            problem, close = {"detail": LOST_BODY.format(upgrade)}, {"Connection": "close"}
            return await JSONResponse(problem, 400, close)(scope, receive, send)
        return await self._app(scope, receive, send)


class RefuseLargeBodies:
    """ASGI middleware that reads a body no further than MAX_BODY_BYTES, and answers 413.

    An application cannot do that: the proxy takes in what it does not read. The limit is for every
    application behind the proxy: raise it where one of them takes more.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read_bytes, answered = 0, False

        async def read() -> Message:
            nonlocal read_bytes
            message = await receive()
            read_bytes += len(message.get("body", b""))
            if read_bytes > MAX_BODY_BYTES:  # the proxy then gives the request up
                return {"type": "http.disconnect"}
            return message

        async def pass_on(message: Message) -> None:
            nonlocal answered
            if answered or read_bytes <= MAX_BODY_BYTES:
                answered = True
                await send(message)

        await self._app(scope, read, pass_on)
        if not answered and read_bytes > MAX_BODY_BYTES:
            problem = {"detail": f"the proxy takes at most {MAX_BODY_BYTES} bytes of a body"}
            await JSONResponse(problem, 413)(scope, receive, send)


class SayWhenToRetry:
    """ASGI middleware that answers 503 where the proxy gives no answer, or one for people only.

    Forecasting changes nothing, so a client may always ask again. It replaces a 503 in plain text
    that is an application's own, too.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        answered = False

        async def pass_on(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                kind = Headers(raw=message["headers"]).get("content-type", "")
                answered = not (message["status"] == 503 and kind.startswith("text/plain"))
            if answered:
                await send(message)

        await self._app(scope, receive, pass_on)
        if not answered:
            problem = {"detail": UNAVAILABLE}
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            await JSONResponse(problem, 503, headers)(scope, receive, send)


def lost_upgrade(scope: Scope) -> str | None:
    """Return the protocol that an HTTP request with a body asks to change to, if it does."""
    headers = Headers(scope=scope) if scope["type"] == "http" else {}
    if "upgrade" not in headers or "upgrade" not in headers.get("connection", "").lower():
        return None
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return None
    return headers["upgrade"][:MAX_QUOTED]


def is_utf8(value: bytes) -> bool:
    """Return whether bytes are UTF-8."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def middlewares() -> list[Middleware]:
    """Return what Ray Serve's proxy puts around itself, from the inside out."""
    return [Middleware(guard) for guard in (RefuseBadHeaders, RefuseLargeBodies, SayWhenToRetry)]
