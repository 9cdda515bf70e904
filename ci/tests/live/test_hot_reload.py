"""Models are replaced and deleted in the store while the production service is under load."""

import json
import time
from collections import defaultdict

import pytest
from live_service import SERVICE, LogWatch, artifact_of, right_answer
from ray import serve

from forecast_service.artifact import folded_from_bytes, from_bytes
from forecast_service.service import DEPLOYMENT_OPTIONS, ModelService, create_service_api
from forecast_service.settings import Settings
from lab.chapter import NAMED
from lab.cluster_metrics import totals, wait_for
from lab.serving import launch, log_lines, wait_until
from steady_load import Answer, SteadyLoad

RELOAD_CHECK_S = 1
REPLICAS = 2
RATE = 40  # requests per second
ENOUGH = RATE  # latest answers that tell what is served now
DEADLINE_S = 60  # to wait for what takes a few seconds
PINNED = NAMED[0]
REPLICA_LOG = "reloading_Fore"  # in the name of each replica's log file


@pytest.fixture(scope="module")
def url(live_store, fleet, launch_production):
    """A service that compares its models with the store each second, with two replicas."""
    live_store.repair(fleet)
    launch_production(
        "reloading",
        {"num_replicas": REPLICAS},
        reload_check_s=RELOAD_CHECK_S,
        models_per_replica=len(NAMED),
        pinned_customers=(PINNED,),
    )
    yield f"{SERVICE}/reloading/"
    serve.delete("reloading")
    live_store.checks.clear()
    time.sleep(2 * RELOAD_CHECK_S)
    assert not live_store.checks, "a replica that has stopped goes on asking the store"


@pytest.fixture(scope="module")
def retrained(fleet) -> dict[str, bytes]:
    """Other models of the named customers, whose every forecast is another one."""
    models = {name: from_bytes(fleet[name], name) for name in NAMED}
    return {
        name: artifact_of(model, bias=model.bias + 10, trained_until="2025-12-31")
        for name, model in models.items()
    }


@pytest.fixture
def answers(histories):
    """What has to be answered for each named customer from a store's artifacts, to the byte."""

    def answers(artifacts: dict[str, bytes]) -> dict[str, bytes]:
        return {
            name: right_answer(
                artifacts[name], name, json.dumps({"sequence_data": histories[name]}).encode()
            )
            for name in NAMED
        }

    return answers


@pytest.fixture
def steady(url, store, fleet, histories, answers):
    """Steady load for the named customers, all of whom are in memory by now."""

    def steady() -> SteadyLoad:
        return SteadyLoad(url, {name: histories[name] for name in NAMED}, RATE, tries=1)

    with steady() as load:  # what the test before has left in the store is loaded anew
        wait_for_bodies(load, answers(fleet))
    return steady


def wait_for_bodies(load: SteadyLoad, wanted: dict[str, bytes]) -> None:
    """Return when the latest answers, from both replicas, are the wanted ones."""
    first = len(load.answers)

    def are_wanted() -> bool:
        latest = load.answers[first:][-ENOUGH:]
        return len(latest) == ENOUGH and all(
            answer.body == wanted[answer.customer_id] for answer in latest
        )

    wait_until(are_wanted, "all answers come from the models in the store", DEADLINE_S)


def wait_for_rounds(store, rounds: int = 3) -> None:
    """Return when both replicas have compared the pinned model so many times with the store."""
    target = store.checks[PINNED] + rounds * REPLICAS
    wait_until(lambda: store.checks[PINNED] >= target, "the models are checked again", DEADLINE_S)


def test_under_load_every_answer_is_the_old_or_the_new_and_in_the_end_only_the_new(
    steady, store, fleet, retrained, answers
):
    store.reads.clear()
    with steady() as load:
        for old, new in (fleet, retrained), (retrained, fleet):
            wait_for_bodies(load, answers(old))
            first = len(load.answers)
            store.artifacts |= new
            wait_for_bodies(load, answers(new))
            by_place, bodies = defaultdict(list), (answers(old), answers(new))
            for answer in load.answers[first:]:
                assert answer.status == 200
                which = [body[answer.customer_id] for body in bodies].index(answer.body)
                by_place[answer.customer_id, answer.replica].append((answer, which))
            assert any(which == 0 for told in by_place.values() for _, which in told), (
                "nothing was asked before the new models came: nothing was shown"
            )
            for place, told in by_place.items():  # a request may overtake another that waits
                ends_s = (answer.answered_s for answer, which in told if which == 1)
                new_s = min(ends_s, default=float("inf"))
                later = {which for answer, which in told if answer.sent_s > new_s}
                assert later <= {1}, f"{place} went back to the old model"
    assert {answer.cache for answer in load.answers} == {"hit"}, "a model was evicted"
    assert not store.reads, "a model was loaded for a request"


