"""Plan a cache: how many models a replica must keep for a hit rate, and how much memory that is.

    python -m lab.capacity --customers 2000 --skew 1.0 --target 0.95 --replicas 4

Simulates least recently used (LRU) caches on independent requests whose popularity follows Zipf's
law. Columns: models that one cache for all needs; the same by Che's approximation; the hit rate if
replicas share them equally, each customer on one replica, as under a router that hashes model ids;
models that a replica then needs for the target; their memory.
"""

import argparse
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from lab.traffic import zipf_popularity, zipf_trace

TARGETS = 0.8, 0.9, 0.95, 0.99  # hit rates in the table, besides --target
REQUESTS = 1_000_000  # so that nearly all of 10 000 customers come up while the caches warm
BYTES_PER_MODEL = 50_000  # by which a replica grew, Ray's metrics included: see chapters/05_tune
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


def lru_hit_rates(trace: np.ndarray, skip: int = 0, replica: np.ndarray | int = 0) -> np.ndarray:
    """Return the hit rate of an LRU cache by its size, shape (customers in the trace + 1,).

    The first `skip` requests warm the cache and do not count. With `replica`, shape (requests,),
    each replica has such a cache for its own requests. Raises ValueError if none is left to count.
    """
    if not 0 <= skip < len(trace):
        raise ValueError(f"skip is {skip}: it has to leave some of {len(trace)} requests to count")
    replica = np.broadcast_to(replica, trace.shape)
    distances = np.empty(len(trace), int)
    for one in np.unique(replica):
        distances[replica == one] = stack_distances(trace[replica == one])
    hits = np.bincount(distances[skip:], minlength=len(np.unique(trace)) + 1)
    return (hits.cumsum() - hits[0]) / (len(trace) - skip)  # at 0 are first requests: no hits


def che_hit_rates(popularity: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Approximate the hit rate of LRU caches of these sizes under independent requests.

    `popularity`, shape (customers,), sums to 1. An unused model stays for t requests, with size =
    sum(1 - exp(-popularity * t)) (Che, Tung & Wang, 2002, "Hierarchical Web caching systems").
    """
    occupied, hit_rates = [], []
    for t in (0, *np.geomspace(1, REST / popularity[popularity > 0].min(), TIMES)):
        present = -np.expm1(-popularity * t)
        occupied.append(present.sum())
        hit_rates.append(popularity @ present)
    return np.interp(sizes, occupied, hit_rates) / hit_rates[-1]  # 1 but for rounding


def smallest_cache(hit_rates: np.ndarray, target: float) -> int:
    """Return the first size whose hit rate is at least `target`. Raises ValueError if none is."""
    if (highest := hit_rates.max()) < target:
        raise ValueError(f"no cache has a hit rate of {target:.2%}, the highest is {highest:.2%}")
    return int(np.argmax(hit_rates >= target))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the plan that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--customers", type=int, default=2000)
    parser.add_argument("--skew", type=float, default=1.0, help="0: all are as popular")
    parser.add_argument("--target", type=float, default=0.95, help="hit rate, 0 to 1")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="half of them warm up")
    parser.add_argument("--bytes-per-model", type=float, default=BYTES_PER_MODEL)
    parser.add_argument("--seed", type=int, default=0, help="of the trace and of the hash")
    plan = parser.parse_args(arguments)
    if min(plan.customers, plan.replicas, plan.requests, plan.bytes_per_model) <= 0:
        parser.error("customers, replicas, requests and bytes per model have to be above 0")
    trace = zipf_trace(plan.customers, plan.requests, plan.skew, plan.seed)
    hashed = np.random.default_rng(plan.seed).integers(plan.replicas, size=plan.customers)
    pooled, split = (lru_hit_rates(trace, plan.requests // 2, at) for at in (0, hashed[trace]))
    by_che = che_hit_rates(zipf_popularity(plan.customers, plan.skew), range(plan.customers + 1))
    print("hit rate  one cache  by Che  its share  a replica         MB     all MB")
    for target in sorted({plan.target, *(rate for rate in TARGETS if rate <= split.max())}):
        try:
            one, che, each = (smallest_cache(rates, target) for rates in (pooled, by_che, split))
        except ValueError as error:
            parser.error(f"{error}; more --requests may raise it: a first one always misses")
        figures = f"{target:8.1%}{one:11}{che:8}{split[-(-one // plan.replicas)]:11.1%}{each:11}"
        mb = each * plan.bytes_per_model / 1e6
        print(f"{figures}{mb:11.2f}{mb * plan.replicas:11.2f}")


if __name__ == "__main__":
    main()
