"""Models in memory follow the store: in time, checked first, and whatever the store does.

No test waits: the event loop's clock jumps to when the next thing is due.
"""

import asyncio
import gc
import itertools
import weakref
from collections import Counter

import pytest
from jumping_clock import now_s, run

from forecast_service.errors import CorruptModelError, StoreUnavailableError, UnknownCustomerError
from forecast_service.loader import ModelLoader
from forecast_service.memory import Holder
from forecast_service.reloader import CHECKS_AT_ONCE, ModelReloader
from forecast_service.store import Admit, Artifact

CHECK_S = 30.0
LONGEST_S = 8 * CHECK_S  # between two checks of a customer who is put off


class Model:
    """What the bytes say; bytes that begin with a question mark cannot be used."""

    def __init__(self, data: bytes, customer_id: str):
        if data.startswith(b"?"):
            raise CorruptModelError(f"{customer_id} is damaged")
        if data.startswith(b"!"):
            raise RecursionError("the reader of artifacts has a bug")
        self.version = data.decode()
        self.size_bytes = len(data)


class Store:
    """A store in memory, whose tag for an artifact is its content."""

    def __init__(self, customers: int = 1):
        self.artifacts = {f"customer_{number}": b"old" for number in range(customers)}
        self.checks: list[tuple[float, str]] = []  # when, and whose
        self.reads: list[str] = []
        self.delay_s = 0.001
        self.silent_for: set[str] = set()
        self.silence_s = 0.0  # after which it fails those
        self.at_work = self.most_at_work = 0
        self._began = asyncio.Condition()

    async def until_at_work(self, requests: int) -> None:
        async with self._began:
            await self._began.wait_for(lambda: self.at_work >= requests)

    async def read(self, customer_id: str, admit: Admit) -> Artifact:
        return await self._get(customer_id, None, admit)

    async def read_if_changed(
        self, customer_id: str, etag: str | None, admit: Admit
    ) -> Artifact | None:
        self.checks.append((now_s(), customer_id))
        return await self._get(customer_id, etag, admit)

    async def _get(self, customer_id: str, etag: str | None, admit: Admit) -> Artifact | None:
        async with self._began:
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
            self._began.notify_all()
        silent = customer_id in self.silent_for
        await asyncio.sleep(self.silence_s if silent else self.delay_s)
        self.at_work -= 1
        if silent:
            raise StoreUnavailableError("the model store does not answer")
        data = self.artifacts.get(customer_id)
        if data is None:
            raise UnknownCustomerError(f"there is no model for {customer_id}")
        if data.decode() == etag:
            return None
        await admit(len(data), data.decode())  # a real one also asks again, if that takes time
        self.reads.append(customer_id)
        return Artifact(data, data.decode())

    def times_s(self, customer_id: str) -> list[float]:
        """Return when a customer was checked."""
        return [at_s for at_s, checked in self.checks if checked == customer_id]


class Replica:
    """A loader and its reloader, as the service has them, and what they report."""

    def __init__(self, store: Store):
        self.loads = []  # what came of those for requests: an error, or None
        self.errors = []
        self.reloads = 0
        self.loader = ModelLoader(store, Model, on_loaded=lambda _, error: self.loads.append(error))
        self._reloader = ModelReloader(self.loader, CHECK_S, self._count)

    def _count(self, error: BaseException | None) -> None:
        if error:
            self.errors.append(error)
        else:
            self.reloads += 1

    async def load(self, customer_id: str) -> Holder:
        return (await self.loader.load(customer_id)).holder

    async def __aenter__(self) -> "Replica":
        self._running = asyncio.create_task(self._reloader.run())
        return self

    async def __aexit__(self, *_) -> None:
        assert not self._running.done(), "the reloader has given up"
        self._running.cancel()
        await asyncio.wait([self._running])
        assert self._running.cancelled(), "to be stopped is no failure"


def warnings(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def gaps(times_s: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times_s)]


