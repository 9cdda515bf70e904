"""Models are replaced and deleted in the store while the service is under load."""

import itertools
import os
import subprocess
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from conftest import CONTENT, NAMED, SERVICE, STORE_TIMEOUT_S
from ray import serve

from cluster_metrics import totals, wait_for
from forecasting import Scores
from http_contract import ForecastRequest, respond
from model_artifact import from_bytes, to_bytes
from notebook_tools import log_lines
from steady_load import Answer, SteadyLoad

RELOAD_CHECK_S = 1
STATED_S = RELOAD_CHECK_S + STORE_TIMEOUT_S  # a check that is due, and a load that takes its time
REPLICAS = 2
RATE = 60  # requests per second
PINNED = NAMED[0]
REPLICA_LOG = "reloading_Fore"  # in the name of each replica's log file


@pytest.fixture(scope="module")
def url(live_store, fleet):
    """A service that compares its models with the store each second, with two replicas."""
    live_store.artifacts = dict(fleet)
    live_store.delay_s, live_store.down = 0.0, False
    settings = {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "MODEL_STORE": live_store.url,
        "STORE_TIMEOUT_S": str(STORE_TIMEOUT_S),
        "RELOAD_CHECK_S": str(RELOAD_CHECK_S),
        "MODELS_PER_REPLICA": str(len(NAMED)),
        "PINNED_CUSTOMERS": PINNED,
        "NUM_REPLICAS": str(REPLICAS),
        "CPUS_PER_REPLICA": "0",
    }
    launch = ["serve", "run", "serve_forecast_multiplex:app", "--non-blocking"]
    launch += ["--name", "reloading", "--route-prefix", "/reloading"]
    subprocess.run(launch, cwd=CONTENT, env=os.environ | settings, check=True, timeout=120)
    assert serve.status().applications["reloading"].status == "RUNNING"
    yield f"{SERVICE}/reloading"
    serve.delete("reloading")
    live_store.checks.clear()
    time.sleep(2 * RELOAD_CHECK_S)
    assert not live_store.checks, "a replica that has stopped goes on asking the store"


@pytest.fixture(scope="module")
def session_dir(live_store) -> Path:
    return Path(ray.init(ignore_reinit_error=True).address_info["session_dir"])


@pytest.fixture(scope="module")
def retrained(fleet) -> dict[str, bytes]:
    """Other models of the named customers, whose every forecast is another one."""
    artifacts = {}
    for name in NAMED:
        model = from_bytes(fleet[name], name)
        newer = replace(model, bias=model.bias + 10, trained_until="2025-12-31")
        artifacts[name] = to_bytes(newer, Scores(1, 1, 1, 1))
    return artifacts


@pytest.fixture
def steady(url, store, histories):
    """Steady load for the named customers, all of whom are in memory by now."""

    def steady() -> SteadyLoad:
        return SteadyLoad(url, {name: histories[name] for name in NAMED}, RATE, tries=1)

    with steady() as load:
        time.sleep(STATED_S)  # what the test before has left in the store is loaded anew
    assert {answer.status for answer in load.answers} == {200}
    return steady


def body(artifact: bytes, name: str, histories) -> bytes:
    """Return what the service has to answer, computed here."""
    request = ForecastRequest.of(histories[name])
    return respond(from_bytes(artifact, name), request).model_dump_json(exclude_none=True).encode()


def versions_seen(answers: list[Answer], histories, *stores: dict[str, bytes]) -> list[int]:
    """Return which of several stores each answer comes from. Fail if it is not 200 from one."""
    expected = {
        (name, body(artifacts[name], name, histories)): number
        for number, artifacts in enumerate(stores)
        for name in NAMED
    }
    assert {answer.status for answer in answers} == {200}
    return [expected[answer.customer_id, answer.body] for answer in answers]


