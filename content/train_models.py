"""Fit one model per customer, in parallel on Ray, and write them to the model store.

    MODEL_STORE=s3://my-bucket/forecast-models python train_models.py

The last half year stays unseen, so that forecasts of its weeks can be judged by what happened.
"""

import asyncio
import sys
from pathlib import Path

import numpy as np
import ray
from tqdm import tqdm

from forecast_service.artifact import to_bytes
from forecast_service.model import HOLDOUT_DAYS, Scores, fit, score
from forecast_service.settings import HOME, StoreSettings
from forecast_service.store import ModelStore

FOOTFALL = Path(__file__).with_name("data") / "footfall.npz"
BATCH_SIZE = 32  # customers a task: one fit is too small a job for a task of its own


def load_footfall() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return customer ids, dates of shape (days,) and daily counts of shape (customers, days)."""
    with np.load(FOOTFALL) as data:
        return data["customer_ids"].tolist(), data["dates"], data["counts"]


@ray.remote
def train_batch(
    customer_ids: list[str], counts: np.ndarray, trained_until: str, settings: StoreSettings
) -> dict[str, Scores | str]:
    """Fit, score and store a model for each row of `counts`, shape (customers, days).

    Returns the scores of each customer, or why there is no model for it.
    """
    outcomes, artifacts = {}, {}
    for customer_id, series in zip(customer_ids, counts, strict=True):
        try:
            model = fit(customer_id, series[:-HOLDOUT_DAYS], trained_until)
        except ValueError as error:
            outcomes[customer_id] = str(error)
            continue
        outcomes[customer_id] = score(model, series)
        artifacts[customer_id] = to_bytes(model, outcomes[customer_id])
    store = ModelStore(settings, create=True)

    async def write_all() -> None:
        await asyncio.gather(
            *(store.write(customer_id, data) for customer_id, data in artifacts.items())
        )

    asyncio.run(write_all())
    return outcomes


def train(
    customer_ids: list[str],
    dates: np.ndarray,
    counts: np.ndarray,
    settings: StoreSettings | None = None,
) -> dict[str, Scores | str]:
    """Train every customer, in batches, and show progress. Returns all that train_batch returns.

    The models go to the store of `settings`, by default the environment's.
    """
    trained_until = str(dates[-HOLDOUT_DAYS - 1])
    settings = settings or StoreSettings()  # here: a task may run where the environment differs
    pending = [
        train_batch.remote(customer_ids[batch], counts[batch], trained_until, settings)
        for batch in (
            slice(start, start + BATCH_SIZE) for start in range(0, len(customer_ids), BATCH_SIZE)
        )
    ]
    outcomes = {}
    with tqdm(total=len(customer_ids), unit="customer", file=sys.stdout) as progress:
        while pending:
            (finished,), pending = ray.wait(pending)
            batch = ray.get(finished)
            outcomes |= batch
            progress.update(len(batch))
    return outcomes


def main() -> dict[str, Scores | str]:
    """Train the fleet and print how good it is. Returns what train() returns.

    Raises:
        SystemExit: if a customer has no model.
    """
    if not ray.is_initialized():
        ray.init()
    outcomes = train(*load_footfall())
    scores = np.array([outcome for outcome in outcomes.values() if isinstance(outcome, Scores)])
    mase, naive_mase, wape, coverage = np.nanmean(scores, axis=0)
    store = StoreSettings().model_store.removeprefix(f"{HOME.as_uri()}/")
    print(f"{len(scores)} models in {store}")
    print(
        f"MASE {mase:.3f} (seasonal naive {naive_mase:.3f}), WAPE {wape:.1%}, "
        f"interval covers {coverage:.1%} of days"
    )
    failures = [outcome for outcome in outcomes.values() if isinstance(outcome, str)]
    if failures:
        sys.exit(f"{len(failures)} customers have no model:\n" + "\n".join(failures))
    return outcomes


if __name__ == "__main__":
    main()
