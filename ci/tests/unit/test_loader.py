"""The loader, without Ray: one read per customer, side by side, and nothing kept alive."""

import asyncio
import gc

import pytest

from forecast_service.errors import StoreUnavailableError
from forecast_service.loader import ModelLoader
from forecast_service.store import Admit, Artifact


class Model:
    """Something that has a size, and can be weakly referred to."""

    size_bytes = 0


class GatedStore:
    """A store whose reads wait at a gate. It knows when as many wait as a test expects."""

    def __init__(self, expected: int = 1):
        self.reads = []
        self.error = None
        self.gate = asyncio.Event()
        self.expected_are_waiting = asyncio.Event()
        self._expected = expected

    async def read(self, customer_id: str, admit: Admit) -> Artifact:
        self.reads.append(customer_id)
        if len(self.reads) == self._expected:
            self.expected_are_waiting.set()
        await self.gate.wait()
        if self.error:
            raise self.error
        return Artifact(b"", "tag")


def make_loader(store: GatedStore) -> ModelLoader[Model]:
    return ModelLoader(store, lambda data, customer_id: Model())


def test_distinct_customers_are_read_at_the_same_time():
    async def scenario():
        store = GatedStore(expected=32)
        loader = make_loader(store)
        loads = [asyncio.create_task(loader.load(f"customer_{number}")) for number in range(32)]
        await asyncio.wait_for(store.expected_are_waiting.wait(), timeout=10)
        store.gate.set()
        assert len(set(await asyncio.gather(*loads))) == 32

    asyncio.run(scenario())


def test_one_customer_is_read_once_for_all_who_wait():
    async def scenario():
        store = GatedStore()
        loader = make_loader(store)
        loads = [asyncio.create_task(loader.load("customer_1")) for _ in range(50)]
        await store.expected_are_waiting.wait()
        store.gate.set()
        assert len(set(await asyncio.gather(*loads))) == 1
        assert store.reads == ["customer_1"]

    asyncio.run(scenario())


def test_a_model_is_in_memory_exactly_as_long_as_somebody_holds_it():
    async def scenario():
        store = GatedStore()
        loader = make_loader(store)
        store.gate.set()
        holder = (await loader.load("customer_1")).holder
        assert "customer_1" in loader
        # Not inside the assert: pytest would hold the model.
        same = (await loader.load("customer_1")).holder is holder
        assert same
        assert store.reads == ["customer_1"]
        del holder
        await asyncio.sleep(0)  # until then, the event loop holds the result
        gc.collect()
        assert "customer_1" not in loader
        await loader.load("customer_1")
        assert store.reads == ["customer_1", "customer_1"]

    asyncio.run(scenario())


def test_a_pinned_model_is_in_memory_and_one_that_is_being_read_is_not():
    """Which is what the service counts as a hit and as a miss."""

    async def scenario():
        store = GatedStore()
        loader = make_loader(store)
        pin = loader.hold("customer_1")
        assert "customer_1" not in loader, "a place without a model is no hit"
        first = asyncio.create_task(loader.load("customer_1"))
        await store.expected_are_waiting.wait()
        assert "customer_1" not in loader, "one who joins a read finds no model"
        store.gate.set()
        assert (await first).holder is pin and "customer_1" in loader

    asyncio.run(scenario())


def test_cancelling_one_who_waits_leaves_the_read_to_the_others():
    async def scenario():
        store = GatedStore()
        loader = make_loader(store)
        impatient, patient = (asyncio.create_task(loader.load("customer_1")) for _ in range(2))
        await store.expected_are_waiting.wait()
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        store.gate.set()
        assert isinstance((await patient).model, Model)
        assert store.reads == ["customer_1"]

    asyncio.run(scenario())


def test_an_error_reaches_all_who_wait_is_logged_once_and_forgotten(caplog):
    async def scenario():
        store = GatedStore()
        loader = make_loader(store)
        store.error = StoreUnavailableError("down")
        store.gate.set()
        outcomes = await asyncio.gather(
            *(loader.load("customer_1") for _ in range(3)), return_exceptions=True
        )
        assert outcomes == [store.error] * 3
        assert store.reads == ["customer_1"]
        store.error = None
        assert isinstance((await loader.load("customer_1")).model, Model)

    asyncio.run(scenario())
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "Could not load customer_1: down" in warning