def test_under_load_every_answer_is_the_old_or_the_new_and_in_time_only_the_new(
    steady, store, fleet, retrained, histories
):
    store.reads.clear()
    with steady() as load:
        time.sleep(1)
        swaps_s = []
        for artifacts in retrained, fleet, retrained:  # there, back, and there again
            swaps_s.append(time.monotonic())
            store.artifacts |= {name: artifacts[name] for name in NAMED}
            time.sleep(STATED_S + 1)
        swaps_s.append(time.monotonic())
    for number, (at_s, until_s) in enumerate(itertools.pairwise(swaps_s)):
        stores = (retrained, fleet) if number % 2 else (fleet, retrained)
        answers = [
            answer
            for answer in load.answers
            if at_s <= answer.sent_s and answer.answered_s < until_s
        ]
        seen = versions_seen(answers, histories, *stores)
        pairs = list(zip(answers, seen, strict=True))
        late = [which for answer, which in pairs if answer.sent_s >= at_s + STATED_S]
        assert len(late) > RATE / 2 and set(late) == {1}, "the old model was served too long"
        assert 0 in seen, "nothing was asked before the new models came: nothing was shown"
        by_place = defaultdict(list)
        for answer, which in pairs:
            by_place[answer.customer_id, answer.replica].append((answer.sent_s, which))
        for place, told in by_place.items():
            order = [which for _, which in sorted(told)]
            assert order == sorted(order), f"{place} went back to the old model"
    assert {answer.cache for answer in load.answers} == {"hit"}, "a model was evicted"
    assert not store.reads, "a model was loaded for a request"


def test_a_corrupt_upload_is_refused_reported_and_read_once_and_the_old_model_goes_on(
    steady, store, fleet, retrained, histories, session_dir
):
    failures = "ray_forecast_load_failures_total"
    before, name = totals(session_dir, [failures])[failures], NAMED[1]
    store.bodies.clear()
    with steady() as load:
        store.artifacts[name] = fleet[name][:-1] + b"?"
        time.sleep(STATED_S + 3 * RELOAD_CHECK_S)
    assert set(versions_seen(load.answers, histories, fleet)) == {0}
    replicas = {answer.replica for answer in load.answers if answer.customer_id == name}
    assert 0 < store.bodies[name] <= REPLICAS, "the corrupt artifact is read again and again"
    lines = log_lines(session_dir, REPLICA_LOG, f"Could not load {name} anew")
    assert len(lines) == store.bodies[name] >= len(replicas)
    assert all("does not match its checksum" in line for line in lines)
    expected = {failures: before + len(lines)}
    assert wait_for(session_dir, expected) == expected
    with steady() as load:
        store.artifacts[name] = retrained[name]
        time.sleep(STATED_S)
        at_s = time.monotonic()
        time.sleep(1)
    late = [answer for answer in load.answers if answer.sent_s >= at_s]
    assert set(versions_seen(late, histories, {**fleet, name: retrained[name]})) == {0}


def test_a_deleted_customer_is_a_404_in_time_even_when_pinned_and_comes_back(
    steady, store, fleet, histories
):
    deleted = PINNED, NAMED[2]
    with steady() as load:
        for name in deleted:
            del store.artifacts[name]
        at_s = time.monotonic()
        time.sleep(STATED_S + 1)
    statuses = defaultdict(set)
    for answer in load.answers:
        in_time = answer.sent_s < at_s + STATED_S
        statuses[answer.customer_id in deleted, in_time].add(answer.status)
    assert statuses.pop((True, True)) <= {200, 404}
    assert statuses == {(True, False): {404}, (False, True): {200}, (False, False): {200}}
    store.artifacts |= {name: fleet[name] for name in deleted}
    time.sleep(STATED_S)
    with steady() as load:
        time.sleep(1)
    assert set(versions_seen(load.answers, histories, fleet)) == {0}
    assert {answer.cache for answer in load.answers} == {"hit"}, "its place in the cache is lost"


def test_while_the_store_is_down_old_models_go_on_and_new_ones_come_when_it_is_back(
    steady, store, fleet, retrained, histories, session_dir
):
    said = len(log_lines(session_dir, REPLICA_LOG, "go on unchecked"))
    with steady() as load:
        store.down = True
        store.artifacts |= retrained
        time.sleep(STATED_S + 3 * RELOAD_CHECK_S)
    assert set(versions_seen(load.answers, histories, fleet)) == {0}
    lines = log_lines(session_dir, REPLICA_LOG, "go on unchecked")
    assert len(lines) - said == REPLICAS, "it is not said once"
    store.down = False
    with steady() as load:
        time.sleep(STATED_S + STORE_TIMEOUT_S)
        at_s = time.monotonic()
        time.sleep(1)
    late = [answer for answer in load.answers if answer.sent_s >= at_s]
    assert set(versions_seen(late, histories, retrained)) == {0}
