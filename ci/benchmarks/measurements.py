"""A server under test, and what compare_servers.py measures of it.

Warm and cold latency, bursts of cold customers, hits, memory.
"""

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import requests

from comparison import medians
from fleet import SHORT, Fleet, Parameters
from forecast_service.artifact import folded_from_bytes
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore
from lab import traffic
from server_process import HOST, PORT, URL, Running, Server, ServerError, running

WRK_SCRIPT = Path(__file__).with_name("warm.lua")
TIMEOUT_S = 10  # of a request
LOADING_AT_ONCE = 16


class Bench:
    """One server, the fleet, and the traffic between them. Customers are rows of the fleet."""

    def __init__(self, server: Server, fleet: Fleet):
        self.server, self.fleet = server, fleet

    def request(self, row: int) -> dict:
        history = self.fleet.histories[row].tolist()
        return {"url": URL, **self.server.ask(self.fleet.customer_ids[row], history)}

    def running(
        self, *, models: int, preloaded: int = 0, delay_s: float = 0, workers: int = 1
    ) -> AbstractContextManager[Running]:
        """Start the server: see server_process.running()."""
        settings = {
            "MODEL_STORE": self.fleet.store,
            "MODELS_PER_REPLICA": str(models),
            "PRELOADED": str(preloaded),
            "STORE_ADDED_DELAY_S": str(delay_s),
            "WORKERS": str(workers),
            "WEB_CONCURRENCY": str(workers),  # what uvicorn calls them
        }
        last = preloaded - 1 if self.server.preloaded else 0
        return running(self.server, settings, self.request(last))

    def check_forecasts(self, rows: Iterable[int], at_once: int = 1) -> None:
        """Raise ServerError unless the forecasts for these customers are the models' own."""
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(self._check_forecast, rows))

    def _check_forecast(self, row: int) -> None:
        name = self.fleet.customer_ids[row]
        store = ModelStore(StoreSettings(model_store=self.fleet.store))
        model = folded_from_bytes(asyncio.run(store.read(name)).data, name)
        expected = model.predict(self.fleet.histories[row].tolist())._asdict()
        try:
            response = requests.post(**self.request(row), timeout=TIMEOUT_S)
            answer = self.server.read(response.json()) if response.ok else {}
        except requests.RequestException as error:
            raise ServerError(f"{name}: no forecast: {error}") from None
        for part, values in expected.items():
            if answer.get(part) != values:
                raise ServerError(f"{name}: {part} is not {values}:\n{response.text[:500]}")

    def send(self, rows: Sequence[int], concurrency: int) -> dict:
        """Send a trace, and return the summary of it. Raises ServerError if no answer comes."""
        sending = traffic.send(
            URL,
            self.fleet.customer_ids,
            self.fleet.histories,
            rows,
            concurrency=concurrency,
            timeout_s=TIMEOUT_S,
            progress=False,
            request=self.server.ask,
        )
        summary = asyncio.run(sending).summary()
        if summary["latency"]["all"]["p50_ms"] is None:
            raise ServerError(f"all requests failed: {summary['errors']}")
        return summary

    def send_by_wrk(self, rows: Iterable[int], concurrency: int, seconds: int) -> dict:
        """Send a trace with wrk, over and over; return what warm.lua prints.

        Raises:
            ServerError: if wrk cannot connect.
        """
        with tempfile.NamedTemporaryFile() as requests_file:
            requests_file.write(b"\0".join(raw(self.request(row)) for row in rows))
            requests_file.flush()
            command = [
                "wrk",
                "--threads=1",
                f"--connections={concurrency}",
                f"--duration={seconds}s",
                f"--timeout={TIMEOUT_S}s",
                f"--script={WRK_SCRIPT}",
                URL,
            ]
            environment = os.environ | {"REQUESTS": requests_file.name}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise ServerError(f"wrk failed: {done.stderr or done.stdout}")
        return json.loads(done.stdout.splitlines()[-1])


