"""More customers than the data has: synthetic ones, calibrated on the real ones.

    python -m lab.synthetic_customers 10000

trains that many into MODEL_STORE, for tests of load and capacity. They say nothing new about
accuracy: however many there are, they vary what 470 real series have.
"""

import argparse
import time

import numpy as np
import ray
from numpy.lib.stride_tricks import sliding_window_view

from forecast_service.model import SEASON, Scores
from forecast_service.settings import StoreSettings
from train_models import load_footfall, require_all, train

WEEKS = 104  # two years of days, of which train() wants 399
TREND_DAYS = 5 * SEASON  # the span of the moving average
BLOCK_WEEKS = 2  # of residuals stay together, and with them how a day depends on the last
NEIGHBOURS = 5  # a second parent is one of those whose average weeks are the most alike


def decompose(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split daily counts, shape (customers, WEEKS * SEASON), into parts that add up on a log scale.

    Returns the average week, shape (customers, SEASON), and the trend around it and the residuals,
    each of shape (customers, WEEKS, SEASON).
    """
    logs = np.log1p(counts, dtype=float).reshape(-1, WEEKS, SEASON)
    week = logs.mean(axis=1)
    rest = (logs - week[:, None]).reshape(counts.shape)
    margin = TREND_DAYS // 2
    padded = np.pad(rest, ((0, 0), (margin, margin)), mode="symmetric")
    trend = sliding_window_view(padded, TREND_DAYS, axis=1).mean(axis=-1)
    return week, trend.reshape(logs.shape), (rest - trend).reshape(logs.shape)


def blend(parents: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """Mix two parents' parts; `share` is the first one's."""
    first, second = parents
    return share * first + (1 - share) * second


def generate(customers: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return synthetic customers in the form that train_models.train() takes.

    These are ids `synthetic_00000` and on, the last WEEKS * SEASON dates of the real data, and
    whole counts of shape (customers, days). A customer is the same however many are asked for.

    Each has two real parents whose average weeks are alike. It blends their weeks and their trends
    on a log scale, and takes each block of residuals from one of the two, on its own dates: so
    holidays stay where they are, and the customers depend on each other as the real ones do.
    Raises ValueError unless at least one customer is asked for.
    """
    if customers < 1:
        raise ValueError(f"ask for at least one customer, not {customers}")
    _, dates, real = load_footfall()
    days = WEEKS * SEASON
    week, trend, residual = decompose(real[:, -days:])
    distance = ((week[:, None] - week) ** 2).sum(axis=-1)
    neighbours = np.argsort(distance, axis=1, kind="stable")[:, 1 : NEIGHBOURS + 1]
    counts = np.empty((customers, days), np.int32)
    for number, series in enumerate(counts):
        rng = np.random.default_rng([seed, number])
        parent = rng.integers(len(real))
        parents = [parent, rng.choice(neighbours[parent])]
        week_share, trend_share = rng.random(2)
        from_first = rng.random((WEEKS // BLOCK_WEEKS, 1)) < 0.5
        logs = (
            blend(week[parents], week_share)
            + blend(trend[parents], trend_share)
            + blend(residual[parents], from_first.repeat(BLOCK_WEEKS, axis=0))
        )
        series[:] = np.maximum(np.expm1(logs), 0).round().ravel()
    return [f"synthetic_{number:05}" for number in range(customers)], dates[-days:], counts


def main() -> None:
    """Generate and train as many customers as the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("customers", type=int)
    customers = parser.parse_args().customers
    started = time.perf_counter()
    try:
        fleet = generate(customers)
    except ValueError as error:
        parser.error(str(error))
    if not ray.is_initialized():
        ray.init()
    outcomes = train(*fleet)
    models = sum(isinstance(outcome, Scores) for outcome in outcomes.values())
    elapsed_s = time.perf_counter() - started
    store = StoreSettings().model_store
    print(f"{models} models of synthetic customers in {store}, in {elapsed_s:.0f} s")
    require_all(outcomes)


if __name__ == "__main__":
    main()
