"""An object store on loopback, by plain HTTP or S3's API, whose answers a test decides."""

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from aiohttp import web

DENIED = 403, "AccessDenied", "Access Denied"
SECRET = "of-the-tests"


class FaultyStore:
    """Serves `artifacts`, and fails as it is told to."""

    def __init__(self):
        self.artifacts: dict[str, bytes] = {}  # by customer id
        self.delay_s = 0.0
        self.down = False
        self.refusal: tuple[int, str, str] | None = None  # status, code and message of each answer
        self.may_list = True  # if not, it denies what does not exist, as S3 does
        self.has_tags = True
        self.most_at_once = 0  # requests under way since the last repair
        self._under_way: list[web.Request] = []
        self.reads = Counter()  # requests for an artifact, by customer id
        self.checks = Counter()  # requests for an artifact if it is another one by now
        self.bodies = Counter()  # artifacts sent
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        assert self._ready.wait(10), "the store did not start"

    def repair(self, artifacts: Mapping[str, bytes]) -> None:
        """Answer at once again, with these artifacts, and begin to count anew."""
        self.artifacts, self.delay_s, self.down = dict(artifacts), 0.0, False
        self.refusal, self.may_list, self.has_tags = None, True, True
        self.most_at_once, self._under_way = 0, []  # earlier ones may go on
        for count in self.reads, self.checks, self.bodies:
            count.clear()

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_get("/{bucket}", self._list)
        app.router.add_get("/{prefix:(.+/)?}{customer_id:[^/]+}/model.safetensors", self._get)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await asyncio.Event().wait()

    async def _get(self, request: web.Request) -> web.Response:
        customer_id = request.match_info["customer_id"]
        known = request.headers.get("If-None-Match")
        (self.checks if known else self.reads)[customer_id] += 1
        under_way = self._under_way  # repair() may replace it meanwhile
        under_way.append(request)
        self.most_at_once = max(self.most_at_once, len(under_way))
        try:
            await asyncio.sleep(self.delay_s)
        finally:  # also if the client has gone
            under_way.remove(request)
        if self.down:
            return web.Response(status=500)
        if self.refusal:
            return refuse(*self.refusal)
        data = self.artifacts.get(customer_id)
        if data is None:
            return web.Response(status=404) if self.may_list else refuse(*DENIED)
        etag = etag_of(data)
        tag = {"ETag": etag} if self.has_tags else {}
        headers = tag | {"Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
        if known == etag and self.has_tags:
            return web.Response(status=304, headers=headers)
        self.bodies[customer_id] += 1
        return web.Response(body=data, headers=headers)

    async def _list(self, request: web.Request) -> web.Response:
        if self.refusal or not self.may_list:
            return refuse(*self.refusal or DENIED)
        about = "<LastModified>2025-01-01T00:00:00.000Z</LastModified><Size>1</Size>"
        prefix = request.query["prefix"]
        keys = [f"<Key>{prefix}{name}/model.safetensors</Key>" for name in self.artifacts]
        found = "".join(f"<Contents>{key}{about}</Contents>" for key in keys)
        return web.Response(text=f"<ListBucketResult>{found}</ListBucketResult>")


@lru_cache(256)
def etag_of(data: bytes) -> str:
    """Return the tag that S3 has for an artifact: the same bytes have the same."""
    return f'"{hashlib.md5(data).hexdigest()}"'


def refuse(status: int, code: str, message: str) -> web.Response:
    """Answer as S3 does, which repeats a token that it does not take."""
    error = f"<Code>{code}</Code><Message>{message}</Message><Token-0>{SECRET}</Token-0>"
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error>{error}</Error>'
    return web.Response(status=status, text=text, content_type="application/xml")