class ProcessBench(Bench):
    """What compare_servers.py measures: a server with one process or worker."""

    def __init__(self, server: Server, fleet: Fleet, preset: Parameters):
        super().__init__(server, fleet)
        self.preset = preset
        self.few, self.many = server.preloaded or (0, preset.customers)
        if preset is SHORT and server.preloaded:
            self.many = self.few
        self.warm = range(min(preset.warm_customers, self.many))

    def running_warm(self) -> AbstractContextManager[Running]:
        preset = self.preset
        return self.running(
            models=preset.cache_models, preloaded=self.many, delay_s=preset.store_delay_s
        )

    def warm_up(self) -> None:
        """Bring models into memory. Raises ServerError if their forecasts are wrong."""
        if self.server.forecasts:
            self.check_forecasts(self.warm)
        self.send_warm(self.preset.concurrency)

    def send_warm(self, concurrency: int) -> dict:
        """Send requests for models in memory, and return the run's figures."""
        run = self.send_by_wrk(self.warm, concurrency, self.preset.warm_s)
        del run["sent"]  # no figure of the server's
        return run

    def measure_warm(self, runs: int) -> list[dict[int, dict]]:
        """Return figures by concurrency, of each run."""
        concurrencies = 1, self.preset.concurrency
        return [{each: self.send_warm(each) for each in concurrencies} for _ in range(runs)]

    def measure_warm_afresh(self) -> dict[int, dict]:
        """Return the figures of one run, on a server started for it."""
        with self.running_warm():
            self.warm_up()
            return self.measure_warm(1)[0]

    def measure_cold(self) -> dict:
        """Return how long one cold customer takes, and a burst of them; medians."""
        preset = self.preset
        unasked = iter(range(preset.customers)[::-1])  # the rare ones of the Zipf traffic to come
        single = self.send(list(islice(unasked, preset.cold_singles)), 1)
        bursts = [
            self.send(list(islice(unasked, preset.burst)), preset.burst)
            for _ in range(preset.bursts)
        ]
        one_s = single["latency"]["all"]["p50_ms"] / 1000
        burst_s = float(np.median([burst["seconds"] for burst in bursts]))
        return {
            "one_s": one_s,
            "burst_s": burst_s,
            "burst_per_one": burst_s / one_s,
            "error_share": float(np.mean([run["error_share"] for run in (single, *bursts)])),
        }

    def measure_zipf(self, live: Running) -> dict:
        """Return figures of traffic that begins with the most popular models in memory."""
        preset = self.preset
        self.send(range(preset.cache_models)[::-1], preset.concurrency)
        trace = traffic.zipf_trace(
            preset.customers, preset.zipf_requests, preset.zipf_skew, preset.seed
        )
        before = live.loads()
        summary = self.send(trace, preset.concurrency)
        return {
            "hit_rate": 1 - (live.loads() - before) / preset.zipf_requests,
            "p50_ms": summary["latency"]["all"]["p50_ms"],
            "p99_ms": summary["latency"]["all"]["p99_ms"],
            "requests_per_s": summary["requests_per_s"],
            "errors": summary["errors"],
        }

    def measure_memory(self) -> dict:
        """Return what the server takes without a model, and what each model adds."""
        samples = []
        if self.server.preloaded:
            for models in self.few, self.many:
                with self.running(models=models, preloaded=models) as live:
                    self.send(range(models), LOADING_AT_ONCE)
                    samples.append((models, live.memory_mb()))
        else:
            with self.running(models=self.many, preloaded=0) as live:
                self.send(self.warm, 1)
                for models in len(self.warm), self.many:
                    self.send_warm(self.preset.concurrency)
                    self.send(range(models), LOADING_AT_ONCE)
                    samples.append((models, live.memory_mb()))
        (few, few_mb), (many, many_mb) = samples
        per_model_mb = (many_mb - few_mb) / (many - few)
        return {
            "server_mb": few_mb - few * per_model_mb,
            "model_kb": per_model_mb * 1000,
            "models": many,
        }

    def measure_crowd(self) -> dict:
        """Return what a replica's own memory grows by, for each model of a whole fleet in it."""
        few, many = len(self.warm), len(self.fleet.customer_ids)
        with self.running(models=many) as live:
            self.send_warm(self.preset.concurrency)
            before_mb = live.replica_mb()
            for _ in range(2):  # once cold, once warm
                self.send(range(many), LOADING_AT_ONCE)
            grown_mb = live.replica_mb() - before_mb
        return {"models": many, "model_kb": grown_mb * 1000 / (many - few)}

    def measure(self, warm_runs: list[dict[int, dict]] | None = None) -> dict:
        """Return all figures, None where the server has no such thing. Raises ServerError.

        Warm runs that were measured before are not repeated.
        """
        preset, forecasts = self.preset, self.server.forecasts
        figures = {"cold": None, "zipf": None, "memory": None}
        with self.running_warm() as live:
            figures["start_s"] = live.start_s
            self.warm_up()
            figures["warm"] = summarize(warm_runs or self.measure_warm(preset.warm_runs))
            if forecasts and not self.server.preloaded:
                figures["cold"] = self.measure_cold()
            if forecasts and self.many == preset.customers:
                figures["zipf"] = self.measure_zipf(live)
        if forecasts and preset is not SHORT:
            figures["memory"] = self.measure_memory()
        return figures


def summarize(warm_runs: list[dict[int, dict]]) -> dict[str, dict]:
    """Return the medians at each concurrency, which is text in the results."""
    return {str(each): medians([run[each] for run in warm_runs]) for each in warm_runs[0]}


def raw(request: dict) -> bytes:
    """Return a request as it goes over the wire."""
    headers = {
        "Host": f"{HOST}:{PORT}",
        "Content-Length": str(len(request["data"])),
        **request["headers"],
    }
    lines = [f"POST {urlsplit(request['url']).path or '/'} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join((*lines, "", "")).encode() + request["data"]
