"""Plan a cache: how many models a replica must keep for a hit rate, and how much memory that is.

    python -m lab.capacity --customers 2000 --skew 1.0 --target 0.95 --replicas 4

Simulates least recently used (LRU) caches on independent requests whose popularity follows Zipf's
law. Columns: models that one cache for all needs; the same by Che's approximation; the hit rate if
replicas share them equally, each customer on one replica, as under a router that hashes model ids;
models that a replica then needs for the target; their memory.

    python -m lab.capacity --sizes 0.05:0.9,4:0.1 --replicas 4
    python -m lab.capacity --sizes 0.05:0.9,4:0.1 --replicas 4 --memory-mb 50 100

Where models differ in size, their memory is planned, in MB of 1e6 bytes: by the first, the budget
that a hit rate takes, and by the second, the hit rate with budgets of a replica. Its last columns:
the share of requests for a model larger than the budget, which the service refuses; and as how many
models `models_per_replica` has to allow, if memory alone is to limit them. What pinned models take
is no part of these budgets.
"""

import argparse
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lab.traffic import zipf_popularity, zipf_trace

TARGETS = 0.8, 0.9, 0.95, 0.99  # hit rates in the table, besides --target
CUSTOMERS = 2000
REQUESTS = 1_000_000  # so that nearly all of 10 000 customers come up while the caches warm
BYTES_PER_MODEL = 50_000  # by which a replica grew, Ray's metrics included: see chapters/05_tune
BYTES_PER_MB = 1e6
BUDGETS = 10_000  # that --sizes tries, from the largest model to all of them
TIMES, REST = 500, 40  # in Che's table; at its end no customer is absent but by exp(-40)


def stack_distances(trace: np.ndarray) -> np.ndarray:
    """Return the size of the smallest LRU cache that each request hits, shape (requests,).

    It is the number of customers since this one was last asked for, itself included, and 0 if it
    never was (Mattson et al., 1970, "Evaluation techniques for storage hierarchies").
    """
    distances = np.empty(len(trace), int)
    last_use: dict = {}  # by customer
    last_uses: list[int] = []  # its values, sorted: the order in which an LRU cache evicts
    for now, customer in enumerate(trace.tolist()):
        place = bisect_left(last_uses, last_use.get(customer, now))
        distances[now] = len(last_uses) - place
        del last_uses[place : place + 1]  # nothing, if it is a first request
        last_uses.append(now)
        last_use[customer] = now
    return distances


