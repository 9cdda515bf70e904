"""Fit one model per customer, in parallel on Ray, and write them to the model store.

    MODEL_STORE=s3://my-bucket/forecast-models python train_models.py

The last half year stays unseen, so that forecasts of its weeks can be judged by what happened.
"""

import asyncio
import sys
import traceback
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray
from tqdm import tqdm

from forecast_service.artifact import to_bytes
from forecast_service.customer_ids import check_customer_id
from forecast_service.errors import InvalidCustomerIdError, ServiceError
from forecast_service.model import HOLDOUT_DAYS, Scores, check_series, fit, mean_scores, score
from forecast_service.settings import HOME, StoreSettings
from forecast_service.store import ModelStore

FOOTFALL = Path(__file__).with_name("data") / "footfall.npz"
BATCH_SIZE = 32  # customers a task: one fit is too small a job for a task of its own


def load_footfall() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return customer ids, dates of shape (days,) and daily counts of shape (customers, days)."""
    with np.load(FOOTFALL) as data:
        return data["customer_ids"].tolist(), data["dates"], data["counts"]


def refuse_ids(customer_ids: Sequence[str]) -> dict[str, str]:
    """Return why some customers cannot have a model under their ids, by id."""
    reasons, same_folder = {}, defaultdict(list)
    for customer_id in customer_ids:
        if not (isinstance(customer_id, str) and customer_id):
            reasons[customer_id] = f"{customer_id!r} is no str of 1 to 64 characters"
            continue
        try:
            same_folder[check_customer_id(customer_id).lower()].append(customer_id)
        except InvalidCustomerIdError as error:
            reasons[customer_id] = f"{str(customer_id)!r}: {error}"
    for alike in same_folder.values():
        if len(alike) > 1:
            reasons |= {
                customer_id: f"{customer_id}: {len(alike)} series have this id, upper and lower "
                "case alike, which not every file system tells apart: give each its own"
                for customer_id in alike
            }
    return reasons


@ray.remote
def train_batch(
    customer_ids: list[str],
    counts: list[np.ndarray],
    days: int,
    trained_until: str,
    settings: StoreSettings,
) -> dict[str, Scores | str]:
    """Fit, score and store a model for each series of counts, of shape (days,).

    Returns the scores of each customer, or why there is no model for it.
    """
    outcomes, artifacts = {}, {}
    for customer_id, values in zip(customer_ids, counts, strict=True):
        try:
            series = check_series(customer_id, values, HOLDOUT_DAYS)
            if len(series) != days:
                raise ValueError(f"{customer_id}: {len(series)} counts for {days} dates")
            model = fit(customer_id, series[:-HOLDOUT_DAYS], trained_until)
        except ValueError as error:
            outcomes[customer_id] = str(error)
            continue
        outcomes[customer_id] = score(model, series)
        artifacts[customer_id] = to_bytes(model, outcomes[customer_id])
    store = ModelStore(settings, create=True)

    async def write(customer_id: str, data: bytes) -> None:
        try:
            await store.write(customer_id, data)
        except ServiceError as error:
            cause = traceback.format_exception_only(error.__cause__)[0].partition("\n")[0]
            outcomes[customer_id] = f"{customer_id}: fitted, but not stored: {error} ({cause})"

    async def write_all() -> None:
        await asyncio.gather(*(write(*artifact) for artifact in artifacts.items()))

    asyncio.run(write_all())
    return outcomes


def train(
    customer_ids: Sequence[str],
    dates: np.ndarray,
    counts: Sequence[np.ndarray],
    settings: StoreSettings | None = None,
) -> dict[str, Scores | str]:
    """Train every customer, in batches, and show progress.

    `counts` has a series for each customer, and that a count for each of the dates: an array of
    shape (customers, days), or a list. The models go to the store of `settings`, by default the
    environment's.

    Returns the scores of each customer, in the order of `customer_ids`, or why there is no model
    for it: nothing that is wrong with one customer stops the others.

    Raises:
        ValueError: if there are more ids than series, or fewer: whose each is, is then unknown. If
            the store cannot be opened.
    """
    if len(customer_ids) != len(counts):
        raise ValueError(
            f"{len(customer_ids)} customer ids for {len(counts)} series: counts has the shape "
            "(customers, days)"
        )
    customer_ids, counts = list(customer_ids), list(counts)
    outcomes = refuse_ids(customer_ids)
    rows = [row for row, customer_id in enumerate(customer_ids) if customer_id not in outcomes]
    trained_until = str(dates[-HOLDOUT_DAYS - 1]) if len(dates) > HOLDOUT_DAYS else ""
    settings = settings or StoreSettings()  # here: a task may run where the environment differs
    ModelStore(settings, create=True)  # or raise here, once, what every task would
    pending = [
        train_batch.remote(
            [customer_ids[row] for row in batch],
            [counts[row] for row in batch],
            len(dates),
            trained_until,
            settings,
        )
        for batch in (rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE))
    ]
    with tqdm(total=len(rows), unit="customer", file=sys.stdout) as progress:
        while pending:
            (finished,), pending = ray.wait(pending)
            batch = ray.get(finished)
            outcomes |= batch
            progress.update(len(batch))
    return {customer_id: outcomes[customer_id] for customer_id in customer_ids}


def summarize(fleet: list[Scores]) -> str:
    """Say how good a fleet is on average, and how many of its models have no score of a kind."""
    means = mean_scores(fleet)
    texts = {
        "mase": f"MASE {means.mase:.3f} (seasonal naive {means.naive_mase:.3f})",
        "wape": f"WAPE {means.wape:.1%}",
        "coverage": f"interval covers {means.coverage:.1%} of days",
    }
    lines = [", ".join(text for name, text in texts.items() if name in means.existing())]
    for name, reason in ("mase", "series repeat weekly"), ("wape", "hold-outs are all zeros"):
        if lacking := sum(name not in scores.existing() for scores in fleet):
            lines.append(f"{lacking} of {len(fleet)} have no {name.upper()}: their {reason}")
    return "\n".join(lines)


def require_all(outcomes: dict[str, Scores | str]) -> None:
    """Exit, and name who has no model and why, unless each customer has one.

    Raises:
        SystemExit: with status 1.
    """
    reasons = [outcome for outcome in outcomes.values() if isinstance(outcome, str)]
    if reasons:
        sys.exit("\n".join([f"{len(reasons)} customers have no model:", *reasons]))
    if not outcomes:
        sys.exit("there are no customers to train")


def main() -> dict[str, Scores | str]:
    """Train the fleet and print how good it is. Returns what train() returns.

    Raises:
        SystemExit: if a customer has no model, or there is none.
    """
    if not ray.is_initialized():
        ray.init()
    outcomes = train(*load_footfall())
    fleet = [outcome for outcome in outcomes.values() if isinstance(outcome, Scores)]
    store = StoreSettings().model_store.removeprefix(f"{HOME.as_uri()}/")
    print(f"{len(fleet)} models in {store}")
    if fleet:
        print(summarize(fleet))
    require_all(outcomes)
    return outcomes


if __name__ == "__main__":
    main()
