"""What compare_pools.py measures: a server with several workers, each with a cache of its own."""

import asyncio
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from comparison import medians
from fleet import Fleet
from lab import traffic
from measurements import TIMEOUT_S, Bench
from server_process import URL, Running, Server, ServerError

STEPS = 4  # of warming up, each on new connections, for other workers to take them


@dataclass(frozen=True)
class PoolParameters:
    customers: int = 2000
    worker_models: int = 100  # that each worker keeps in memory
    workers: int = 2
    more_workers: int = 4
    store_delay_s: float = 0.02  # simulated, before each read of the store
    zipf_skew: float = 1.0
    trace: int = 20_000  # requests, of which a round takes as many as it gets to
    warm_up: int = 1000  # requests for each worker
    rounds: int = 3
    more_rounds: int = 2  # with more workers
    round_s: int = 5
    concurrency: int = 16  # of the closed loop
    load: float = 0.6  # of the open loop: times what the slowest server answers in the closed one
    open_s: int = 5  # of a round in the open loop
    checked: int = 64  # customers, whose forecasts are compared with the models' own
    seed: int = 0


FULL = PoolParameters()
SHORT = PoolParameters(
    customers=200,
    worker_models=20,
    warm_up=100,
    rounds=1,
    more_rounds=1,
    round_s=1,
    open_s=1,
    checked=16,
)


class PoolBench(Bench):
    """One server, with traffic for which its caches are too small."""

    def __init__(self, server: Server, fleet: Fleet, preset: PoolParameters):
        super().__init__(server, fleet)
        self.preset = preset

    def running_pool(self, workers: int) -> AbstractContextManager[Running]:
        preset = self.preset
        return self.running(
            models=preset.worker_models, delay_s=preset.store_delay_s, workers=workers
        )

    def trace(self, requests: int, seed: int) -> np.ndarray:
        preset = self.preset
        return traffic.zipf_trace(preset.customers, requests, preset.zipf_skew, seed)

    def warm_up(self, workers: int) -> None:
        """Fill the caches, with a trace of its own, until they are as they will stay."""
        trace = self.trace(self.preset.warm_up * workers, self.preset.seed)
        for part in np.array_split(trace, STEPS):
            self.send(part, self.preset.concurrency)

    def check_some(self) -> None:
        """Ask for customers at once. Raises ServerError unless all forecasts are right."""
        rows = np.linspace(0, self.preset.customers - 1, self.preset.checked, dtype=int)
        self.check_forecasts(rows.tolist(), self.preset.concurrency)

    def measure_round(self, live: Running, seed: int) -> dict[str, float]:
        """Return figures of a trace in the closed loop, which wrk sends."""
        loads, checks = live.loads(), live.checks()
        trace = self.trace(self.preset.trace, seed)
        run = self.send_by_wrk(trace, self.preset.concurrency, self.preset.round_s)
        sent = run.pop("sent")
        loads, checks = live.loads() - loads, live.checks() - checks
        share = {"hit_rate": 1 - loads / sent, "reads_per_1000": 1000 * (loads + checks) / sent}
        return share | run

    def measure_closed(self, workers: int, rounds: int) -> dict[str, float]:
        """Return the medians of all rounds, each of which has a trace of its own."""
        with self.running_pool(workers) as live:
            self.check_some()
            self.warm_up(workers)
            seed = self.preset.seed + 1
            figures = [self.measure_round(live, seed + each) for each in range(rounds)]
            self.check_some()  # once more, of workers that have loaded and evicted under load
        return medians(figures)

    def measure_open(self, rate: float) -> dict[str, float]:
        """Return the medians of rounds at a rate: latency, and requests that failed."""
        preset = self.preset
        with self.running_pool(preset.workers):
            self.warm_up(preset.workers)
            traces = [
                self.trace(round(rate * preset.open_s), preset.seed + 1 + each)
                for each in range(preset.rounds)
            ]
            return medians([asyncio.run(self.send_on_schedule(each, rate)) for each in traces])

    async def send_on_schedule(self, trace: np.ndarray, rate: float) -> dict[str, float]:
        """Send a trace, of which every client sends its part at its part of the rate.

        Raises:
            ServerError: if no answer comes.
        """
        clients = self.preset.concurrency

        async def send_part(client: int) -> traffic.Outcomes:
            rows, part = np.unique(trace[client::clients], return_inverse=True)
            await asyncio.sleep(client / rate)  # they take turns
            return await traffic.send(
                URL,
                [self.fleet.customer_ids[row] for row in rows],
                self.fleet.histories[rows],
                part,
                rate=rate / clients,
                timeout_s=TIMEOUT_S,
                progress=False,
                request=self.server.ask,
            )

        parts = await asyncio.gather(*map(send_part, range(clients)))
        status, latency_s = (
            np.concatenate([getattr(part, field) for part in parts])
            for field in ("status", "latency_s")
        )
        succeeded = np.char.startswith(status, "2")
        waited = latency_s[succeeded | (status == traffic.TIMEOUT)]
        if not succeeded.any():
            raise ServerError(f"all requests failed: {sorted(set(status.tolist()))}")
        p50_ms, p99_ms = np.percentile(waited, (50, 99)) * 1000
        return {"p50_ms": p50_ms, "p99_ms": p99_ms, "errors": int((~succeeded).sum())}
