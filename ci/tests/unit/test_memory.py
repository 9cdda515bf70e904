"""Memory of models: never over the budget, the least recently used goes first, nothing leaks."""

import asyncio
import gc
import threading
import weakref
from collections import OrderedDict
from collections.abc import Coroutine
from contextlib import nullcontext

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from jumping_clock import now_s, run
from test_reloader import CHECK_S, LONGEST_S, Model, Replica, Store, warnings

from forecast_service.errors import CorruptModelError, ModelTooLargeError, UnknownCustomerError
from forecast_service.loader import Gate, ModelLoader
from forecast_service.memory import TICK_S, ModelMemory
from forecast_service.reloader import ROUNDS
from fuzzing import EXAMPLES

BUDGET = 100  # bytes
IDLE_S = 600.0


def of_size(size_bytes: int, version: str = "old") -> bytes:
    return version.encode().ljust(size_bytes, b".")


def make_memory(budget_bytes: float = BUDGET, **options) -> ModelMemory:
    memory = ModelMemory(**options)
    memory.limit(budget_bytes)
    return memory


def in_memory(memory: ModelMemory) -> dict[str, int]:
    """Return the bytes of each model that is in memory, by looking."""
    return {name: holder.model.size_bytes for name, holder in memory.holders() if holder.model}


class RayCache(OrderedDict):
    """Keeps the holders of the customers that were asked for last, as Ray Serve's cache does."""

    def __init__(self, places: int = 1000):
        super().__init__()
        self._places = places

    def keep(self, customer_id: str, holder) -> None:
        self[customer_id] = holder
        self.move_to_end(customer_id)
        while len(self) > self._places:
            self.popitem(last=False)


class Fleet:
    """A store with a memory, a loader and a cache in front of it, as the service has them."""

    def __init__(self, sizes: dict[str, int], budget_bytes: float = BUDGET, places=1000, **options):
        self.store = Store(customers=0)
        self.store.artifacts = {name: of_size(size) for name, size in sizes.items()}
        self.unloads = []
        self.ticks = []
        self.memory = ModelMemory(
            on_unload=self.unloads.append, on_tick=lambda *tick: self.ticks.append(tick), **options
        )
        self.memory.limit(budget_bytes)
        self.loader = ModelLoader(self.store, Model, self.memory, most_bytes_at_once=BUDGET / 2)
        self.cache = RayCache(places)

    async def ask(self, customer_id: str) -> Model:
        loaded = await self.loader.load(customer_id)
        self.cache.keep(customer_id, self.loader.hold(customer_id))
        return loaded.model

    def consistent(self) -> dict[str, int]:
        """Return what is in memory, and require that it is counted right, and within the budget."""
        self.memory._settle()
        found = in_memory(self.memory)
        assert self.memory.used_bytes == sum(found.values()) <= self.memory.budget_bytes
        return found


def test_the_least_recently_used_makes_room_and_the_next_request_loads_it_again(caplog):
    caplog.set_level("INFO")

    async def scenario():
        fleet = Fleet({"a": 40, "b": 40, "c": 40})
        at_work = await fleet.ask("b")
        await fleet.ask("a")
        await fleet.ask("b")
        await fleet.ask("c")
        assert fleet.consistent() == {"b": 40, "c": 40}
        await fleet.ask("a")
        assert fleet.consistent() == {"c": 40, "a": 40}
        assert at_work.version.startswith("old"), "a request at work has lost its model"
        assert fleet.store.reads == ["b", "a", "c", "a"]
        assert fleet.unloads == ["budget"] * 2

    run(scenario)
    unloaded = [line.message for line in caplog.records if line.message.startswith("Unloaded")]
    assert unloaded == [
        "Unloaded a: 4e-05 MB, to stay within 0.0001 MB.",
        "Unloaded b: 4e-05 MB, to stay within 0.0001 MB.",
    ]


def test_a_model_too_large_says_so_costs_no_other_its_place_and_its_body_is_never_read():
    async def scenario():
        fleet = Fleet({"a": 40, "b": 40, "huge": 101})
        await fleet.ask("a")
        await fleet.ask("b")
        for _ in range(2):
            with pytest.raises(ModelTooLargeError, match=r"huge takes 0.000101 MB.* 0.0001 MB$"):
                await fleet.ask("huge")
        assert fleet.consistent() == {"a": 40, "b": 40}
        assert fleet.store.reads == ["a", "b"] and not fleet.unloads

    run(scenario)


