"""Fit models of your own families to a table of your own, in parallel on Ray, and store them.

    python train_own_models.py visitors.parquet --time-zone Pacific/Auckland

Each customer gets the family of --family or, without it, the one that did best on its calibration
days. The last half year stays unseen, so that forecasts of its weeks can be judged by what
happened.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import ray
from tqdm import tqdm

from forecast_service.long_table import DailyTable, add_arguments, read_table_of
from forecast_service.model import HOLDOUT_DAYS, Scores, check_series, mean_scores, score
from forecast_service.settings import HOME, StoreSettings
from forecast_service.store import ModelStore
from own_models import families
from own_models.artifact import to_bytes

EVERY_FAMILY = families.LINEAR, *families.FAMILIES


class Trained(NamedTuple):
    """A model of a customer."""

    family: str
    calibration_error: float  # mean absolute error on the calibration days
    scores: Scores  # on the hold-out
    artifact: bytes


@ray.remote
def fit_customer(
    customer_id: str, counts: np.ndarray, trained_until: str, wanted: Sequence[str]
) -> list[Trained] | str:
    """Fit a model of each family that counts, shape (days,), allow, or say why there is none."""
    trained, reason = [], ""
    for family in wanted:
        try:
            series = check_series(customer_id, counts, HOLDOUT_DAYS)
            model, error = families.fit(family, customer_id, series[:-HOLDOUT_DAYS], trained_until)
        except ValueError as fault:
            reason = str(fault)
            continue
        scores = score(model, series)
        artifact = to_bytes(model, trained_until, scores)
        trained.append(Trained(family, error, scores, artifact))
    return trained or reason


def fit_all(
    table: DailyTable, wanted: Sequence[str] = EVERY_FAMILY
) -> dict[str, list[Trained] | str]:
    """Fit a model of each family to each customer of a table, and show progress.

    Returns by customer id the models, of a young customer perhaps not of all families, or why there
    is none.
    """
    trained_until = str(table.dates[-HOLDOUT_DAYS - 1]) if len(table.dates) > HOLDOUT_DAYS else ""
    tasks = {
        fit_customer.remote(name, table.series(name), trained_until, wanted): name
        for name in table.customer_ids
    }
    outcomes, pending = {}, list(tasks)
    with tqdm(total=len(pending), unit="customer", file=sys.stdout) as progress:
        while pending:
            (finished,), pending = ray.wait(pending)
            outcomes[tasks[finished]] = ray.get(finished)
            progress.update()
    return {name: outcomes[name] for name in table.customer_ids}


def best_on_calibration(models: Sequence[Trained]) -> Trained:
    """Return the model with the least error on days that neither its fit nor the hold-out saw."""
    return min(models, key=lambda model: model.calibration_error)


async def store_all(chosen: dict[str, Trained], settings: StoreSettings | None = None) -> None:
    """Put a model for each customer into the store of `settings`, by default the environment's."""
    store = ModelStore(settings, create=True)
    await asyncio.gather(*(store.write(name, model.artifact) for name, model in chosen.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--family", choices=EVERY_FAMILY, help="by default, the best of them")
    arguments = parser.parse_args()
    table = read_table_of(arguments)
    left_out = [str(problem) for problem in table.problems if problem.left_out]
    if not ray.is_initialized():
        ray.init()
    outcomes = fit_all(table, [arguments.family] if arguments.family else EVERY_FAMILY)
    chosen = {
        name: best_on_calibration(models)
        for name, models in outcomes.items()
        if not isinstance(models, str)
    }
    asyncio.run(store_all(chosen))
    means = mean_scores(model.scores for model in chosen.values())
    store = StoreSettings().model_store.removeprefix(f"{HOME.as_uri()}/")
    print(f"{len(chosen)} models in {store}")
    if chosen:
        print(f"MASE {means.mase:.3f} (seasonal naive {means.naive_mase:.3f})")
    written = dict(zip(table.customer_ids, table.names, strict=True))
    reasons = left_out + [
        outcome if name == written[name] else f"{written[name]}: {outcome}"
        for name, outcome in outcomes.items()
        if isinstance(outcome, str)
    ]
    if reasons:
        sys.exit("\n".join([f"no model for {len(reasons)} of the customers:", *reasons]))


if __name__ == "__main__":
    main()
