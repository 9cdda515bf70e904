"""A relay in front of an HTTP server: it counts requests, and is as slow as a test wants."""

import asyncio
import re
import threading
from collections import Counter

HOST = "127.0.0.1"
BODY_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Relay:
    """Passes requests on as they are, signature and Host included."""

    def __init__(self, endpoint: str):
        self._port = int(endpoint.rpartition(":")[2])
        self.requests = Counter()  # by first line without the query, "GET /bucket/key"
        self.delay_s = 0.0  # before each piece of an answer
        self.piece = 65_536  # bytes
        self.down = False  # close connections that ask for anything
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        assert self._ready.wait(10), "the relay did not start"

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connect, HOST, 0)
        self.endpoint = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await server.serve_forever()

    async def _connect(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection(HOST, self._port)
        except OSError:
            to_client.close()
            return
        passing = [
            asyncio.create_task(step)
            for step in (self._ask(client, to_server), self._answer(server, to_client))
        ]
        await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        for step in passing:
            step.cancel()
        await asyncio.gather(
            *passing, return_exceptions=True
        )  # either side may hang up at any time
        to_server.close()
        to_client.close()

    async def _ask(self, client: asyncio.StreamReader, to_server: asyncio.StreamWriter) -> None:
        while True:
            head = await client.readuntil(b"\r\n\r\n")
            method, target, _ = head.decode("latin-1").split(" ", 2)
            self.requests[f"{method} {target.partition('?')[0]}"] += 1
            if self.down:
                return
            length = BODY_LENGTH.search(head)
            to_server.write(head + await client.readexactly(int(length[1]) if length else 0))
            await to_server.drain()

    async def _answer(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        while piece := await server.read(self.piece):
            await asyncio.sleep(self.delay_s)
            to_client.write(piece)
            await to_client.drain()