def test_a_model_that_turns_out_too_large_once_it_is_read_costs_no_other_its_place():
    class Unpacked(Model):
        """Takes three times what its artifact has."""

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.size_bytes *= 3

    async def scenario():
        fleet = Fleet({"a": 20, "b": 40})
        fleet.loader = ModelLoader(fleet.store, Unpacked, fleet.memory)
        await fleet.ask("a")
        with pytest.raises(ModelTooLargeError, match=r"b takes 0.00012 MB"):
            await fleet.ask("b")
        assert fleet.consistent() == {"a": 60}

    run(scenario)


@pytest.mark.parametrize("new", [50, 70, 100])
def test_a_new_version_of_another_size_is_counted_and_makes_room_in_its_place(new):
    async def scenario():
        fleet = Fleet({"a": 20, "b": 30, "c": 40})
        for name in fleet.store.artifacts:
            await fleet.ask(name)
        fleet.store.artifacts["b"] = of_size(new, "new")
        assert await fleet.loader.reload("b")
        left = {50: {"b": 50, "c": 40}, 70: {"c": 40}, 100: {"c": 40}}
        assert fleet.consistent() == left[new], "a reload is no use: b went when its turn came"

    run(scenario)


def test_a_new_version_too_large_is_refused_and_read_once_and_the_old_one_goes_on(caplog):
    async def scenario():
        store = Store(customers=0)
        store.artifacts = {"a": of_size(40), "b": of_size(40)}
        async with Replica(store) as replica:
            replica.loader.memory.limit(BUDGET)
            held = [await replica.load(name) for name in store.artifacts]
            store.artifacts["a"] = of_size(BUDGET + 1, "new")
            await asyncio.sleep(20 * CHECK_S)
            assert [holder.model.size_bytes for holder in held] == [40, 40]
            assert store.reads == ["a", "b"]
            assert [type(error) for error in replica.errors] == [ModelTooLargeError]
            store.artifacts["a"] = of_size(50, "new")
            await asyncio.sleep(CHECK_S + 1)
            assert held[0].model.size_bytes == 50

    run(scenario)
    (warning,) = warnings(caplog)
    assert "Could not load a anew, its old model goes on" in warning and "0.000101 MB" in warning


def test_what_was_unloaded_is_neither_read_nor_checked_until_a_request_wants_it():
    async def scenario():
        store = Store(customers=0)
        store.artifacts = {"a": of_size(60), "b": of_size(60)}
        async with Replica(store) as replica:
            replica.loader.memory.limit(BUDGET)
            held = [await replica.load(name) for name in store.artifacts]
            assert held[0].model is None and held[0].unloaded
            await asyncio.sleep(20 * LONGEST_S)
            assert "a" not in {name for _, name in store.checks} and store.reads == ["a", "b"]
            store.artifacts["b"] = of_size(60, "new")
            assert await replica.load("a") is held[0]
            store.checks.clear()
            store.artifacts["a"] = of_size(60, "newer")
            await asyncio.sleep(2 * CHECK_S)
            assert held[0].model.version.startswith("newer"), "a loaded model is not followed"
            assert held[1].model is None

    run(scenario)


def test_what_was_unloaded_does_not_pass_for_an_answer_of_a_store_that_is_down(caplog):
    async def scenario():
        store = Store(customers=0)
        store.artifacts = {"a": of_size(60), "b": of_size(60)}
        async with Replica(store) as replica:
            replica.loader.memory.limit(BUDGET)
            held = [await replica.load(name) for name in store.artifacts]
            assert held[0].unloaded
            store.silent_for = set(store.artifacts)
            await asyncio.sleep(20 * CHECK_S)

    run(scenario)
    (warning,) = warnings(caplog)
    assert "go on unchecked" in warning


def test_a_check_that_waits_for_the_store_does_not_bring_back_what_is_unloaded_meanwhile():
    async def scenario():
        fleet = Fleet({"a": 60, "b": 60})
        await fleet.ask("a")
        fleet.store.artifacts["a"] = of_size(60, "new")
        fleet.store.delay_s = 10
        checking = asyncio.create_task(fleet.loader.reload("a"))
        await fleet.store.until_at_work(1)
        fleet.store.delay_s = 0
        await fleet.ask("b")
        assert await checking is False
        assert fleet.consistent() == {"b": 60}

    run(scenario)


