"""Fit models of your own families to a table of your own, in parallel on Ray, and store them.

    python train_own_models.py visitors.parquet --time-zone Pacific/Auckland

Each customer gets the family of --family or, without it, the one that did best on its calibration
days. The last half year stays unseen, so that forecasts of its weeks can be judged by what
happened. Exits with 1 if a customer has no model, or a family fits nobody, and with 2 if no table
can be read.
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


Reasons = dict[str, str]  # by family, why a customer has no model of it


@ray.remote
def fit_customer(
    customer_id: str, counts: np.ndarray, trained_until: str, wanted: Sequence[str]
) -> tuple[list[Trained], Reasons]:
    """Fit a model of each family that counts, shape (days,), allow, and say why not of others."""
    trained, reasons = [], {}
    for family in wanted:
        try:
            series = check_series(customer_id, counts, HOLDOUT_DAYS)
            model, error = families.fit(family, customer_id, series[:-HOLDOUT_DAYS], trained_until)
        except ValueError as fault:
            reasons[family] = str(fault)
            continue
        scores = score(model, series)
        artifact = to_bytes(model, trained_until, scores)
        trained.append(Trained(family, error, scores, artifact))
    return trained, reasons


def fit_all(
    table: DailyTable, wanted: Sequence[str] = EVERY_FAMILY
) -> tuple[dict[str, list[Trained]], dict[str, Reasons]]:
    """Fit a model of each family to each customer of a table, and show progress.

    Returns by customer id the models, of a young customer perhaps not of all families, or none; and
    by the ids of those who lack a family's, why.
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
    fitted = {name: outcomes[name][0] for name in table.customer_ids}
    return fitted, {name: outcomes[name][1] for name in fitted if outcomes[name][1]}


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
    wanted = [arguments.family] if arguments.family else EVERY_FAMILY
    fitted, reasons = fit_all(table, wanted)
    chosen = {name: best_on_calibration(models) for name, models in fitted.items() if models}
    asyncio.run(store_all(chosen))
    means = mean_scores(model.scores for model in chosen.values())
    store = StoreSettings().model_store.removeprefix(f"{HOME.as_uri()}/")
    print(f"{len(chosen)} models in {store}")
    if chosen:
        print(f"MASE {means.mase:.3f} (seasonal naive {means.naive_mase:.3f})")
    faults = _count_families(wanted, fitted, chosen, reasons)
    written = dict(zip(table.customer_ids, table.names, strict=True))
    without = left_out + [
        _of(written[name], name, list(reasons[name].values())[-1])
        for name, models in fitted.items()
        if not models
    ]
    if without:
        faults += [f"no model for {len(without)} of the customers:", *without]
    if faults:
        sys.exit("\n".join(faults))


def _count_families(
    wanted: Sequence[str],
    fitted: dict[str, list[Trained]],
    chosen: dict[str, Trained],
    reasons: dict[str, Reasons],
) -> list[str]:
    """Print for how many customers each family was fitted, and return why if it is for none."""
    faults = []
    for family in wanted:
        count = sum(family in [model.family for model in models] for models in fitted.values())
        times = sum(model.family == family for model in chosen.values())
        print(f"{family}: fitted for {count} of {len(fitted)} customers, chosen for {times}")
        if fitted and not count:
            last = list(fitted)[-1]
            faults.append(f"{family} could be fitted for nobody, at last {reasons[last][family]}")
    return faults


def _of(name: str, customer_id: str, reason: str) -> str:
    """Put before a reason what the table calls a customer, if the service calls it otherwise."""
    return reason if name == customer_id else f"{name}: {reason}"


if __name__ == "__main__":
    main()
