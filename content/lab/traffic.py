"""Traffic like that of many customers: a few ask often, most of them rarely (Zipf's law).

Closed loop: each of N workers sends its next request when its last is answered, so a slow service
is asked less. Shows how much a service can do.
Open loop: requests start on schedule, whatever the service does, and latency counts from the
scheduled start. A service that stalls for a second is charged for everyone who would have asked
meanwhile; a client that waits for it leaves them out of its percentiles ("coordinated omission").
"""

import asyncio
import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
from tqdm import tqdm

FOOTFALL = Path(__file__).parents[1] / "data" / "footfall.npz"
HISTORY_DAYS = 28
JSON_BODY = {"Content-Type": "application/json"}
TIMEOUT_S = 10.0  # by default
LATENCIES = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99, "max_ms": 100}  # percentiles
TIMEOUT, CONNECTION_ERROR, UNANSWERED = "timeout", "connection error", "unanswered"
CACHE_OUTCOME = re.compile(r'\bcache;[^,]*\bdesc="?(hit|miss)\b')


def zipf_popularity(customers: int, skew: float) -> np.ndarray:
    """Return the share of requests by rank, shape (customers,): 1 / rank**skew, summing to 1."""
    weights = np.arange(1, customers + 1, dtype=float) ** -skew
    return weights / weights.sum()


def zipf_trace(customers: int, requests: int, skew: float, seed: int) -> np.ndarray:
    """Return which customer each request is for, shape (requests,): its popularity rank - 1.

    A longer trace begins with the shorter ones of the same seed.
    """
    popularity = zipf_popularity(customers, skew)
    return np.random.default_rng(seed).choice(customers, requests, p=popularity)