def test_a_check_that_reads_an_artifact_does_not_bring_back_what_is_unloaded_meanwhile():
    began, go_on = threading.Event(), threading.Event()

    class Slow(Model):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            if self.version.startswith("slow"):
                began.set()
                assert go_on.wait(10)

    async def scenario():
        fleet = Fleet({"a": 60, "b": 60})
        fleet.loader = ModelLoader(fleet.store, Slow, fleet.memory, in_thread=True)
        await fleet.ask("a")
        fleet.store.artifacts["a"] = of_size(60, "slow")
        checking = asyncio.create_task(fleet.loader.reload("a"))
        assert await asyncio.to_thread(began.wait, 10)
        await fleet.ask("b")
        go_on.set()
        assert await checking is False
        assert fleet.consistent() == {"b": 60}

    asyncio.run(scenario())


def test_idle_models_are_unloaded_in_time_others_and_pinned_ones_stay(caplog):
    caplog.set_level("INFO")

    async def scenario():
        fleet = Fleet(dict.fromkeys("abp", 20), pinned=["p"], idle_s=IDLE_S)
        running = asyncio.create_task(fleet.memory.run())
        for name in "pab":
            await fleet.ask(name)
        while now_s() < IDLE_S - 1:
            await asyncio.sleep(10)
            await fleet.ask("b")
        assert fleet.consistent().keys() == set("abp")
        await asyncio.sleep(10 + TICK_S)
        assert fleet.consistent().keys() == set("bp"), "an idle model is still there"
        assert fleet.ticks[-1] == (2, 40, BUDGET)
        await asyncio.sleep(IDLE_S + TICK_S)
        assert fleet.consistent().keys() == set("p")
        assert fleet.unloads == ["idle"] * 2 and fleet.ticks[-1] == (1, 20, BUDGET)
        await fleet.ask("a")
        await asyncio.sleep(TICK_S)
        assert fleet.ticks[-1] == (2, 40, BUDGET)
        running.cancel()
        await asyncio.wait([running])

    run(scenario)
    assert any("Unloaded a: 2e-05 MB, not asked for in 600 s." in r.message for r in caplog.records)


def test_a_new_version_does_not_keep_a_model_that_nobody_asks_for():
    async def scenario():
        fleet = Fleet({"a": 20}, idle_s=IDLE_S)
        running = asyncio.create_task(fleet.memory.run())
        await fleet.ask("a")
        await asyncio.sleep(IDLE_S / 2)
        fleet.store.artifacts["a"] = of_size(20, "new")
        assert await fleet.loader.reload("a")
        await asyncio.sleep(IDLE_S / 2 + TICK_S)
        assert not fleet.consistent()
        running.cancel()
        await asyncio.wait([running])

    run(scenario)


def test_pinned_models_stay_whatever_is_asked_for():
    async def scenario():
        fleet = Fleet({"p": 60} | {f"c{number}": 30 for number in range(5)}, pinned=["p"])
        pin = fleet.loader.hold("p")
        assert await fleet.loader.reload("p")
        for number in range(5):
            await fleet.ask(f"c{number}")
            assert fleet.consistent() == {"p": 60, f"c{number}": 30}
        fleet.store.artifacts["c0"] = of_size(41)
        with pytest.raises(ModelTooLargeError, match=r"0.0001 MB, beside 6e-05 MB of pinned"):
            await fleet.ask("c0")
        fleet.store.artifacts["p"] = of_size(90, "new")
        assert await fleet.loader.reload("p") and pin.model.size_bytes == 90
        assert fleet.consistent() == {"p": 90}

    run(scenario)


def test_a_budget_under_the_size_of_the_pinned_models_is_refused_with_both_figures():
    async def scenario():
        memory = ModelMemory(["p", "q"])
        held = [memory.put(name, Model(of_size(60), name), "tag") for name in "pq"]
        with pytest.raises(ValueError, match=r"0.00012 MB, and model_memory_mb is 0.0001:"):
            memory.limit(BUDGET)
        memory.limit(120)
        assert held and memory.used_bytes == 120

    run(scenario)


def test_a_pin_that_comes_too_late_to_fit_is_refused_and_those_in_memory_stay(caplog):
    async def scenario():
        store = Store(customers=0)
        store.artifacts = {"p": of_size(60), "a": of_size(30)}
        async with Replica(store) as replica:
            replica.loader.memory = memory = make_memory(pinned=["p", "late"])
            held = [memory.hold("late"), await replica.load("p"), await replica.load("a")]
            store.artifacts["late"] = of_size(50)
            await asyncio.sleep(LONGEST_S + CHECK_S)
            assert in_memory(memory) == {"p": 60, "a": 30} and store.reads == ["p", "a"]
            store.artifacts["late"] = of_size(40)
            await asyncio.sleep(LONGEST_S + CHECK_S)
            assert in_memory(memory) == {"p": 60, "late": 40} and held

    run(scenario)
    (warning,) = warnings(caplog)
    assert "Could not load late" in warning and "beside 6e-05 MB of pinned models" in warning


