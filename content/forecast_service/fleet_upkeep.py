"""Keep the forecasts of a fleet good: all of its customers, in Ray tasks, one process at a time."""

import asyncio
import logging
from collections.abc import Mapping

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from forecast_service.customer_upkeep import Outcome, keep_up_customer
from forecast_service.errors import StoreUnavailableError
from forecast_service.lease import LEASE_S, Lease, LeaseHeldError
from forecast_service.settings import StoreSettings
from forecast_service.versions import Versions

BATCH_SIZE = 32  # customers a task
TURNS = 10  # to renew a lease while it lasts
logger = logging.getLogger(__name__)


class HalfwayError(Exception):
    """A run stopped half-way; its cause says why. Each model that serves is a good one."""


def keep_up(
    series: Mapping[str, np.ndarray], until: str, settings: StoreSettings, lease_s: float = LEASE_S
) -> dict[str, Outcome | str]:
    """Judge and mend every customer in a store: see keep_up_customer().

    `series` has daily counts by customer, shape (days,), which all end on the day `until`.

    Returns what was found about each customer of the series and of the store, or why nothing was.

    Raises:
        LeaseHeldError: if another process is at work on this store.
        StoreUnavailableError: if the store does not answer.
        FileNotFoundError, ValueError: if it cannot be opened.
        HalfwayError: if this happens later, because of a LeaseHeldError, or of Ray, a RayError.
    """
    store = Versions(settings).serving
    lease = Lease(settings, lease_s)
    with lease.held():
        if not ray.is_initialized():  # not before: whoever has to leave again starts none
            ray.init(logging_level="error")
        known = set(asyncio.run(store.list()))
        names = sorted(known & series.keys())
        batches = [
            _keep_up_batch.remote({name: series[name] for name in batch}, until, settings)
            for batch in (names[at : at + BATCH_SIZE] for at in range(0, len(names), BATCH_SIZE))
        ]
        found = _wait_for(batches, lease, lease_s)
    found |= {
        name: f"{name}: there is no model to keep up: train it first, or correct the id"
        for name in series.keys() - known
    }
    return found | {
        name: f"{name}: there are no actuals for its model: give them, or delete the model of a "
        "customer who has left"
        for name in known - series.keys()
    }


def _wait_for(
    batches: list[ray.ObjectRef], lease: Lease, lease_s: float
) -> dict[str, Outcome | str]:
    """Return what tasks found, and renew the lease meanwhile. None works on without a lease.

    Raises HalfwayError, as keep_up().
    """
    pending = batches
    try:
        while pending:
            _, pending = ray.wait(pending, num_returns=len(pending), timeout=lease_s / TURNS)
            if pending:
                try:
                    asyncio.run(lease.renew())
                except StoreUnavailableError as error:  # the lease lasts for some more turns
                    logger.warning("the lease was not renewed: %s", error)
        return {name: one for batch in ray.get(batches) for name, one in batch.items()}
    except (LeaseHeldError, OSError, RayError) as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        raise HalfwayError(str(cause).partition("\n")[0] or repr(cause)) from error
    finally:
        for batch in pending:
            ray.cancel(batch)
        if pending:  # a task that has begun ends a moment later
            ray.wait(pending, num_returns=len(pending), timeout=lease_s)


@ray.remote
def _keep_up_batch(
    series: dict[str, np.ndarray], until: str, settings: StoreSettings
) -> dict[str, Outcome | str]:
    async def keep_up_each() -> dict[str, Outcome | str]:
        versions = Versions(settings)
        return {
            name: await keep_up_customer(versions, name, counts, until)
            for name, counts in series.items()
        }

    return asyncio.run(keep_up_each())
