"""An HTTP object store on loopback whose answers a test decides."""

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import Mapping

from aiohttp import web


class FaultyStore:
    """Serves `artifacts`, and fails as it is told to."""

    def __init__(self):
        self.artifacts: dict[str, bytes] = {}  # by customer id
        self.delay_s = 0.0
        self.down = False
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
        self.most_at_once, self._under_way = 0, []  # earlier ones may go on
        for count in self.reads, self.checks, self.bodies:
            count.clear()

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_get("/{customer_id}/model.safetensors", self._get)
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
        data = self.artifacts.get(customer_id)
        if data is None:
            return web.Response(status=404)
        etag = f'"{hashlib.md5(data).hexdigest()}"'  # as S3 does, so the same bytes have the same
        headers = {"ETag": etag, "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
        if known == etag:
            return web.Response(status=304, headers=headers)
        self.bodies[customer_id] += 1
        return web.Response(body=data, headers=headers)