def byte_distances(trace: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the smallest budget with which each request hits, in bytes, shape (requests,).

    It is the sum of `sizes`, in bytes by customer, over the customers since this one was last asked
    for, itself included, and 0 if it never was. That is exact for budgets that each of these models
    fits into: a cache which makes room from its old end, and no more than a new model needs, holds
    as many of the most recent models as fit. The sums come from a binary indexed tree (Fenwick,
    1994, "A new data structure for cumulative frequency tables") over the times of last uses.
    """
    distances = np.empty(len(trace), int)
    sizes = sizes.tolist()
    tree = [0] * (len(trace) + 1)  # of the sizes of customers, at the time of their last use
    last_use: dict[int, int] = {}  # by customer; the first time is 1
    seen = 0  # bytes of all customers so far

    def add(time: int, size: int) -> None:
        while time < len(tree):
            tree[time] += size
            time += time & -time

    for now, customer in enumerate(trace.tolist(), start=1):
        distance, size = 0, sizes[customer]
        if customer in last_use:
            distance, before = seen, last_use[customer] - 1
            while before:
                distance -= tree[before]
                before -= before & -before
            add(last_use[customer], -size)
        else:
            seen += size
        distances[now - 1] = distance
        add(now, size)
        last_use[customer] = now
    return distances


def lru_hit_rates(trace: np.ndarray, skip: int = 0, replica: np.ndarray | int = 0) -> np.ndarray:
    """Return the hit rate of an LRU cache by its size, shape (customers in the trace + 1,).

    The first `skip` requests warm the cache and do not count. With `replica`, shape (requests,),
    each replica has such a cache for its own requests. Raises ValueError if none is left to count.
    """
    _check_skip(skip, len(trace))
    distances = _by_replica(stack_distances, trace, replica)
    hits = np.bincount(distances[skip:], minlength=len(np.unique(trace)) + 1)
    return (hits.cumsum() - hits[0]) / (len(trace) - skip)  # at 0 are first requests: no hits


def budget_hit_rates(
    trace: np.ndarray,
    sizes: np.ndarray,
    budgets: Sequence[float],
    skip: int = 0,
    replica: np.ndarray | int = 0,
) -> np.ndarray:
    """Return the hit rate of an LRU cache by its budget in bytes, shape (budgets,).

    `sizes`, shape (customers,), are what models report as `size_bytes`, by the customers' numbers,
    which the trace has. A model larger than the budget never fits, and none makes way for it: its
    requests count as misses. `skip` and `replica` are those of lru_hit_rates().

    Raises:
        ValueError: if no request is left to count, or a size is not a whole number above 0.
    """
    _check_skip(skip, len(trace))
    sizes, budgets = np.asarray(sizes), np.asarray(budgets)
    if sizes.dtype.kind not in "iu" or sizes.min() < 1:
        raise ValueError("sizes have to be whole numbers of bytes, above 0")
    replica = np.broadcast_to(replica, trace.shape)
    fitting = np.searchsorted(np.sort(sizes), budgets, side="right")  # so many of the models
    hits = np.empty(len(budgets), int)
    for same in (fitting == models for models in np.unique(fitting)):
        fits = sizes[trace] <= budgets[same].min()  # what others ask for moves no model
        distances = np.zeros(len(trace), int)
        distances[fits] = _by_replica(
            lambda own: byte_distances(own, sizes), trace[fits], replica[fits]
        )
        counted = distances[skip:]
        hits[same] = np.searchsorted(np.sort(counted[counted > 0]), budgets[same], side="right")
    return hits / (len(trace) - skip)


def _check_skip(skip: int, requests: int) -> None:
    if not 0 <= skip < requests:
        raise ValueError(f"skip is {skip}: it has to leave some of {requests} requests to count")


def _by_replica(
    distances_of: Callable[[np.ndarray], np.ndarray], trace: np.ndarray, replica: np.ndarray | int
) -> np.ndarray:
    replica = np.broadcast_to(replica, trace.shape)
    distances = np.empty(len(trace), int)
    for one in np.unique(replica):
        distances[replica == one] = distances_of(trace[replica == one])
    return distances


def che_hit_rates(
    popularity: np.ndarray, sizes: np.ndarray, model_sizes: np.ndarray | float = 1
) -> np.ndarray:
    """Approximate the hit rate of LRU caches of these sizes under independent requests.

    `popularity`, shape (customers,), sums to 1. An unused model stays for t requests, with size =
    sum(1 - exp(-popularity * t)) (Che, Tung & Wang, 2002, "Hierarchical Web caching systems").
    Sizes are in models or, with `model_sizes`, shape (customers,), in their unit, and then none may
    be smaller than a model.
    """
    occupied, hit_rates = [], []
    for t in (0, *np.geomspace(1, REST / popularity[popularity > 0].min(), TIMES)):
        present = -np.expm1(-popularity * t)
        occupied.append((model_sizes * present).sum())
        hit_rates.append(popularity @ present)
    return np.interp(sizes, occupied, hit_rates) / hit_rates[-1]  # 1 but for rounding


def smallest_cache(hit_rates: np.ndarray, target: float) -> int:
    """Return the first size whose hit rate is at least `target`. Raises ValueError if none is."""
    if (highest := hit_rates.max()) < target:
        raise ValueError(f"no cache has a hit rate of {target:.2%}, the highest is {highest:.2%}")
    return int(np.argmax(hit_rates >= target))


def read_sizes(text: str, customers: int | None, seed: int) -> np.ndarray:
    """Return the bytes of each customer's model, shape (customers,), the most popular first.

    `text` is what `--sizes` takes. A file says how many customers there are; otherwise there are
    `customers`, by default CUSTOMERS, and `seed` draws who has which size.

    Raises:
        ValueError: if it is none of them, or not for so many customers.
    """
    if Path(text).is_file():
        try:
            megabytes = np.array([float(size) for size in Path(text).read_text().split()])
        except ValueError as error:
            raise ValueError(f"{text} has to be a list of numbers: {error}") from None
        if customers not in (None, len(megabytes)):
            raise ValueError(f"{text} has {len(megabytes)} for {customers} customers")
    else:
        try:
            kinds = [part.split(":") for part in text.split(",")] if ":" in text else [(text, 1)]
            of_kind, shares = np.array(kinds, float).T
        except ValueError:
            raise ValueError(f"{text} is no file, and not sizes as 4 or 0.05:0.9,4:0.1") from None
        if not (shares >= 0).all() or not math.isclose(shares.sum(), 1):
            raise ValueError(f"shares have to be 0 or more and to sum to 1, not {shares.sum():g}")
        ends = np.rint(shares.cumsum() * (customers or CUSTOMERS)).astype(int)
        megabytes = np.repeat(of_kind, np.diff(ends, prepend=0))
        np.random.default_rng((seed, 1)).shuffle(megabytes)  # 1: not the draws of the hash
    if not len(megabytes) or not np.isfinite(megabytes).all() or megabytes.min() < 1 / BYTES_PER_MB:
        raise ValueError(f"{text}: a size is a number of MB, of at least a byte")
    return np.rint(megabytes * BYTES_PER_MB).astype(int)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the plan that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--customers", type=int, help=f"by default {CUSTOMERS}")
    parser.add_argument("--skew", type=float, default=1.0, help="0: all are as popular")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="half of them warm up")
    parser.add_argument("--seed", type=int, default=0, help="of the trace, the hash and the sizes")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--target", type=float, default=0.95, help="hit rate, 0 to 1")
    asked.add_argument(
        "--memory-mb", type=float, nargs="+", help="budgets of a replica", default=[]
    )
    room = parser.add_mutually_exclusive_group()
    room.add_argument("--bytes-per-model", type=float, default=BYTES_PER_MODEL)
    room.add_argument(
        "--sizes",
        help="MB that models report: SIZE, or SIZE:SHARE,SIZE:SHARE,... by share of customers, or "
        "a file with a size for each customer, the most popular first",
    )
    plan = parser.parse_args(arguments)
    customers = CUSTOMERS if plan.customers is None else plan.customers
    if min(customers, plan.replicas, plan.requests, plan.bytes_per_model) <= 0:
        parser.error("customers, replicas, requests and bytes per model have to be above 0")
    if not all(budget > 0 for budget in plan.memory_mb):
        parser.error("a budget of --memory-mb has to be above 0")
    sizes = np.full(customers, math.ceil(plan.bytes_per_model))
    if plan.sizes:
        try:
            sizes = read_sizes(plan.sizes, plan.customers, plan.seed)
        except ValueError as error:
            parser.error(f"--sizes: {error}")
    popularity = zipf_popularity(len(sizes), plan.skew)
    trace = zipf_trace(len(sizes), plan.requests, plan.skew, plan.seed)
    hashed = np.random.default_rng(plan.seed).integers(plan.replicas, size=len(sizes))[trace]
    try:
        if plan.memory_mb:
            _print_hit_rates(plan, trace, hashed, sizes)
        elif plan.sizes:
            _print_budgets(plan, trace, hashed, sizes, popularity)
        else:
            _print_models(plan, trace, hashed, popularity)
    except ValueError as error:
        parser.error(f"{error}; more --requests may raise it: a first one always misses")


def _targets(plan: argparse.Namespace, highest: float) -> list[float]:
    return sorted({plan.target, *(rate for rate in TARGETS if rate <= highest)})


def _print_models(
    plan: argparse.Namespace, trace: np.ndarray, hashed: np.ndarray, popularity: np.ndarray
) -> None:
    pooled, split = (lru_hit_rates(trace, plan.requests // 2, at) for at in (0, hashed))
    by_che = che_hit_rates(popularity, range(len(popularity) + 1))
    print("hit rate  one cache  by Che  its share  a replica         MB     all MB")
    for target in _targets(plan, split.max()):
        one, che, each = (smallest_cache(rates, target) for rates in (pooled, by_che, split))
        figures = f"{target:8.1%}{one:11}{che:8}{split[-(-one // plan.replicas)]:11.1%}{each:11}"
        mb = each * plan.bytes_per_model / BYTES_PER_MB
        print(f"{figures}{mb:11.2f}{mb * plan.replicas:11.2f}")


def _print_budgets(
    plan: argparse.Namespace,
    trace: np.ndarray,
    hashed: np.ndarray,
    sizes: np.ndarray,
    popularity: np.ndarray,
) -> None:
    budgets = np.linspace(sizes.max(), sizes.sum(), BUDGETS)
    pooled, split = (
        budget_hit_rates(trace, sizes, budgets, plan.requests // 2, at) for at in (0, hashed)
    )
    by_che = che_hit_rates(popularity, budgets, sizes)
    print("hit rate  one cache, MB  by Che, MB  a replica, MB    all, MB")
    for target in _targets(plan, split.max()):
        one, che, each = (
            budgets[smallest_cache(rates, target)] / BYTES_PER_MB
            for rates in (pooled, by_che, split)
        )
        print(f"{target:8.1%}{one:15.2f}{che:12.2f}{each:15.2f}{each * plan.replicas:11.2f}")


def _print_hit_rates(
    plan: argparse.Namespace, trace: np.ndarray, hashed: np.ndarray, sizes: np.ndarray
) -> None:
    budgets = np.array(plan.memory_mb) * BYTES_PER_MB
    hit_rates = budget_hit_rates(trace, sizes, budgets, plan.requests // 2, hashed)
    fitting = np.searchsorted(np.sort(sizes).cumsum(), budgets, side="right")
    print("MB a replica  hit rate  too large  models at most")
    for mb, budget, hit_rate, models in zip(
        plan.memory_mb, budgets, hit_rates, fitting, strict=True
    ):
        too_large = (sizes[trace[plan.requests // 2 :]] > budget).mean()
        print(f"{mb:12.2f}{hit_rate:10.1%}{too_large:11.1%}{models:16}")


if __name__ == "__main__":
    main()
