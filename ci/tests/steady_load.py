"""Steady traffic that keeps every answer, and tries again as a client should."""

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import aiohttp

from lab.traffic import CACHE_OUTCOME, forecast_request

TIMEOUT_S = 15  # of a try
PAUSE_S = 0.5  # before the next one, where no answer says how long
MAX_TRIES = 10


class Failure(NamedTuple):
    """Why a try had to be repeated, and how long it took to say so."""

    reason: str
    took_s: float


class Answer(NamedTuple):
    """What a request came to in the end."""

    customer_id: str
    sent_s: float  # on the monotonic clock: when the last try began
    answered_s: float
    status: int | None  # None: no try was answered
    body: bytes
    cache: str  # "hit", "miss", or "" where the service does not say
    replica: str
    failures: tuple[Failure, ...]  # of the tries before the last one


class SteadyLoad:
    """Asks for customers in turn, `rate` times a second, from a thread of its own.

    As a context manager: leaving it waits for all answers, which are in `answers` then.
    """

    def __init__(
        self, url: str, histories: Mapping[str, list], rate: float, tries: int = MAX_TRIES
    ):
        """Take what to ask for: a history by customer id. With one try, failures are answers."""
        self._url, self._rate, self._tries = url, rate, tries
        self._requests = {
            name: forecast_request(name, values) for name, values in histories.items()
        }
        self.answers: list[Answer] = []
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> "SteadyLoad":
        self._asking = self._thread.submit(lambda: asyncio.run(self._ask_steadily()))
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._asking.result()

    def failures(self) -> Counter:
        """Count the tries that had to be repeated, by their reason."""
        return Counter(failure.reason for answer in self.answers for failure in answer.failures)

    async def _ask_steadily(self) -> None:
        began_s = time.monotonic()
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            asyncio.TaskGroup() as group,
        ):
            for number, name in enumerate(itertools.cycle(self._requests)):
                if self._stop.is_set():
                    return
                await asyncio.sleep(began_s + number / self._rate - time.monotonic())
                group.create_task(self._ask(session, name))

    async def _ask(self, session: aiohttp.ClientSession, name: str) -> None:
        """Ask until there is an answer that another try would not change."""
        failures: list[Failure] = []
        while True:
            sent_s, pause_s = time.monotonic(), None
            status, body, cache, replica = None, b"", "", ""
            try:
                async with session.post(self._url, **self._requests[name]) as response:
                    body = await response.read()
                status, headers = response.status, response.headers
                replica = headers.get("X-Replica-Id", "")
                if told := CACHE_OUTCOME.search(headers.get("Server-Timing", "")):
                    cache = told[1]
                if status == 503 and "Retry-After" in headers:
                    reason, pause_s = "503", float(headers["Retry-After"])
            except (aiohttp.ClientError, TimeoutError) as error:
                reason, pause_s = type(error).__name__, PAUSE_S
            ended_s = time.monotonic()
            if pause_s is None or len(failures) + 1 == self._tries:
                answer = Answer(
                    name, sent_s, ended_s, status, body, cache, replica, tuple(failures)
                )
                return self.answers.append(answer)
            failures.append(Failure(reason, ended_s - sent_s))
            await asyncio.sleep(pause_s)
