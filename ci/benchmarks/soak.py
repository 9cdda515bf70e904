"""Send the service 100 000 requests, good and bad, and see whether a process of it keeps growing.

    python ci/benchmarks/soak.py [--short] [--requests N] [--unknown-ids N]

Memory is USS: what would be free if the process ended. It is read at POINTS points after a warm-up.
The slope of its last half, extended to the whole run, is the growth; LEAK_BYTES a request are too
much. Without --short and other options, content/data/soak.json is written. Exits 1 if a process
grows, dies, or gives another answer than it should, forecasts compared to the byte.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from typing import NamedTuple

import aiohttp
import numpy as np
import psutil
import ray
from ray.util.state import list_actors
from tqdm import tqdm

from drill_rig import CONTENT, REPLICAS, SERVICE, Rig
from lab.traffic import forecast_request, zipf_trace

RESULTS = CONTENT / "data" / "soak.json"
REQUESTS, SHORT_REQUESTS = 100_000, 6_000
WARM_UP = 0.1  # of the requests: imports, pools and caches fill
POINTS = 90
LEAK_BYTES = 100  # per request: a small object, kept. A replica keeps that of every REPLICAS-th.
SHORT_LEAK_BYTES = 10_000  # so early, processes still grow by up to 7 000: only a large leak shows
CONCURRENCY = 16
TIMEOUT_S = 30
LEAVE_S = 0.005  # before most answers, and long before those that wait for the store
UNKNOWN_IDS = 500  # Ray's proxy remembers each that no replica has: more would make it grow
SKEW = 1.3  # of the customers' popularity
SEED = 0
SHARES = {
    "forecast": 0.705,
    "client leaves": 0.08,
    "unknown id": 0.08,
    "malformed id": 0.06,
    "bad body": 0.07,
    "large body": 0.005,
}
MALFORMED_IDS = "", "../etc/passwd", "a/b", "a b", "-rf", "a" * 65, "%00", "."
BAD_BODIES = (
    *(b"", b"{", b"[]", b"\xff\xfe", b"[" * 5000, b'{"sequence_data": "many"}'),
    *(b'{"sequence_data": [%s]}' % days for days in (b"", b"1,2,3", b"1,2,3,4,5,6,NaN")),
    b'{"sequence_data": [1,2,3,4,5,6,7], "x": 1}',
)
LARGE_BODY = b" " * 1_100_000


class Sent(NamedTuple):
    """A request, and what has to come back."""

    kind: str
    what: dict  # for aiohttp's post()
    status: int
    body: bytes | None = None  # None: any


def make_requests(rig: Rig, count: int, unknown_ids: int) -> Iterator[Sent]:
    """Yield requests of all kinds, mixed as SHARES says."""
    kinds = np.random.default_rng(SEED).choice(list(SHARES), count, p=list(SHARES.values()))
    for number, row in enumerate(zipf_trace(len(rig.names), count, SKEW, SEED)):
        kind, name = kinds[number], rig.names[row]
        good = forecast_request(name, rig.histories[name])
        match kind:
            case "forecast" | "client leaves":
                yield Sent(kind, good, 200, rig.right[name])
            case "unknown id":
                id = f"nobody_{number % unknown_ids}"
                yield Sent(kind, forecast_request(id, rig.histories[name]), 404)
            case "malformed id":
                id = MALFORMED_IDS[number % len(MALFORMED_IDS)]
                yield Sent(kind, forecast_request(id, rig.histories[name]), 400)
            case "bad body":
                yield Sent(kind, good | {"data": BAD_BODIES[number % len(BAD_BODIES)]}, 422)
            case "large body":
                yield Sent(kind, good | {"data": LARGE_BODY}, 413)


def serving(rig: Rig) -> dict[str, psutil.Process]:
    """Return the processes to watch, by name."""
    actors = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
    (proxy,) = (actor.pid for actor in actors if actor.class_name == "ProxyActor")
    replicas = {f"replica {n}": pid for n, pid in enumerate(sorted(rig.replicas()), start=1)}
    return {name: psutil.Process(pid) for name, pid in {"proxy": proxy, **replicas}.items()}


class Soak:
    """Sends requests, checks each answer, and reads the memory of processes meanwhile."""

    def __init__(self, requests: Iterator[Sent], count: int, processes: dict[str, psutil.Process]):
        self.statuses = {kind: Counter() for kind in SHARES}
        self.wrong: list[str] = []
        self.points: list[int] = []  # requests answered by then
        self.memory: dict[str, list[int]] = {name: [] for name in processes}  # bytes of USS
        self._requests, self._count, self._processes = requests, count, processes
        self._watch = set(np.linspace(WARM_UP * count, count, POINTS, dtype=int).tolist())
        self._done = 0

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        with tqdm(total=self._count, unit="request", file=sys.stdout, mininterval=5) as self._bar:
            async with (
                aiohttp.ClientSession(timeout=timeout, connector=connector) as self._session,
                asyncio.TaskGroup() as group,
            ):
                for _ in range(CONCURRENCY):
                    group.create_task(self._send_in_turn())

    async def _send_in_turn(self) -> None:
        for sent in self._requests:
            await self._send(sent)
            self._done += 1
            self._bar.update()
            if (done := self._done) in self._watch:
                uss = await asyncio.to_thread(self._read_memory)
                self.points.append(done)
                for name, size in uss.items():
                    self.memory[name].append(size)
                self._bar.set_postfix({name: f"{size / 1e6:.1f} MB" for name, size in uss.items()})

    def _read_memory(self) -> dict[str, int]:
        return {name: process.memory_full_info().uss for name, process in self._processes.items()}

    async def _send(self, sent: Sent) -> None:
        try:
            async with (
                asyncio.timeout(LEAVE_S if sent.kind == "client leaves" else None),
                self._session.post(SERVICE, **sent.what) as response,
            ):
                status, body = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            status, body = type(error).__name__, None
            left = sent.kind == "client leaves" and isinstance(error, TimeoutError)
            # A body that is refused unread may end the connection while it is being sent.
            refused = sent.kind == "large body" and isinstance(error, aiohttp.ClientError)
            right = left or refused
        else:
            right = status == sent.status and sent.body in (None, body)
        self.statuses[sent.kind][str(status)] += 1
        if not right:
            self.wrong.append(f"{sent.kind}: {status} {(body or b'')[:200]}")

    def growth(self, name: str) -> float:
        """Return by how many bytes a process grows in all requests, going by the last half."""
        half = len(self.points) // 2
        slope, _ = np.polyfit(self.points[half:], self.memory[name][half:], 1)
        return slope * self._count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help=f"{SHORT_REQUESTS} requests, for CI")
    parser.add_argument("--requests", type=int, help=f"default {REQUESTS}")
    parser.add_argument("--unknown-ids", type=int, help=f"different ones; default {UNKNOWN_IDS}")
    options = parser.parse_args()
    count = options.requests or (SHORT_REQUESTS if options.short else REQUESTS)
    allowed = (SHORT_LEAK_BYTES if options.short else LEAK_BYTES) * count / REPLICAS

    rig = Rig()
    rig.start()
    processes = serving(rig)
    requests = make_requests(rig, count, options.unknown_ids or UNKNOWN_IDS)
    soak = Soak(requests, count, processes)
    began = time.monotonic()
    asyncio.run(soak.run())
    elapsed_s = time.monotonic() - began
    alive = serving(rig) == processes
    if alive:
        rig.require_right(rig.names)
    rig.stop()

    for kind, statuses in soak.statuses.items():
        print(f"{kind:14}", dict(statuses))
    growths = {name: soak.growth(name) for name in processes}
    print(f"{count} requests in {elapsed_s:.0f} s; growth allowed: {allowed / 1e6:.1f} MB")
    for name, growth in growths.items():
        shown = soak.memory[name][:: POINTS // 6]
        sizes = " ".join(f"{size / 1e6:.1f}" for size in [*shown, soak.memory[name][-1]])
        print(f"{name:10} MB: {sizes}; growth {growth / 1e6:+.2f} MB")
    if not (options.short or options.requests or options.unknown_ids):
        results = {
            "date": date.today().isoformat(),
            "ray": ray.__version__,
            "cores": os.cpu_count(),
            "requests": count,
            "seconds": round(elapsed_s),
            "statuses": {kind: dict(found) for kind, found in soak.statuses.items()},
            "allowed_growth_bytes": round(allowed),
            "growth_bytes": {name: round(growth) for name, growth in growths.items()},
            "points": soak.points,
            "uss_bytes": soak.memory,
        }
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    if soak.wrong:
        sys.exit(f"{len(soak.wrong)} answers are wrong, such as\n" + "\n".join(soak.wrong[:5]))
    if not alive:
        sys.exit("a process has died")
    if growing := [name for name, growth in growths.items() if growth > allowed]:
        sys.exit(f"memory grows: {', '.join(growing)}")


if __name__ == "__main__":
    main()