def load_customers(ids: Sequence[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Return customer ids, by default all in the data, and histories (customers, HISTORY_DAYS).

    An id that is not in the data gets the history of another: any 28 values will do.
    """
    with np.load(FOOTFALL) as footfall:
        known, counts = footfall["customer_ids"].tolist(), footfall["counts"][:, -HISTORY_DAYS:]
    rows = {customer_id: row for row, customer_id in enumerate(known)}
    ids = known if ids is None else list(ids)
    return ids, counts[[rows.get(name, index % len(known)) for index, name in enumerate(ids)]]


@dataclass(frozen=True)
class Outcomes:
    """What became of each request, in the order of the trace; every array has shape (requests,)."""

    customer: np.ndarray  # row in the customer ids
    start_s: np.ndarray  # since the test began; in an open loop: when it was due
    latency_s: np.ndarray  # from start_s to the end of the answer, or to the error
    status: np.ndarray  # "200", "503" and so on, TIMEOUT, CONNECTION_ERROR or UNANSWERED
    cache: np.ndarray  # "hit", "miss", or "" where the service does not say
    replica: np.ndarray  # the replica's id, or "" where the service does not say
    interrupted: bool  # the test was cancelled; requests under way then are UNANSWERED

    def summary(self) -> dict:
        """Return the report; what is unknown is None.

        Latencies are those of the requests that succeeded (2xx) and, under "all", of those that
        timed out, as long as they waited: other errors come fast and would flatter the service.
        """

        def latencies(chosen: np.ndarray) -> dict[str, float | None]:
            figures = dict.fromkeys(LATENCIES)
            if chosen.any():
                values_ms = np.percentile(self.latency_s[chosen], list(LATENCIES.values())) * 1000
                figures = dict(zip(LATENCIES, values_ms.tolist(), strict=True))
            return {"requests": int(chosen.sum())} | figures

        succeeded = np.char.startswith(self.status, "2")
        failed = self.status[~succeeded & (self.status != UNANSWERED)].tolist()
        warm, cold = (succeeded & (self.cache == outcome) for outcome in ("hit", "miss"))
        successes, told = int(succeeded.sum()), int((warm | cold).sum())
        requests = successes + len(failed)
        seconds = float((self.start_s + self.latency_s).max(initial=0))
        return {
            "requests": requests,
            "unanswered": len(self.status) - requests,
            "interrupted": self.interrupted,
            "seconds": seconds,
            "requests_per_s": requests / seconds if requests else None,
            "successes_per_s": successes / seconds if requests else None,
            "error_share": len(failed) / requests if requests else None,
            "errors": dict(Counter(failed).most_common()),
            "hit_rate": int(warm.sum()) / told if told else None,
            "latency": {
                "all": latencies(succeeded | (self.status == TIMEOUT)),
                "warm": latencies(warm) if told else None,
                "cold": latencies(cold) if told else None,
            },
            "replicas": dict(Counter(self.replica[self.replica != ""].tolist()).most_common()),
        }


def forecast_request(customer_id: str, history: list[float]) -> dict:
    """Return what aiohttp's post() wants for a customer's forecast, beside a URL."""
    return {
        "headers": {"serve_multiplexed_model_id": customer_id, **JSON_BODY},
        "data": json.dumps({"sequence_data": history}).encode(),
    }


async def send(
    url: str,
    customer_ids: Sequence[str],
    histories: np.ndarray,
    trace: Iterable[int],
    *,
    concurrency: int | None = None,
    rate: float | None = None,
    duration_s: float | None = None,
    timeout_s: float = TIMEOUT_S,
    progress: bool = True,
    request: Callable[[str, list[float]], dict] = forecast_request,
) -> Outcomes:
    """Send a trace of requests, and return when the last one has an answer or an error.

    `trace` names customers by their row in `customer_ids` and in `histories`, which has shape
    (customers, days). Either `concurrency` requests are under way at a time, or `rate` start per
    second, until the trace ends or `duration_s` is over. Cancelled, as by Ctrl-C or a notebook's
    stop button, it returns what it has so far.

    `request` turns a customer id and a history into what is sent. It may name another `url`.

    Raises:
        ValueError: unless one of concurrency and rate is given.
    """
    if (concurrency is None) == (rate is None):
        raise ValueError("give concurrency for a closed loop, or rate for an open one")
    until_s = math.inf if duration_s is None else duration_s
    prepared = [
        # a redirect is an answer, and no success
        {"url": url, "allow_redirects": False, **request(customer_id, history)}
        for customer_id, history in zip(customer_ids, np.asarray(histories).tolist(), strict=True)
    ]
    numbered = enumerate(trace)
    records, errors, interrupted = [], Counter(), False
    began = time.perf_counter()

    def elapsed_s() -> float:
        return time.perf_counter() - began

    async def ask(number: int, customer: int, start_s: float) -> None:
        status, cache, replica = UNANSWERED, "", ""
        try:
            async with session.post(**prepared[customer]) as response:
                await response.read()
            status, replica = str(response.status), response.headers.get("X-Replica-Id", "")
            if told := CACHE_OUTCOME.search(response.headers.get("Server-Timing", "")):
                cache = told[1]
        except TimeoutError:
            status = TIMEOUT
        except aiohttp.ClientError:
            status = CONNECTION_ERROR
        finally:
            latency_s = elapsed_s() - start_s
            records.append((number, customer, start_s, latency_s, status, cache, replica))
            if not status.startswith("2"):
                errors[status] += 1
                bar.set_postfix(errors, refresh=False)
            bar.update()

    async def ask_in_turn() -> None:
        for number, customer in numbered:
            if (start_s := elapsed_s()) >= until_s:
                return
            await ask(number, customer, start_s)

    async def ask_on_schedule(group: asyncio.TaskGroup) -> None:
        for number, customer in numbered:
            if (start_s := number / rate) >= until_s:
                return
            await asyncio.sleep(start_s - elapsed_s())
            group.create_task(ask(number, customer, start_s))

    total = len(trace) if hasattr(trace, "__len__") else None
    with tqdm(total=total, unit="request", file=sys.stdout, disable=not progress) as bar:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),  # customers do not share cookies
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        ) as session:
            try:
                async with asyncio.TaskGroup() as group:
                    if rate is not None:
                        await ask_on_schedule(group)
                    for _ in range(concurrency or 0):
                        group.create_task(ask_in_turn())
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()
                interrupted = True
    columns = list(zip(*sorted(records), strict=True))[1:] or [()] * 6
    kinds = int, float, float, str, str, str
    arrays = (np.array(column, kind) for column, kind in zip(columns, kinds, strict=True))
    return Outcomes(*arrays, interrupted)
