"""The capacity planner: exact where it simulates, close where it approximates, clear otherwise."""

import asyncio
import re
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecast_service.errors import ModelTooLargeError
from forecast_service.memory import ModelMemory
from forecast_service.settings import HOME
from lab.capacity import (
    budget_hit_rates,
    che_hit_rates,
    lru_hit_rates,
    read_sizes,
    smallest_cache,
)
from lab.traffic import zipf_popularity, zipf_trace

CUSTOMERS, REQUESTS = 300, 60_000
MB = 1_000_000


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


def naive_budget_hits(trace: list[int], sizes: list[int], budget: int) -> list[bool]:
    """Run one LRU cache with a budget, which no model leaves for one that cannot fit."""
    cache, hits = OrderedDict(), []
    for customer in trace:
        hits.append(customer in cache)
        if customer in cache:
            cache.move_to_end(customer)
        elif sizes[customer] <= budget:
            while sum(cache.values()) + sizes[customer] > budget:
                cache.popitem(last=False)
            cache[customer] = sizes[customer]
    return hits


def table(*arguments: str) -> list[list[str]]:
    """Run the command line. Returns the cells of the rows that it prints."""
    command = [sys.executable, "-m", "lab.capacity", "--requests", "50000", *arguments]
    done = subprocess.run(command, cwd=HOME, check=True, timeout=60, capture_output=True, text=True)
    return [line.replace("%", "").split() for line in done.stdout.splitlines()[1:]]


traces = st.lists(st.integers(0, 12), min_size=1, max_size=80)
model_sizes = st.lists(st.integers(1, 40), min_size=13, max_size=13)


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


@given(traces, model_sizes, st.data())
def test_every_budget_has_the_hit_rate_of_a_cache_with_that_budget(trace, sizes, data):
    """Those below the largest models, too, in any order and more than once."""
    skip = data.draw(st.integers(0, len(trace) - 1))
    budgets = data.draw(st.lists(st.integers(0, sum(sizes)), min_size=1, max_size=5))
    expected = [np.mean(naive_budget_hits(trace, sizes, budget)[skip:]) for budget in budgets]
    np.testing.assert_allclose(budget_hit_rates(np.array(trace), sizes, budgets, skip), expected)


@given(traces, model_sizes, st.integers(1, 200))
def test_the_services_memory_hits_what_is_planned(trace, sizes, budget):
    async def replay() -> list[bool]:
        memory, hits = ModelMemory(), []
        memory.limit(budget)
        holders = [memory.hold(str(customer)) for customer in range(len(sizes))]
        for customer in trace:
            hits.append(holders[customer].model is not None)
            if hits[-1]:
                memory.touch(str(customer))
            else:
                with suppress(ModelTooLargeError):
                    memory.put(str(customer), SimpleNamespace(size_bytes=sizes[customer]), "etag")
        return hits

    (planned,) = budget_hit_rates(np.array(trace), sizes, [budget])
    assert planned == pytest.approx(np.mean(asyncio.run(replay())))


@given(traces, model_sizes, st.integers(0, 200), st.data())
def test_replicas_have_a_budget_each(trace, sizes, budget, data):
    homes = data.draw(st.lists(st.integers(0, 2), min_size=13, max_size=13))
    replica = np.array([homes[customer] for customer in trace])
    hits = np.zeros(len(trace), bool)
    for one in set(homes):
        own = np.flatnonzero(replica == one)
        hits[own] = naive_budget_hits([trace[request] for request in own], sizes, budget)
    (hit_rate,) = budget_hit_rates(np.array(trace), sizes, [budget], replica=replica)
    assert hit_rate == pytest.approx(hits.mean())


@given(traces, st.integers(1, 9))
def test_models_of_one_size_are_as_many_as_fit(trace, size):
    counted = lru_hit_rates(np.array(trace))
    for room in (0, size - 1):  # too little for one more
        budgets = np.arange(len(counted)) * size + room
        np.testing.assert_allclose(budget_hit_rates(np.array(trace), [size] * 13, budgets), counted)


@given(traces, model_sizes)
def test_a_larger_budget_is_never_worse_once_every_model_fits(trace, sizes):
    budgets = np.arange(max(sizes), sum(sizes) + 1)
    assert (np.diff(budget_hit_rates(np.array(trace), sizes, budgets)) >= 0).all()


def test_a_budget_that_lets_a_large_model_in_may_be_worse():
    trace, sizes = np.array([0, 1, 2] * 20), [1, 1, 3]
    without, with_it, all_fit = budget_hit_rates(trace, sizes, [2, 3, 5], skip=3)
    assert (without, with_it, all_fit) == (2 / 3, 0, 1)


@pytest.mark.parametrize("sizes", [[4.5, 1.0], [1, 0], [3, -1]])
def test_sizes_that_are_no_bytes_are_refused(sizes):
    with pytest.raises(ValueError, match="whole numbers of bytes"):
        budget_hit_rates(np.array([0, 1, 0]), sizes, [5])


def test_budgets_need_requests_to_count_too():
    with pytest.raises(ValueError, match="leave some of 3 requests"):
        budget_hit_rates(np.array([0, 1, 0]), [1, 1], [5], skip=3)


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


