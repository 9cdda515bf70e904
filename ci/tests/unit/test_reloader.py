"""Models in memory follow the store: in time, checked first, and whatever the store does.

No test waits: the event loop's clock jumps to when the next thing is due.
"""

import asyncio
import gc
import itertools
import selectors
import weakref
from collections import Counter

import pytest

from forecast_service.errors import CorruptModelError, StoreUnavailableError, UnknownCustomerError
from forecast_service.loader import ModelLoader
from forecast_service.reloader import CHECKS_AT_ONCE, ModelReloader
from forecast_service.store import Artifact

CHECK_S = 30.0


class JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing, and puts the clock forward instead."""

    now_s = 0.0

    def select(self, timeout: float | None = None):
        assert timeout is not None, "nothing is due any more"
        self.now_s += timeout
        return super().select(0)


def run(scenario) -> None:
    """Run a scenario, and check that it leaves no task behind."""
    selector = JumpingSelector()

    def make_loop():
        loop = asyncio.SelectorEventLoop(selector)
        loop.time = lambda: selector.now_s
        return loop

    async def without_leftovers():
        await scenario()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(without_leftovers())


def now_s() -> float:
    return asyncio.get_running_loop().time()


class Model:
    """What the bytes say; bytes that begin with a question mark cannot be used."""

    def __init__(self, data: bytes, customer_id: str):
        if data.startswith(b"?"):
            raise CorruptModelError(f"{customer_id} is damaged")
        if data.startswith(b"!"):
            raise RecursionError("the reader of artifacts has a bug")
        self.version = data.decode()


class Store:
    """A store in memory, whose tag for an artifact is its content."""

    def __init__(self, customers: int = 1):
        self.artifacts = {f"customer_{number}": b"old" for number in range(customers)}
        self.checks: list[tuple[float, str]] = []  # when, and whose
        self.reads: list[str] = []
        self.delay_s = 0.001
        self.silent_for: set[str] = set()
        self.has_tags = True
        self.at_work = self.most_at_work = 0
        self._began = asyncio.Condition()

    async def until_at_work(self, requests: int) -> None:
        async with self._began:
            await self._began.wait_for(lambda: self.at_work >= requests)

    async def read(self, customer_id: str) -> Artifact:
        return await self._get(customer_id, None)

    async def read_if_changed(self, customer_id: str, etag: str | None) -> Artifact | None:
        self.checks.append((now_s(), customer_id))
        return await self._get(customer_id, etag)

    async def _get(self, customer_id: str, etag: str | None) -> Artifact | None:
        async with self._began:
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
            self._began.notify_all()
        await asyncio.sleep(self.delay_s)
        self.at_work -= 1
        if customer_id in self.silent_for:
            raise StoreUnavailableError("the model store does not answer")
        data = self.artifacts.get(customer_id)
        if data is None:
            raise UnknownCustomerError(f"there is no model for {customer_id}")
        if data.decode() == etag:
            return None
        self.reads.append(customer_id)
        return Artifact(data, data.decode() if self.has_tags else None)


class Replica:
    """A loader and its reloader, as the service has them, and what the latter reports."""

    def __init__(self, store: Store):
        self.loader = ModelLoader(store, Model)
        self.errors = []
        self.reloads = 0
        self._reloader = ModelReloader(self.loader, CHECK_S, self._count)

    def _count(self, error: BaseException | None) -> None:
        if error:
            self.errors.append(error)
        else:
            self.reloads += 1

    async def __aenter__(self) -> "Replica":
        self._running = asyncio.create_task(self._reloader.run())
        return self

    async def __aexit__(self, *_) -> None:
        assert not self._running.done(), "the reloader has given up"
        self._running.cancel()
        await asyncio.wait([self._running])


def warnings(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def test_a_newer_model_is_served_in_time_and_requests_at_work_keep_the_old_one():
    async def scenario():
        store = Store()
        async with Replica(store) as replica:
            holder = await replica.loader.load("customer_0")
            at_work = holder.model
            await asyncio.sleep(7.3 * CHECK_S)
            store.artifacts["customer_0"] = b"new"
            await asyncio.sleep(CHECK_S + store.delay_s)
            assert holder.model.version == "new"
            assert at_work.version == "old"
            assert await replica.loader.load("customer_0") is holder
            assert (replica.reloads, replica.errors) == (1, [])
        assert store.reads == ["customer_0"] * 2, "an artifact was read that had not changed"

    run(scenario)


def test_every_model_is_checked_in_time_whenever_it_was_loaded():
    async def scenario():
        store = Store(customers=50)
        async with Replica(store) as replica:
            began_s, held = {}, []
            for name in store.artifacts:
                await asyncio.sleep(1.7)
                held.append(await replica.loader.load(name))
                began_s[name] = now_s()
            await asyncio.sleep(20 * CHECK_S)
        for name, loaded_s in began_s.items():
            times_s = [loaded_s, *(at_s for at_s, checked in store.checks if checked == name)]
            gaps_s = [later - earlier for earlier, later in itertools.pairwise(times_s)]
            assert max(gaps_s) <= CHECK_S, "a model was not checked in time"
            assert min(gaps_s[1:]) > CHECK_S / 2, "a model was checked twice as often as promised"

    run(scenario)


def test_replicas_that_load_at_the_same_time_do_not_check_at_the_same_time():
    async def scenario():
        stores = Store(customers=100), Store(customers=100)
        async with Replica(stores[0]) as first, Replica(stores[1]) as second:
            held = [
                await asyncio.gather(first.loader.load(name), second.loader.load(name))
                for name in stores[0].artifacts
            ]
            await asyncio.sleep(CHECK_S)
            assert held
        times_s = [{name: at_s for at_s, name in reversed(store.checks)} for store in stores]
        same = sum(times_s[0][name] == times_s[1][name] for name in times_s[0])
        assert same < 30, "replicas check in step"
        for first_s in times_s:
            thirds = Counter(int(3 * at_s / CHECK_S) for at_s in first_s.values())
            assert min(thirds[third] for third in range(3)) > 5, "checks come in a burst"

    run(scenario)


def test_a_corrupt_upload_is_refused_and_reported_once_and_the_old_model_goes_on(caplog):
    async def scenario():
        store = Store()
        async with Replica(store) as replica:
            holder = await replica.loader.load("customer_0")
            store.artifacts["customer_0"] = b"? damaged"
            await asyncio.sleep(10 * CHECK_S)
            assert holder.model.version == "old"
            assert store.reads == ["customer_0"] * 2, "the corrupt artifact was read again"
            assert [type(error) for error in replica.errors] == [CorruptModelError]
            store.artifacts["customer_0"] = b"repaired"
            await asyncio.sleep(2 * CHECK_S)
            assert holder.model.version == "repaired"

    run(scenario)
    (warning,) = warnings(caplog)
    assert "customer_0" in warning and "damaged" in warning


@pytest.mark.parametrize("upload", [b"new", b"? damaged"])
def test_rolling_back_is_putting_the_old_artifact_back(upload):
    async def scenario():
        store = Store()
        async with Replica(store) as replica:
            holder = await replica.loader.load("customer_0")
            for data in upload, b"old":
                store.artifacts["customer_0"] = data
                await asyncio.sleep(2 * CHECK_S)
            assert holder.model.version == "old"

    run(scenario)


def test_a_store_without_tags_is_no_reason_to_replace_models_but_deletions_count():
    async def scenario():
        store = Store()
        store.has_tags = False
        async with Replica(store) as replica:
            holder = await replica.loader.load("customer_0")
            first = holder.model
            await asyncio.sleep(5 * CHECK_S)
            assert holder.model is first and replica.reloads == 0
            store.artifacts.clear()
            await asyncio.sleep(2 * CHECK_S)
            assert holder.model is None

    run(scenario)


def test_a_deleted_model_leaves_memory_though_it_is_held_and_comes_back_into_its_place():
    async def scenario():
        store = Store()
        async with Replica(store) as replica:
            holder = await replica.loader.load("customer_0")  # as Ray's cache and a pin hold it
            model = weakref.ref(holder.model)
            del store.artifacts["customer_0"]
            await asyncio.sleep(CHECK_S + store.delay_s)
            gc.collect()
            assert model() is None, "a deleted customer's model is still in memory"
            assert "customer_0" not in replica.loader
            with pytest.raises(UnknownCustomerError):
                await replica.loader.load("customer_0")
            store.artifacts["customer_0"] = b"returned"
            assert await replica.loader.load("customer_0") is holder
            assert holder.model.version == "returned"
            assert replica.errors == [], "a deletion is no error"

    run(scenario)


def test_a_store_that_is_down_is_said_once_and_what_changed_meanwhile_is_reloaded(caplog):
    async def scenario():
        store = Store(customers=100)
        async with Replica(store) as replica:
            holders = [await replica.loader.load(name) for name in store.artifacts]
            store.silent_for = set(store.artifacts)
            store.artifacts = dict.fromkeys(store.artifacts, b"new")
            await asyncio.sleep(10 * CHECK_S)
            assert {holder.model.version for holder in holders} == {"old"}
            assert len(warnings(caplog)) == 1 and "does not answer" in warnings(caplog)[0]
            assert set(map(type, replica.errors)) == {StoreUnavailableError}
            store.silent_for = set()
            await asyncio.sleep(CHECK_S)
            assert {holder.model.version for holder in holders} == {"new"}

    run(scenario)
    assert len(warnings(caplog)) == 2 and "again" in warnings(caplog)[1]


def test_one_customer_whom_the_store_does_not_answer_for_costs_the_others_nothing(caplog):
    async def scenario():
        store = Store(customers=100)
        async with Replica(store) as replica:
            holders = {name: await replica.loader.load(name) for name in store.artifacts}
            silent = holders.pop("customer_0")
            store.silent_for = {"customer_0"}
            store.artifacts = dict.fromkeys(store.artifacts, b"new")
            await asyncio.sleep(CHECK_S + store.delay_s)
            assert {holder.model.version for holder in holders.values()} == {"new"}
            await asyncio.sleep(5 * CHECK_S)
            assert silent.model.version == "old"

    run(scenario)
    assert len(warnings(caplog)) == 1


def test_while_the_store_is_down_it_is_not_asked_for_every_model():
    async def scenario():
        store = Store(customers=1000)
        async with Replica(store) as replica:
            held = [await replica.loader.load(name) for name in store.artifacts]
            store.silent_for, store.delay_s = set(store.artifacts), 10
            store.checks.clear()
            await asyncio.sleep(CHECK_S)
            assert held and 0 < len(store.checks) <= 3 * CHECKS_AT_ONCE
            store.silent_for, store.delay_s = set(), 0.001
            await asyncio.sleep(10)

    run(scenario)


def test_a_few_checks_are_at_work_at_a_time_and_no_request_waits_for_one():
    async def scenario():
        store = Store(customers=200)
        async with Replica(store) as replica:
            held = [await replica.loader.load(name) for name in store.artifacts]
            store.delay_s = 2
            await store.until_at_work(CHECKS_AT_ONCE)
            before_s = now_s()
            assert [await replica.loader.load(name) for name in store.artifacts] == held
            assert now_s() == before_s, "a request for a model in memory waits for a check"
            await asyncio.sleep(10 * CHECK_S)
            assert store.most_at_work == CHECKS_AT_ONCE

    run(scenario)


def test_checks_that_cannot_keep_up_say_what_to_do(caplog):
    async def scenario():
        store = Store(customers=200)
        async with Replica(store) as replica:
            held = [await replica.loader.load(name) for name in store.artifacts]
            await asyncio.sleep(10 * CHECK_S)
            assert held and not warnings(caplog)
            store.delay_s = 2 * CHECK_S * CHECKS_AT_ONCE / len(held)
            await asyncio.sleep(10 * CHECK_S)

    run(scenario)
    assert "raise reload_check_s" in warnings(caplog)[0]


def test_a_model_that_nobody_holds_is_not_checked():
    async def scenario():
        store = Store()
        async with Replica(store) as replica:
            await replica.loader.load("customer_0")
            await asyncio.sleep(CHECK_S / 2)
            gc.collect()
            store.checks.clear()
            await asyncio.sleep(5 * CHECK_S)
        assert store.checks == []

    run(scenario)


def test_what_has_left_memory_when_its_turn_comes_is_not_read():
    async def scenario():
        store = Store()
        loader = ModelLoader(store, Model)
        empty = loader.hold("customer_0")
        assert not await loader.reload("customer_0")
        assert not await loader.reload("customer_1")
        assert empty.model is None and not store.checks

    run(scenario)


def test_a_holder_without_a_model_gets_one_when_the_store_has_one():
    async def scenario():
        store = Store(customers=0)
        async with Replica(store) as replica:
            pinned = replica.loader.hold("customer_0")
            await asyncio.sleep(2 * CHECK_S)
            assert pinned.model is None
            store.artifacts["customer_0"] = b"first"
            await asyncio.sleep(2 * CHECK_S)
            assert pinned.model.version == "first"
            assert replica.reloads == 0, "a first load is no reload"

    run(scenario)


def test_a_reader_of_artifacts_that_fails_in_its_own_way_stops_no_other_check(caplog):
    async def scenario():
        store = Store(customers=2)
        async with Replica(store) as replica:
            holders = [await replica.loader.load(name) for name in store.artifacts]
            store.artifacts["customer_0"] = b"! too much for it"
            await asyncio.sleep(2 * CHECK_S)
            store.artifacts["customer_1"] = b"new"
            await asyncio.sleep(2 * CHECK_S)
            assert [holder.model.version for holder in holders] == ["old", "new"]

    run(scenario)
    (warning,) = warnings(caplog)
    assert "customer_0" in warning and "bug" in warning


def test_stopping_in_the_middle_of_a_check_leaves_nothing_behind():
    async def scenario():
        store = Store(customers=20)
        async with Replica(store) as replica:
            held = [await replica.loader.load(name) for name in store.artifacts]
            store.delay_s = 100 * CHECK_S
            await store.until_at_work(CHECKS_AT_ONCE)
            assert held

    run(scenario)  # which looks for tasks


@pytest.mark.parametrize("check_s", [0, -1, float("nan")])
def test_a_time_that_makes_no_sense_is_refused(check_s):
    with pytest.raises(ValueError, match="more than 0"):
        ModelReloader(ModelLoader(Store(), Model), check_s)