def test_a_corrupt_upload_is_refused_reported_and_read_once_and_the_old_model_goes_on(
    steady, store, fleet, retrained, answers, session_dir
):
    failures, name = "ray_forecast_load_failures_total", PINNED  # which both replicas have
    before, said = totals(session_dir, [failures])[failures], f"Could not load {name} anew"
    store.bodies.clear()
    with steady() as load:
        store.artifacts[name] = fleet[name][:-1] + b"?"
        wait_until(lambda: store.bodies[name] >= REPLICAS, "both replicas read it", DEADLINE_S)
        wait_for_rounds(store)
    assert all(answer.body == answers(fleet)[answer.customer_id] for answer in load.answers)
    assert store.bodies[name] == REPLICAS, "the corrupt artifact is read again and again"
    lines = log_lines(session_dir, REPLICA_LOG, said)
    assert len(lines) == REPLICAS
    assert all("does not match its checksum" in line for line in lines)
    expected = {failures: before + REPLICAS}
    assert wait_for(session_dir, expected) == expected
    with steady() as load:
        store.artifacts[name] = retrained[name]
        wait_for_bodies(load, answers({**fleet, name: retrained[name]}))


def test_a_deleted_customer_is_a_404_even_when_pinned_and_comes_back(steady, store, fleet, answers):
    deleted = PINNED, NAMED[2]

    def statuses(answers: list[Answer]) -> dict[bool, set[int]]:
        """Return what was answered, by whether the customer is one of those deleted."""
        found = defaultdict(set)
        for answer in answers:
            found[answer.customer_id in deleted].add(answer.status)
        return found

    with steady() as load:
        for name in deleted:
            del store.artifacts[name]
        wait_until(
            lambda: statuses(load.answers[-ENOUGH:]) == {True: {404}, False: {200}},
            "the deleted customers are a 404",
            DEADLINE_S,
        )
    found = statuses(load.answers)
    assert found[True] <= {200, 404} and found[False] == {200}
    with steady() as load:
        store.artifacts |= {name: fleet[name] for name in deleted}
        wait_for_bodies(load, answers(fleet))
        first = len(load.answers)
        wait_for_bodies(load, answers(fleet))
    assert {answer.cache for answer in load.answers[first:]} == {"hit"}, (
        "its place in the cache is lost"
    )


def test_while_the_store_is_down_old_models_go_on_and_new_ones_come_when_it_is_back(
    steady, store, fleet, retrained, answers, session_dir
):
    before = len(log_lines(session_dir, REPLICA_LOG, "go on unchecked"))

    def said() -> int:
        return len(log_lines(session_dir, REPLICA_LOG, "go on unchecked")) - before

    with steady() as load:
        store.down = True
        store.artifacts |= retrained
        wait_until(lambda: said() >= REPLICAS, "both replicas say that they cannot check")
        asked = sum(store.checks.values())
        wait_until(lambda: sum(store.checks.values()) > asked + 5 * REPLICAS, "they go on asking")
    assert all(answer.body == answers(fleet)[answer.customer_id] for answer in load.answers)
    assert said() == REPLICAS, "it is not said once"
    with steady() as load:
        store.down = False
        wait_for_bodies(load, answers(retrained))


def test_a_replica_whose_reloader_has_failed_is_replaced_and_says_why(
    store, ask, retrained, session_dir
):
    @serve.deployment(**DEPLOYMENT_OPTIONS, health_check_period_s=0.5)
    @serve.ingress(create_service_api("Forecasts, until a model is reloaded"))
    class BrokenService(ModelService):
        async def __init__(self, settings: Settings):
            super().__init__(settings, folded_from_bytes)
            self.metrics.record_reload = self.fail
            await self.start()

        def fail(self, error: Exception | None) -> None:
            raise ZeroDivisionError("a callback has a bug")

    name, url, log = NAMED[1], f"{SERVICE}/broken", LogWatch(session_dir)
    launch(BrokenService.bind(Settings(reload_check_s=RELOAD_CHECK_S)), "broken", "/broken")
    first = ask(name, url=url)
    assert first.status_code == 200

    def answer_of_another():
        """Return what the replica's successor answers, if there is one."""
        answer = ask(name, url=url)
        replica = answer.headers.get("X-Replica-Id", first.headers["X-Replica-Id"])
        return answer if replica != first.headers["X-Replica-Id"] else None

    store.artifacts[name] = retrained[name]
    answer = wait_until(answer_of_another, "the replica is replaced", DEADLINE_S)
    assert answer.json()["model_version"] == from_bytes(retrained[name], name).version
    said = log.new("replica_broken_*.log")
    assert said.count("Traceback") and said.count("ZeroDivisionError: a callback has a bug") == 1
    serve.delete("broken")