@pytest.mark.parametrize("skew", [0.8, 1.0, 1.2])
def test_ches_approximation_is_close_where_sizes_differ(skew):
    """From ten of the largest models on."""
    sizes = read_sizes("0.05:0.5,1:0.4,4:0.1", CUSTOMERS, seed=0)
    budgets = np.linspace(40 * MB, sizes.sum(), 50)
    trace = zipf_trace(CUSTOMERS, REQUESTS, skew, seed=0)
    simulated = budget_hit_rates(trace, sizes, budgets, REQUESTS // 2)
    approximated = che_hit_rates(zipf_popularity(CUSTOMERS, skew), budgets, sizes)
    assert np.abs(simulated - approximated).max() < 0.02


def test_ches_approximation_has_no_unit():
    popularity, sizes = zipf_popularity(CUSTOMERS, 1.0), np.arange(CUSTOMERS + 1)
    in_bytes = che_hit_rates(popularity, sizes * 4, np.full(CUSTOMERS, 4))
    np.testing.assert_allclose(in_bytes, che_hit_rates(popularity, sizes))


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


def test_sizes_are_dealt_out_by_share():
    dealt = [read_sizes("0.05:0.9,4:0.1", 200, seed) for seed in (0, 0, 1)]
    assert all(np.unique(sizes, return_counts=True)[1].tolist() == [180, 20] for sizes in dealt)
    assert set(dealt[0]) == {50_000, 4 * MB}
    assert (dealt[0] == dealt[1]).all() and (dealt[0] != dealt[2]).any()


def test_sizes_come_from_a_file_in_its_order(tmp_path):
    listed = tmp_path / "sizes"
    listed.write_text("4\n0.05\n0.0000015\n")
    for customers in (None, 3):
        assert read_sizes(str(listed), customers, seed=0).tolist() == [4 * MB, 50_000, 2]
    with pytest.raises(ValueError, match="has 3 for 4 customers"):
        read_sizes(str(listed), 4, seed=0)


def test_the_plan_in_mb_is_the_plan_in_models():
    """But for the distance of the budgets that are tried."""
    arguments = "--customers", "200", "--replicas", "4"
    models, megabytes = table(*arguments), table(*arguments, "--sizes", "4")
    assert len(models) == len(megabytes)
    for (target, one, che, _, each, *_), in_mb in zip(models, megabytes, strict=True):
        expected = [4 * int(count) for count in (one, che, each)]
        assert in_mb[0] == target
        assert [float(cell) for cell in in_mb[1:4]] == pytest.approx(expected, abs=4.1)
        assert float(in_mb[4]) == pytest.approx(4 * float(in_mb[3]), abs=0.05)


def test_the_plan_with_budgets_says_what_each_replica_makes_of_them(tmp_path):
    listed = tmp_path / "sizes"
    listed.write_text("8 " + 99 * "4 ")  # the most popular customer's is the largest
    arguments = "--sizes", str(listed), "--memory-mb", "7", "50", "1000"
    few, some, all_of_them = table(*arguments)
    trace, sizes = zipf_trace(100, 50_000, 1.0, seed=0), read_sizes(str(listed), None, 0)
    expected = budget_hit_rates(trace, sizes, [7 * MB, 50 * MB], 25_000)
    for row, hit_rate in zip((few, some), expected, strict=True):
        assert float(row[1]) == pytest.approx(100 * hit_rate, abs=0.051)
    largest = 100 * (trace[25_000:] == 0).mean()
    assert float(few[2]) == pytest.approx(largest, abs=0.051) and some[2] == "0.0"
    assert [row[0] for row in (few, some)] == ["7.00", "50.00"]
    assert [row[3] for row in (few, some, all_of_them)] == ["1", "12", "100"]
    assert all_of_them[1] == "100.0"
    shared = table(*arguments, "--replicas", "4")[1]
    assert float(shared[1]) > float(some[1]), "four replicas have four budgets"


def test_without_sizes_a_budget_holds_models_as_planned_for():
    ((_, hit_rate, _, models),) = table("--customers", "200", "--memory-mb", "1")
    rates = lru_hit_rates(zipf_trace(200, 50_000, 1.0, seed=0), 25_000)
    assert models == "20" and float(hit_rate) == pytest.approx(100 * rates[20], abs=0.051)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--memory-mb", "50", "0"], "--memory-mb has to be above 0"),
        (["--memory-mb", "nan"], "--memory-mb has to be above 0"),
        (["--memory-mb", "50", "--target", "0.9"], "not allowed with"),
        (["--sizes", "4", "--bytes-per-model", "9"], "not allowed with"),
        (["--sizes", "4,5"], "4,5 is no file, and not sizes as 4 or"),
        (["--sizes", "4:0.5,5"], "is no file, and not sizes as 4 or"),
        (["--sizes", "nowhere.txt"], "nowhere.txt is no file"),
        (["--sizes", "4:0.5,5:0.4"], "sum to 1, not 0.9"),
        (["--sizes", "4:1.5,5:-0.5"], "0 or more"),
        (["--sizes", "0"], "at least a byte"),
        (["--sizes", "nan"], "at least a byte"),
        (["--sizes", "inf:0.5,4:0.5"], "at least a byte"),
        (["--sizes", "deploy/service.yaml"], "service.yaml has to be a list of numbers"),
        (["--sizes", "4", "--target", "0.999", "--requests", "3000"], "highest is .*--requests"),
        (["--customers", "0"], "have to be above 0"),
        (["--requests", "-1"], "have to be above 0"),
        (["--target", "0.999", "--requests", "3000"], "the highest is .*--requests"),
    ],
)
def test_a_plan_that_cannot_be_made_says_what_to_do(arguments, says):
    command = [sys.executable, "-m", "lab.capacity", *arguments]
    done = subprocess.run(command, cwd=HOME, timeout=60, capture_output=True, text=True)
    assert done.returncode == 2 and re.search(says, done.stderr)
