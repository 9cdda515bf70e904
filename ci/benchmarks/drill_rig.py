"""What drills.py drills: the service on a store that fails as told, and clients who know better."""

import asyncio
import os
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTENT = ROOT / "content"
sys.path[:0] = [str(CONTENT), str(ROOT / "ci" / "tests")]
os.environ["PYTHONPATH"] = str(CONTENT)  # for Ray's workers

import aiohttp  # noqa: E402
from ray.util.state import list_actors  # noqa: E402

from faulty_store import FaultyStore  # noqa: E402
from forecast_service.artifact import folded_from_bytes, to_bytes  # noqa: E402
from forecast_service.contract import ForecastRequest, respond  # noqa: E402
from forecast_service.model import HOLDOUT_DAYS, LAGS, fit, score  # noqa: E402
from forecast_service.settings import Settings  # noqa: E402
from lab import local_ray  # noqa: E402
from lab.cluster_metrics import read_metrics  # noqa: E402
from lab.serving import launch  # noqa: E402
from lab.traffic import forecast_request  # noqa: E402
from serve_forecast_production import ForecastingService  # noqa: E402
from steady_load import SteadyLoad  # noqa: E402
from train_models import load_footfall  # noqa: E402

SERVICE = "http://127.0.0.1:8000"
CUSTOMERS = 60
RATE = 40  # requests per second of the steady load
REPLICAS = 2
RELOAD_CHECK_S = 1
SETTINGS = {
    "models_per_replica": 8,  # of CUSTOMERS: most requests wait for the store
    "reload_check_s": RELOAD_CHECK_S,
    "store_timeout_s": 4,
}
OPTIONS = {
    "ray_actor_options": {"num_cpus": 0.25},  # three replicas, and those that replace them
    "logging_config": {"log_level": "WARNING", "enable_access_log": False},
}
STORE_DELAY_S = 0.02  # of the store's answers, unless a drill says otherwise
TIGHT = f"{SERVICE}/tight"  # a second service: one replica, one model, few requests at a time
ONGOING, QUEUED = 4, 8
DEADLINE_S = 60


class Rig:
    """A service on a store that fails when told to, and clients who know the right answers."""

    def __init__(self):
        names, dates, counts = load_footfall()
        self.store = FaultyStore()
        self.store.delay_s = STORE_DELAY_S
        self.histories, self.right = {}, {}
        numbered = [name for name in names if name[-1].isdigit() and len(name) == 13]
        for name in sorted(numbered)[:CUSTOMERS]:
            series = counts[names.index(name)]
            model = fit(name, series[:-HOLDOUT_DAYS], str(dates[-HOLDOUT_DAYS - 1]))
            data = to_bytes(model, score(model, series))
            self.store.artifacts[name] = data
            self.histories[name] = series[-LAGS:].tolist()
            answer = respond(
                folded_from_bytes(data, name), ForecastRequest.of(self.histories[name])
            )
            self.right[name] = answer.model_dump_json(exclude_none=True).encode()
        self.artifacts = dict(self.store.artifacts)  # as they should be
        self.names = list(self.artifacts)

    def start(self) -> None:
        """Start Ray and both services."""
        self.session_dir = local_ray.start(metrics_every_s=1)
        self.deploy()
        tight = ForecastingService.options(
            **OPTIONS, max_ongoing_requests=ONGOING, max_queued_requests=QUEUED
        )
        settings = SETTINGS | {"models_per_replica": 1}
        launch(tight.bind(Settings(model_store=self.store.url, **settings)), "tight", "/tight")

    def deploy(self) -> None:
        """Deploy the first service; where it runs, its replicas are replaced."""
        service = ForecastingService.options(**OPTIONS, num_replicas=REPLICAS)
        pinned = self.names[:1]
        settings = Settings(model_store=self.store.url, pinned_customers=pinned, **SETTINGS)
        launch(service.bind(settings))

    def load(self, names: Iterable[str] | None = None, url: str = SERVICE, **how) -> SteadyLoad:
        """Return steady load for customers, by default for all."""
        histories = {name: self.histories[name] for name in names or self.names}
        return SteadyLoad(url, histories, **{"rate": RATE} | how)

    async def _ask(self, names: list[str], url: str, patience_s: float) -> list[tuple[int, bytes]]:
        timeout = aiohttp.ClientTimeout(total=patience_s)
        async with aiohttp.ClientSession(timeout=timeout) as session:

            async def ask_one(name: str) -> tuple[int, bytes]:
                request = forecast_request(name, self.histories[name])
                async with session.post(url, **request) as response:
                    return response.status, await response.read()

            return await asyncio.gather(*map(ask_one, names), return_exceptions=True)

    def ask(self, names: list[str], url: str = SERVICE, patience_s: float = DEADLINE_S) -> list:
        """Ask for customers at once. Return each status and body, or the client's exception."""
        return asyncio.run(self._ask(names, url, patience_s))

    def require_right(self, names: list[str], url: str = SERVICE) -> None:
        """Ask for customers at once. Fail unless each gets the right answer at the first try."""
        for name, answer in zip(names, self.ask(names, url), strict=True):
            assert answer == (200, self.right[name]), f"{name}: {answer}"

    def replicas(self) -> set[int]:
        """Return the processes of the first service's replicas."""
        actors = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
        return {
            actor.pid for actor in actors if actor.class_name.startswith("ServeReplica:default:")
        }

    def at_work(self) -> float:
        """Return how many requests all replicas are working on, as Ray Serve reports it."""
        samples = read_metrics(self.session_dir)
        return sum(s.value for s in samples if s.name == "ray_serve_replica_processing_queries")

    def stop(self) -> None:
        local_ray.stop()