def test_a_newer_model_is_served_in_time_and_requests_at_work_keep_the_old_one():
    async def scenario():
        store = Store()
        async with Replica(store) as replica:
            holder = await replica.load("customer_0")
            at_work = holder.model
            await asyncio.sleep(7.3 * CHECK_S)
            store.artifacts["customer_0"] = b"new"
            await asyncio.sleep(CHECK_S + store.delay_s)
            assert holder.model.version == "new"
            assert at_work.version == "old"
            assert await replica.load("customer_0") is holder
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
                held.append(await replica.load(name))
                began_s[name] = now_s()
            await asyncio.sleep(20 * CHECK_S)
        for name, loaded_s in began_s.items():
            gaps_s = gaps([loaded_s, *store.times_s(name)])
            assert max(gaps_s) <= CHECK_S, "a model was not checked in time"
            assert min(gaps_s[1:]) > CHECK_S / 2, "a model was checked twice as often as promised"

    run(scenario)


def test_replicas_that_load_at_the_same_time_do_not_check_at_the_same_time():
    async def scenario():
        stores = Store(customers=100), Store(customers=100)
        async with Replica(stores[0]) as first, Replica(stores[1]) as second:
            held = [
                await asyncio.gather(first.load(name), second.load(name))
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
            holder = await replica.load("customer_0")
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
            holder = await replica.load("customer_0")
            for data in upload, b"old":
                store.artifacts["customer_0"] = data
                await asyncio.sleep(2 * CHECK_S)
            assert holder.model.version == "old"

    run(scenario)


def test_a_deleted_model_leaves_memory_though_it_is_held_and_comes_back_into_its_place():
    async def scenario():
        store = Store()
        async with Replica(store) as replica:
            holder = await replica.load("customer_0")  # as Ray's cache and a pin hold it
            model = weakref.ref(holder.model)
            del store.artifacts["customer_0"]
            await asyncio.sleep(CHECK_S + store.delay_s)
            gc.collect()
            assert model() is None, "a deleted customer's model is still in memory"
            assert "customer_0" not in replica.loader
            with pytest.raises(UnknownCustomerError):
                await replica.load("customer_0")
            store.artifacts["customer_0"] = b"returned"
            assert await replica.load("customer_0") is holder
            assert holder.model.version == "returned"
            assert replica.errors == [], "a deletion is no error"

    run(scenario)


def test_a_store_that_is_down_is_said_once_and_what_changed_meanwhile_is_reloaded(caplog):
    async def scenario():
        store = Store(customers=100)
        async with Replica(store) as replica:
            holders = [await replica.load(name) for name in store.artifacts]
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


@pytest.mark.parametrize("unreadable", [1, CHECKS_AT_ONCE, 3 * CHECKS_AT_ONCE])
@pytest.mark.parametrize("silence_s", [0.001, 10])
def test_unreadable_models_are_retried_apart_and_all_others_are_checked_in_time(
    unreadable, silence_s, caplog
):
    async def scenario():
        store = Store(customers=100)
        names = list(store.artifacts)  # the unreadable ones were loaded first
        store.silence_s = silence_s
        async with Replica(store) as replica:
            held = [await replica.load(name) for name in names]
            store.silent_for = set(names[:unreadable])
            await asyncio.sleep(4 * CHECK_S)  # by then the store has failed each of them
            began_s = now_s()
            store.checks.clear()
            await asyncio.sleep(20 * CHECK_S)
            assert held
        for name in names[unreadable:]:
            assert max(gaps([began_s, *store.times_s(name), now_s()])) <= CHECK_S, (
                f"{name} was not checked in time"
            )
        for name in names[:unreadable]:
            assert 1 <= len(store.times_s(name)) <= 6, f"{name} was not put off, or for too long"

    run(scenario)
    said = warnings(caplog)
    assert len(said) == unreadable and all("Could not check" in line for line in said)


def test_retries_that_hang_hold_up_nobody_else():
    async def scenario():
        store = Store(customers=100)
        names = list(store.artifacts)
        store.silence_s = 4 * CHECK_S
        async with Replica(store) as replica:
            held = [await replica.load(name) for name in names]
            store.silent_for = set(names[: 3 * CHECKS_AT_ONCE])
            await asyncio.sleep(30 * CHECK_S)  # by then the store has failed each of them
            began_s = now_s()
            store.checks.clear()
            await asyncio.sleep(40 * CHECK_S)
            assert held and {name for _, name in store.checks} & store.silent_for
        for name in names[3 * CHECKS_AT_ONCE :]:
            assert max(gaps([began_s, *store.times_s(name), now_s()])) <= CHECK_S, (
                f"{name} was not checked in time"
            )

    run(scenario)


def test_models_that_are_unreadable_all_at_once_delay_no_other_check():
    async def scenario():
        store = Store(customers=200)
        names = list(store.artifacts)
        async with Replica(store) as replica:
            held = [await replica.load(name) for name in names]
            await asyncio.sleep(5 * CHECK_S)
            store.silent_for = set(names[: len(names) // 2])
            store.artifacts = dict.fromkeys(names, b"new")
            await asyncio.sleep(CHECK_S + store.delay_s)
            versions = [holder.model.version for holder in held]
            assert versions == ["old"] * 100 + ["new"] * 100

    run(scenario)


def test_an_unreadable_model_is_asked_for_ever_less_often_and_noticed_within_the_longest_time(
    caplog,
):
    async def scenario():
        store = Store(customers=2)
        async with Replica(store) as replica:
            unreadable, other = [await replica.load(name) for name in store.artifacts]
            store.silent_for = {"customer_0"}
            store.artifacts = dict.fromkeys(store.artifacts, b"new")
            await asyncio.sleep(30 * CHECK_S)
            waits_s = gaps(store.times_s("customer_0"))
            for doublings, wait_s in enumerate(waits_s, start=1):
                least_s = 2 ** min(doublings, 3) * CHECK_S
                assert 0.65 * least_s < wait_s <= least_s
            assert (unreadable.model.version, other.model.version) == ("old", "new")
            store.silent_for = set()
            await asyncio.sleep(LONGEST_S)
            assert unreadable.model.version == "new"
            store.checks.clear()
            await asyncio.sleep(5 * CHECK_S)
            assert len(store.times_s("customer_0")) >= 5, "it is still put off"

    run(scenario)
    (warning,) = warnings(caplog)
    assert "Could not check customer_0" in warning and "does not answer" in warning


@pytest.mark.parametrize("silence_s", [0.001, 10])
def test_while_the_store_is_down_it_is_not_asked_for_every_model(silence_s):
    async def scenario():
        store = Store(customers=1000)
        store.silence_s = silence_s
        async with Replica(store) as replica:
            held = [await replica.load(name) for name in store.artifacts]
            await asyncio.sleep(CHECK_S)
            for most in 250, 170, 170:
                store.silent_for = set(store.artifacts)
                store.checks.clear()
                await asyncio.sleep(CHECK_S)
                assert held and 0 < len(store.checks) <= most

    run(scenario)


@pytest.mark.parametrize(("customers", "within_s"), [(1, 2 * CHECK_S), (1000, CHECK_S)])
def test_a_store_that_is_back_is_noticed_in_time_however_long_it_was_away(
    customers, within_s, caplog
):
    async def scenario():
        store = Store(customers)
        async with Replica(store) as replica:
            holders = [await replica.load(name) for name in store.artifacts]
            await asyncio.sleep(CHECK_S)
            store.silent_for = set(store.artifacts)
            store.artifacts = dict.fromkeys(store.artifacts, b"new")
            await asyncio.sleep(100 * CHECK_S)
            store.silent_for = set()
            store.checks.clear()
            await asyncio.sleep(within_s + 2 * store.delay_s)
            assert {holder.model.version for holder in holders} == {"new"}
            by_round = Counter(int(20 * at_s / CHECK_S) for at_s, _ in store.checks)
            assert max(by_round.values()) <= max(1, customers / 5), "all are checked at once"

    run(scenario)
    away, back = warnings(caplog)
    assert "go on unchecked" in away and "checked again" in back


def test_the_part_of_a_store_that_comes_back_is_found_whoever_is_in_memory_longer():
    async def scenario():
        store = Store(customers=1000)
        names = list(store.artifacts)
        async with Replica(store) as replica:
            holders = [await replica.load(name) for name in names]
            store.silent_for = set(names)
            store.artifacts = dict.fromkeys(names, b"new")
            await asyncio.sleep(30 * CHECK_S)
            store.silent_for = set(names[:900])
            await asyncio.sleep(20 * CHECK_S)
            assert {holder.model.version for holder in holders[900:]} == {"new"}

    run(scenario)


def test_a_few_checks_are_at_work_at_a_time_and_no_request_waits_for_one():
    async def scenario():
        store = Store(customers=200)
        async with Replica(store) as replica:
            held = [await replica.load(name) for name in store.artifacts]
            store.delay_s = 2
            await store.until_at_work(CHECKS_AT_ONCE)
            before_s = now_s()
            assert [await replica.load(name) for name in store.artifacts] == held
            assert now_s() == before_s, "a request for a model in memory waits for a check"
            await asyncio.sleep(10 * CHECK_S)
            assert store.most_at_work == CHECKS_AT_ONCE

    run(scenario)


def test_checks_that_cannot_keep_up_say_what_to_do(caplog):
    async def scenario():
        store = Store(customers=200)
        async with Replica(store) as replica:
            held = [await replica.load(name) for name in store.artifacts]
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
            await replica.load("customer_0")
            await asyncio.sleep(CHECK_S / 2)
            gc.collect()
            store.checks.clear()
            await asyncio.sleep(5 * CHECK_S)
        assert store.checks == []

    run(scenario)


def test_what_nobody_holds_when_its_turn_comes_is_not_read():
    async def scenario():
        store = Store()
        assert not await ModelLoader(store, Model).reload("customer_0")
        assert not store.checks

    run(scenario)


def test_a_place_without_a_model_is_asked_for_ever_less_often_and_its_first_model_is_noticed():
    async def scenario():
        store = Store(customers=0)
        async with Replica(store) as replica:
            pinned = replica.loader.hold("customer_0")
            await asyncio.sleep(60 * 60)
            assert pinned.model is None
            assert len(store.checks) <= 22, "a customer without a model is read again and again"
            store.artifacts["customer_0"] = b"first"
            await asyncio.sleep(LONGEST_S + store.delay_s)
            assert pinned.model.version == "first"
            assert (replica.reloads, replica.errors, replica.loads) == (1, [], [])

    run(scenario)


def test_a_deleted_customer_in_the_cache_is_put_off_and_counts_as_no_requests_error(caplog):
    caplog.set_level("INFO")

    async def scenario():
        store = Store()
        async with Replica(store) as replica:
            cached = await replica.load("customer_0")
            del store.artifacts["customer_0"]
            await asyncio.sleep(60 * 60)
            assert cached.model is None and len(store.checks) <= 24
            assert (replica.loads, replica.errors) == ([None], [])
            for load in range(2):
                with pytest.raises(UnknownCustomerError):
                    await replica.load("customer_0")
                assert len(replica.loads) == 2 + load, "a request has to ask the store at once"
            store.artifacts["customer_0"] = b"old"
            await asyncio.sleep(LONGEST_S + store.delay_s)
            assert cached.model.version == "old", "the same model came back, and is not noticed"

    run(scenario)
    assert sum("has left the store" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("kept", ["pinned", "cached"])
def test_a_damaged_artifact_is_read_once_and_a_good_one_noticed(kept, caplog):
    async def scenario():
        store = Store()
        async with Replica(store) as replica:
            if kept == "cached":
                holder = await replica.load("customer_0")
                del store.artifacts["customer_0"]
                await asyncio.sleep(CHECK_S + store.delay_s)
            else:
                holder = replica.loader.hold("customer_0")
            store.artifacts["customer_0"] = b"? damaged"
            store.reads.clear()
            await asyncio.sleep(60 * 60)
            assert store.reads == ["customer_0"], "what cannot be used was read again"
            assert [type(error) for error in replica.errors] == [CorruptModelError]
            with pytest.raises(CorruptModelError):
                await replica.load("customer_0")
            assert store.reads == ["customer_0"] * 2, "a request has to ask the store at once"
            store.artifacts["customer_0"] = b"repaired"
            await asyncio.sleep(LONGEST_S + store.delay_s)
            assert holder.model.version == "repaired"

    run(scenario)
    damaged = [line for line in warnings(caplog) if "damaged" in line]
    assert len(damaged) == 2 and not any("old model" in line for line in damaged)


def test_what_a_request_finds_damaged_is_not_read_again_for_the_place_that_is_kept():
    async def scenario():
        store = Store()
        store.artifacts["customer_0"] = b"? damaged"
        async with Replica(store) as replica:
            pinned = replica.loader.hold("customer_0")
            with pytest.raises(CorruptModelError):
                await replica.load("customer_0")
            await asyncio.sleep(60 * 60)
            assert store.reads == ["customer_0"] and store.checks
            assert pinned.model is None and not replica.errors

    run(scenario)


def test_a_model_that_a_request_brings_back_is_checked_in_time_whoever_was_put_off():
    async def scenario():
        store = Store(customers=0)
        async with Replica(store) as replica:
            holder = replica.loader.hold("customer_0")
            await asyncio.sleep(20 * CHECK_S)
            store.artifacts["customer_0"] = b"old"
            await replica.load("customer_0")
            store.artifacts["customer_0"] = b"new"
            await asyncio.sleep(CHECK_S + store.delay_s)
            assert holder.model.version == "new"

    run(scenario)


@pytest.mark.parametrize("in_thread", [False, True])
def test_whatever_a_reader_of_artifacts_raises_is_about_that_artifact(in_thread, caplog):
    async def scenario():
        store = Store(customers=2)
        store.artifacts["customer_2"] = b"! too much for it"
        loader = ModelLoader(store, Model, in_thread=in_thread)
        held = [(await loader.load(name)).holder for name in ("customer_0", "customer_1")]
        store.artifacts["customer_0"] = store.artifacts["customer_2"]
        for ask, name in (loader.load, "customer_2"), (loader.reload, "customer_0"):
            with pytest.raises(CorruptModelError, match=f"{name} cannot be read: RecursionError"):
                await ask(name)
        assert not await loader.reload("customer_0"), "it was read again"
        assert [holder.model.version for holder in held] == ["old", "old"]

    asyncio.run(scenario())
    traces = [record for record in caplog.records if record.exc_info]
    assert len(traces) == 2 and all("has a bug" in str(record.exc_info[1]) for record in traces)


def test_a_reader_of_artifacts_that_fails_in_its_own_way_stops_no_other_check(caplog):
    async def scenario():
        store = Store(customers=2)
        async with Replica(store) as replica:
            holders = [await replica.load(name) for name in store.artifacts]
            store.artifacts["customer_0"] = b"! too much for it"
            await asyncio.sleep(2 * CHECK_S)
            store.artifacts["customer_1"] = b"new"
            await asyncio.sleep(2 * CHECK_S)
            assert [holder.model.version for holder in holders] == ["old", "new"]
            assert [type(error) for error in replica.errors] == [CorruptModelError]

    run(scenario)
    (warning,) = warnings(caplog)
    assert "Could not load customer_0 anew" in warning


@pytest.mark.parametrize("failing", ["the callback", "the store"])
def test_what_nobody_expects_ends_the_reloader_with_its_traceback_and_nothing_goes_on(failing):
    async def scenario():
        store = Store(customers=40)
        loader = ModelLoader(store, Model)

        def fail(*_):
            raise ZeroDivisionError(f"{failing} has a bug")

        running = asyncio.create_task(ModelReloader(loader, CHECK_S, fail).run())
        held = [(await loader.load(name)).holder for name in store.artifacts]
        if failing == "the store":
            store.read_if_changed = fail
        else:
            store.artifacts = dict.fromkeys(store.artifacts, b"new")
        await asyncio.wait([running], timeout=CHECK_S)
        errors = running.exception().exceptions
        assert held and {type(error) for error in errors} == {ZeroDivisionError}
        assert all(error.__traceback__ for error in errors)

    run(scenario)  # which looks for tasks


def test_stopping_in_the_middle_of_a_check_leaves_nothing_behind():
    async def scenario():
        store = Store(customers=20)
        async with Replica(store) as replica:
            held = [await replica.load(name) for name in store.artifacts]
            store.delay_s = 100 * CHECK_S
            await store.until_at_work(CHECKS_AT_ONCE)
            assert held

    run(scenario)  # which looks for tasks


@pytest.mark.parametrize("check_s", [0, -1, float("nan")])
def test_a_time_that_makes_no_sense_is_refused(check_s):
    with pytest.raises(ValueError, match="more than 0"):
        ModelReloader(ModelLoader(Store(), Model), check_s)