@pytest.mark.parametrize("places", [1, 3])
def test_what_ray_serves_cache_evicts_is_no_longer_counted(places):
    async def scenario():
        fleet = Fleet({f"c{number}": 10 for number in range(8)}, places=places)
        running = asyncio.create_task(fleet.memory.run())
        for name in fleet.store.artifacts:
            await fleet.ask(name)
        await asyncio.sleep(TICK_S)
        assert fleet.ticks[-1] == (places, 10 * places, BUDGET)
        assert len(fleet.consistent()) == places and not fleet.unloads
        running.cancel()
        await asyncio.wait([running])

    run(scenario)


def test_a_death_that_is_noticed_late_takes_no_other_holders_place():
    """As when the garbage collector runs in the thread that reads an artifact."""

    async def scenario():
        memory = make_memory()
        memory.put("a", Model(of_size(20), "a"), "tag")  # nobody keeps its holder
        late = memory._gone.popleft()
        held = memory.put("a", Model(of_size(30), "a"), "tag")
        memory._gone.append(late)
        memory._settle()
        assert held.model and memory.used_bytes == 30

    run(scenario)


def test_deleted_damaged_and_cancelled_ones_are_not_counted():
    async def scenario():
        fleet = Fleet({"a": 20, "b": 20, "c": 20})
        for name in "ab":
            await fleet.ask(name)
        fleet.store.artifacts["d"] = b"? damaged"
        del fleet.store.artifacts["a"]
        with pytest.raises(UnknownCustomerError):
            await fleet.loader.reload("a")
        with pytest.raises(CorruptModelError):
            await fleet.ask("d")
        leaving = asyncio.create_task(fleet.ask("c"))
        await fleet.store.until_at_work(1)
        leaving.cancel()
        await asyncio.wait([leaving])
        await asyncio.sleep(1)
        assert fleet.store.reads[-1] == "c", "the load was cancelled with the request"
        assert fleet.consistent() == {"b": 20}

    run(scenario)


def test_a_burst_for_more_customers_than_fit_serves_each_from_one_read():
    async def scenario():
        sizes = {f"c{number}": 60 for number in range(20)}
        fleet = Fleet(sizes)
        fleet.store.delay_s = 0
        models = await asyncio.gather(*(fleet.ask(name) for name in sizes for _ in range(5)))
        assert len(set(models)) == 20 and sorted(fleet.store.reads) == sorted(sizes)
        assert len(fleet.consistent()) == 1

    run(scenario)


def test_artifacts_take_turns_in_order_and_one_that_fails_leaves_its_room():
    async def scenario():
        gate, order = Gate(100), []

        async def pass_through(name: str, size_bytes: int) -> None:
            turn = gate.enter(size_bytes)
            await turn
            order.append(name)
            await asyncio.sleep(1)
            gate.leave(turn)

        sizes = {"a": 50, "b": 50, "large": 150, "c": 10, "d": 90}
        passing = [asyncio.create_task(pass_through(*pair)) for pair in sizes.items()]
        await asyncio.sleep(0.5)
        assert order == ["a", "b"]
        gate.leave(gate.enter(10))
        await asyncio.sleep(1)
        assert order == ["a", "b", "large"], "small ones have overtaken a large one"
        await asyncio.gather(*passing)
        assert order == list(sizes) and now_s() == 3

        fleet = Fleet({"a": 50, "b": 50})
        for data, size in (b"? damaged", 50), (b"! fails", 50), (of_size(60), 60):
            fleet.store.artifacts["a"] = data.ljust(size)
            with pytest.raises(CorruptModelError) if size == 50 else nullcontext():
                await fleet.ask("a")
        assert fleet.loader._gate._inside_bytes == 0

    run(scenario)


def test_who_comes_after_those_who_wait_does_not_ask_the_store_in_vain():
    async def scenario():
        fleet = Fleet({"a": 40, "b": 40})
        busy = fleet.loader._gate.enter(40)
        first = asyncio.create_task(fleet.ask("a"))
        await fleet.store.until_at_work(1)
        await asyncio.sleep(1)
        second = asyncio.create_task(fleet.ask("b"))
        await asyncio.sleep(fleet.store.delay_s / 2)
        assert fleet.store.at_work == 0, "its response would wait in memory"
        fleet.loader._gate.leave(busy)
        await asyncio.gather(first, second)
        assert fleet.store.reads == ["a", "b"] and fleet.loader._gate._inside_bytes == 0

    run(scenario)


