"""The capacity planner: exact where it simulates, close where it approximates, clear otherwise."""

import re
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecast_service.settings import HOME
from lab.capacity import (
    che_hit_rates,
    lru_hit_rates,
    smallest_cache,
)
from lab.traffic import zipf_popularity, zipf_trace

CUSTOMERS, REQUESTS = 300, 60_000


def naive_hits(trace: list[int], size: int) -> list[bool]:
    """Run one LRU cache, as a replica does, and return which requests hit."""
    cache, hits = OrderedDict(), []
    for customer in trace:
        hits.append(customer in cache)
        cache[customer] = True
        cache.move_to_end(customer)
        if len(cache) > size:
            cache.popitem(last=False)
    return hits


def table(*arguments: str) -> list[list[str]]:
    """Run the command line. Returns the cells of the rows that it prints."""
    command = [sys.executable, "-m", "lab.capacity", "--requests", "50000", *arguments]
    done = subprocess.run(command, cwd=HOME, check=True, timeout=60, capture_output=True, text=True)
    return [line.replace("%", "").split() for line in done.stdout.splitlines()[1:]]


traces = st.lists(st.integers(0, 12), min_size=1, max_size=80)


@given(traces, st.data())
def test_every_size_has_the_hit_rate_of_a_cache_of_that_size(trace, data):
    skip = data.draw(st.integers(0, len(trace) - 1))
    hit_rates = lru_hit_rates(np.array(trace), skip)
    expected = [np.mean(naive_hits(trace, size)[skip:]) for size in range(len(set(trace)) + 1)]
    np.testing.assert_allclose(hit_rates, expected)


@given(traces, st.data())
def test_replicas_have_a_cache_each(trace, data):
    homes = data.draw(st.lists(st.integers(0, 2), min_size=13, max_size=13))
    skip = data.draw(st.integers(0, len(trace) - 1))
    replica = np.array([homes[customer] for customer in trace])
    hit_rates = lru_hit_rates(np.array(trace), skip, replica)
    for size, hit_rate in enumerate(hit_rates):
        hits = np.zeros(len(trace), bool)
        for one in set(homes):
            own = np.flatnonzero(replica == one)
            hits[own] = naive_hits([trace[request] for request in own], size)
        assert hit_rate == pytest.approx(hits[skip:].mean())


def test_the_customers_may_have_any_labels():
    np.testing.assert_array_equal(
        lru_hit_rates(np.array(["b", "a", "b", "b"])), lru_hit_rates(np.array([7, 90, 7, 7]))
    )


@pytest.mark.parametrize("skip", [-1, 3, 4])
def test_a_trace_without_a_request_to_count_is_refused(skip):
    with pytest.raises(ValueError, match="leave some of 3 requests"):
        lru_hit_rates(np.array([0, 1, 0]), skip)


@pytest.mark.parametrize("skew", [0.8, 1.0, 1.2])
def test_ches_approximation_is_close_to_the_simulation(skew):
    simulated = lru_hit_rates(zipf_trace(CUSTOMERS, REQUESTS, skew, seed=0), REQUESTS // 2)
    approximated = che_hit_rates(zipf_popularity(CUSTOMERS, skew), np.arange(len(simulated)))
    assert np.abs(simulated - approximated).max() < 0.02


def test_ches_approximation_of_equally_popular_customers_is_the_share_that_fits():
    sizes = np.arange(CUSTOMERS + 1)
    hit_rates = che_hit_rates(np.full(CUSTOMERS, 1 / CUSTOMERS), sizes)
    np.testing.assert_allclose(hit_rates, sizes / CUSTOMERS, atol=1e-9)


@pytest.mark.parametrize("skew", [0, 0.5, 1, 2, 4])
def test_a_larger_cache_is_never_worse(skew):
    popularity = zipf_popularity(CUSTOMERS, skew)
    approximated = che_hit_rates(popularity, np.arange(CUSTOMERS + 1))
    simulated = lru_hit_rates(zipf_trace(CUSTOMERS, 3000, skew, seed=1))
    for hit_rates in (approximated, simulated):
        assert hit_rates[0] == 0 and (np.diff(hit_rates) >= 0).all() and hit_rates[-1] <= 1


def test_a_cache_for_everyone_always_hits():
    hit_rates = che_hit_rates(zipf_popularity(CUSTOMERS, 1.0), [CUSTOMERS, CUSTOMERS + 1])
    assert hit_rates.tolist() == [1, 1]


def test_customers_that_never_ask_need_no_room():
    assert che_hit_rates(np.array([0.5, 0.5, 0, 0]), [1, 2]) == pytest.approx([0.5, 1])


@pytest.mark.parametrize(("target", "size"), [(0, 0), (0.5, 2), (0.51, 3), (0.8, 3)])
def test_the_smallest_cache_is_the_first_that_reaches_the_target(target, size):
    assert smallest_cache(np.array([0, 0.3, 0.5, 0.8, 0.8]), target) == size


def test_a_target_out_of_reach_is_refused_with_the_highest_hit_rate():
    with pytest.raises(ValueError, match=r"90\.00%, the highest is 80\.00%"):
        smallest_cache(np.array([0, 0.3, 0.8]), 0.9)


def test_the_plan_for_one_replica_is_the_pooled_cache():
    for _, one, che, _, each, mb, all_mb in table("--customers", "200"):
        assert one == each and mb == all_mb
        assert abs(int(one) - int(che)) <= 4


def test_the_plan_for_several_replicas_adds_up():
    rows = table("--customers", "2000", "--replicas", "8", "--bytes-per-model", "1e6")
    assert [row[0] for row in rows] == ["80.0", "90.0", "95.0", "99.0"]
    for target, one, _, share, each, mb, all_mb in rows:
        assert float(share) == pytest.approx(float(target), abs=1)
        assert 0.95 * int(one) <= 8 * int(each) <= 1.1 * int(one)
        assert float(mb) == int(each) and float(all_mb) == 8 * int(each)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--customers", "0"], "have to be above 0"),
        (["--requests", "-1"], "have to be above 0"),
        (["--target", "0.999", "--requests", "3000"], "the highest is .*--requests"),
    ],
)
def test_a_plan_that_cannot_be_made_says_what_to_do(arguments, says):
    command = [sys.executable, "-m", "lab.capacity", *arguments]
    done = subprocess.run(command, cwd=HOME, timeout=60, capture_output=True, text=True)
    assert done.returncode == 2 and re.search(says, done.stderr)
