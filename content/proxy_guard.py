"""Keep header bytes that Ray Serve's proxy cannot decode from becoming a 500.

The proxy decodes some headers as UTF-8, and fails on other bytes before any deployment sees the
request. It loads this guard if Ray is started with

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=proxy_guard:middlewares
"""

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

DECODED_HEADERS = b"serve_multiplexed_model_id", b"x_request_id", b"x_session_id"


class RefuseUndecodableHeaders:
    """ASGI middleware that answers 400 where the proxy would fail."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope.get("headers", ()):
            if name.lower().replace(b"-", b"_") in DECODED_HEADERS and not is_utf8(value):
                problem = JSONResponse({"detail": f"the header {name.decode()} is not UTF-8"}, 400)
                return await problem(scope, receive, send)
        return await self._app(scope, receive, send)


def is_utf8(value: bytes) -> bool:
    """Return whether bytes are UTF-8."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def middlewares() -> list[Middleware]:
    """Return what Ray Serve's proxy puts around itself."""
    return [Middleware(RefuseUndecodableHeaders)]