def test_unloading_frees_the_model_at_once_though_its_holder_is_kept():
    async def scenario():
        fleet = Fleet({"a": 60, "b": 60})
        model = weakref.ref(await fleet.ask("a"))
        await fleet.ask("b")
        assert model() is None and "a" in fleet.cache

    run(scenario)


def test_a_check_that_fails_keeps_no_model_in_memory():
    async def scenario():
        store = Store(customers=0)
        store.artifacts = {"a": of_size(40)}
        async with Replica(store) as replica:
            replica.loader.memory.limit(BUDGET)
            held = await replica.load("a")
            store.artifacts["a"] = of_size(BUDGET + 1, "new")
            await asyncio.sleep(CHECK_S + CHECK_S / ROUNDS / 2)  # when no check is at work
            assert len(replica.errors) == 1
            replica.errors.clear()
            holder = weakref.ref(held)
            del held  # as Ray Serve's cache does when it evicts
            assert holder() is None, "it waits for a collection of garbage"

    gc.disable()
    try:
        run(scenario)
    finally:
        gc.enable()


NAMES = "abcdefg"


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Whatever comes after whatever: compared with a model that is as plain as it gets."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.expected: OrderedDict[str, int] = OrderedDict()  # not pinned, next to go first
        self.pins: dict[str, int] = {}

    @initialize(places=st.integers(1, 8), pinned=st.sets(st.sampled_from("ab")))
    def start(self, places, pinned):
        self.places, self.pinned = places, pinned
        self.fleet = Fleet({}, places=places, pinned=pinned)
        self.held = {name: self.fleet.loader.hold(name) for name in pinned}
        self.fleet.store.delay_s = 0

    def outcome(self, work: Coroutine) -> object:
        """Return what comes of it, or the kind of its error.

        The error itself would be in a cycle with the loop's frames, and its traceback would keep a
        holder alive until the next collection of garbage.
        """

        async def catch() -> object:
            try:
                return await work
            except (UnknownCustomerError, ModelTooLargeError) as error:
                return type(error)

        return self.loop.run_until_complete(catch())

    def room(self, name: str) -> int:
        return BUDGET - sum(size for pin, size in self.pins.items() if pin != name)

    def put(self, name: str, size: int) -> None:
        (self.pins if name in self.pinned else self.expected)[name] = size
        while sum(self.pins.values()) + sum(self.expected.values()) > BUDGET:
            self.expected.popitem(last=False)

    @rule(name=st.sampled_from(NAMES), size=st.integers(1, 60), huge=st.booleans())
    def upload(self, name, size, huge):
        self.fleet.store.artifacts[name] = of_size(size + 60 * huge, f"{size}")

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name):
        self.fleet.store.artifacts.pop(name, None)

    @rule(name=st.sampled_from(NAMES))
    def ask(self, name):
        size = len(self.fleet.store.artifacts.get(name, b""))
        known = self.expected.get(name) or self.pins.get(name)
        model = self.outcome(self.fleet.ask(name))
        if model is UnknownCustomerError:
            assert not size and not known
        elif model is ModelTooLargeError:
            assert size > self.room(name) and not known
        else:
            assert model.size_bytes == (known or size)
            if not known:
                self.put(name, size)
            if name in self.expected:
                self.expected.move_to_end(name)
            for evicted in self.expected.keys() - self.fleet.cache.keys():
                del self.expected[evicted]

    @rule(name=st.sampled_from(NAMES))
    def check(self, name):
        holder = self.fleet.memory.find(name)
        size = len(self.fleet.store.artifacts.get(name, b""))
        skipped = holder is None or holder.unloaded
        del holder  # for evict() to have the last word
        changed = self.outcome(self.fleet.loader.reload(name))
        if changed is UnknownCustomerError:
            assert not size and not skipped
            self.expected.pop(name, None)
            self.pins.pop(name, None)
        elif changed is ModelTooLargeError:
            assert size > self.room(name)
        else:
            assert not (skipped and changed)
            if changed:
                self.put(name, size)

    @precondition(lambda self: self.expected)
    @rule()
    def evict(self):
        """Ray Serve's cache evicts a holder."""
        name, _ = self.fleet.cache.popitem(last=False)
        self.expected.pop(name, None)

    @invariant()
    def is_right(self):
        if hasattr(self, "fleet"):
            found = self.fleet.consistent()
            assert found == {**self.expected, **self.pins}
            assert list(self.fleet.memory._order) == list(self.expected)

    def teardown(self):
        self.loop.close()


AnyOrderOfEvents.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, phases=set(Phase) - {Phase.explain}
)
test_any_order_of_events = AnyOrderOfEvents.TestCase
