"""The models that the comparisons serve, and how much of what compare_servers.py asks for."""

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from forecast_service.artifact import to_bytes
from forecast_service.model import HOLDOUT_DAYS, LAGS, fit, score
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore
from lab.synthetic_customers import generate
from train_models import load_footfall


@dataclass(frozen=True)
class Parameters:
    customers: int = 2000
    cache_models: int = 200  # that a server keeps in memory
    store_delay_s: float = 0.1  # simulated, before each read of the store
    warm_customers: int = 32
    warm_s: int = 2  # of requests at each concurrency
    warm_runs: int = 3
    turns: int = 5  # runs, each on a server started for it, of those that targets compare
    concurrency: int = 16
    cold_singles: int = 5
    burst: int = 32  # distinct cold customers at once
    bursts: int = 5
    zipf_skew: float = 1.0
    zipf_requests: int = 2000
    crowd: int = 10_000  # customers whose models a single replica is to hold
    seed: int = 0


FULL = Parameters()
SHORT = Parameters(
    customers=200, cache_models=40, warm_s=1, warm_runs=1, bursts=1, zipf_requests=100
)


class Fleet(NamedTuple):
    store: str
    customer_ids: list[str]  # sorted
    histories: np.ndarray  # (customers, LAGS)


def build_fleet(folder: str, customers: int) -> Fleet:
    """Fit models of real customers, and of synthetic ones when those do not suffice."""
    names, dates, counts = load_footfall()
    series = dict(zip(names, counts, strict=True))
    if customers > len(series):
        names, _, counts = generate(customers - len(series))
        series |= zip(names, counts, strict=True)
    customer_ids = sorted(series)[:customers]
    store = ModelStore(StoreSettings(model_store=folder))

    async def write_all() -> None:
        for name in customer_ids:
            model = fit(name, series[name][:-HOLDOUT_DAYS], str(dates[-HOLDOUT_DAYS - 1]))
            await store.write(name, to_bytes(model, score(model, series[name])))

    asyncio.run(write_all())
    return Fleet(folder, customer_ids, np.array([series[name][-LAGS:] for name in customer_ids]))
