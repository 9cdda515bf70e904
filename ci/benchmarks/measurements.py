"""What compare_servers.py measures of a server: forecasts, latency, cold bursts, hits, memory."""

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import requests

from contestants import HOST, PORT, URL, Server
from fleet import SHORT, Fleet, Parameters
from forecast_service.artifact import folded_from_bytes
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore
from lab import traffic
from server_process import Running, ServerError, running

WRK_SCRIPT = Path(__file__).with_name("warm.lua")
TIMEOUT_S = 10  # of a request
LOADING_AT_ONCE = 16


class Bench:
    """One server, the fleet, and the traffic between them. Customers are rows of the fleet."""

    def __init__(self, server: Server, fleet: Fleet, preset: Parameters):
        self.server, self.fleet, self.preset = server, fleet, preset
        self.few, self.many = server.preloaded or (0, preset.customers)
        if preset is SHORT and server.preloaded:
            self.many = self.few
        self.warm = range(min(preset.warm_customers, self.many))

    def request(self, row: int) -> dict:
        history = self.fleet.histories[row].tolist()
        return {"url": URL, **self.server.ask(self.fleet.customer_ids[row], history)}

    def running(
        self, *, models: int, preloaded: int, delay_s: float = 0
    ) -> AbstractContextManager[Running]:
        settings = {
            "MODEL_STORE": self.fleet.store,
            "MODELS_PER_REPLICA": str(models),
            "PRELOADED": str(preloaded),
            "STORE_ADDED_DELAY_S": str(delay_s),
        }
        last = preloaded - 1 if self.server.preloaded else 0
        return running(self.server, settings, self.request(last))

    def check_forecasts(self, rows: Sequence[int]) -> None:
        """Raise ServerError unless the forecasts for these customers are the models' own."""
        store = ModelStore(StoreSettings(model_store=self.fleet.store))
        for row in rows:
            name = self.fleet.customer_ids[row]
            model = folded_from_bytes(asyncio.run(store.read(name)).data, name)
            expected = model.predict(self.fleet.histories[row].tolist())._asdict()
            response = requests.post(**self.request(row), timeout=TIMEOUT_S)
            answer = self.server.read(response.json()) if response.ok else {}
            for part, values in expected.items():
                if answer.get(part) != values:
                    raise ServerError(f"{name}: {part} is not {values}: {response.text[:500]}")

    def send(self, rows: Sequence[int], concurrency: int) -> dict:
        """Send a trace, and return the summary of it."""
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
        return asyncio.run(sending).summary()

    def send_warm(self, concurrency: int) -> dict:
        """Send requests for models in memory with wrk, and return what its script prints."""
        with tempfile.NamedTemporaryFile() as requests_file:
            requests_file.write(b"\0".join(raw(self.request(row)) for row in self.warm))
            requests_file.flush()
            command = [
                "wrk",
                "--threads=1",
                f"--connections={concurrency}",
                f"--duration={self.preset.warm_s}s",
                f"--timeout={TIMEOUT_S}s",
                f"--script={WRK_SCRIPT}",
                URL,
            ]
            environment = os.environ | {"REQUESTS": requests_file.name}
            done = subprocess.run(
                command, env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
        return json.loads(done.stdout.splitlines()[-1])

    def measure_warm(self, concurrency: int) -> dict:
        """Return the median run, by requests a second."""
        runs = [self.send_warm(concurrency) for _ in range(self.preset.warm_runs)]
        return sorted(runs, key=lambda run: run["requests_per_s"])[len(runs) // 2]

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

    def measure(self) -> dict:
        """Return all figures, None where the server has no such thing. Raises ServerError."""
        preset = self.preset
        figures = {"cold": None, "zipf": None, "memory": None}
        with self.running(
            models=preset.cache_models, preloaded=self.many, delay_s=preset.store_delay_s
        ) as live:
            figures["start_s"] = live.start_s
            self.check_forecasts(self.warm)
            self.send_warm(preset.concurrency)
            figures["warm"] = {
                str(concurrency): self.measure_warm(concurrency)
                for concurrency in (1, preset.concurrency)
            }
            if not self.server.preloaded:
                figures["cold"] = self.measure_cold()
            if self.many == preset.customers:
                figures["zipf"] = self.measure_zipf(live)
        if preset is not SHORT:
            figures["memory"] = self.measure_memory()
        return figures


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
