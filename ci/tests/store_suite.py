"""What holds for every store, a folder or S3: both tiers run this over their own."""

import asyncio
import time

import pytest

from forecast_service.errors import (
    InvalidCustomerIdError,
    StoreUnavailableError,
    UnknownCustomerError,
)
from forecast_service.settings import StoreSettings
from forecast_service.store import Artifact, ModelStore

CALLS = {
    "read": lambda store: store.read("customer_123"),
    "read_if_changed": lambda store: store.read_if_changed("customer_123", '"a tag"'),
    "write": lambda store: store.write("customer_123", b"model"),
    "list": lambda store: store.list(),
}


def run(coroutine):
    return asyncio.run(coroutine)


def why_not(store: ModelStore, call: str) -> str:
    """Return the reason that a call gives for failing."""
    with pytest.raises(StoreUnavailableError) as caught:
        run(CALLS[call](store))
    return str(caught.value)


class StoreSuite:
    """Wants a fixture `store`: a ModelStore that is empty before each test."""

    def test_what_is_written_is_read_and_listed(self, store):
        run(store.write("customer_456", b"a model"))
        run(store.write("customer_123", b""))
        assert run(store.read("customer_456")).data == b"a model"
        assert run(store.read("customer_123")).data == b""
        assert run(store.list()) == ["customer_123", "customer_456"]

    def test_a_new_store_is_empty(self, store):
        assert run(store.list()) == []

    def test_an_overwritten_model_is_gone(self, store):
        run(store.write("customer_123", b"a long old model"))
        run(store.write("customer_123", b"new"))
        assert run(store.read("customer_123")).data == b"new"
        assert run(store.list()) == ["customer_123"]

    def test_a_reader_sees_the_old_model_or_the_new_one_and_no_mixture(self, store):
        versions = [letter * 100_000 for letter in (b"a", b"b")]

        async def read_while_written() -> set[bytes]:
            async def write_by_turns() -> None:
                for turn in range(40):
                    await store.write("customer_123", versions[turn % 2])

            await store.write("customer_123", versions[1])
            writing, seen = asyncio.create_task(write_by_turns()), set()
            while not writing.done():
                seen.add((await store.read("customer_123")).data)
            await writing
            return seen

        assert run(read_while_written()) <= set(versions)

    def test_a_customer_without_a_model_is_unknown(self, store):
        run(store.write("customer_123", b"model"))
        with pytest.raises(UnknownCustomerError, match="customer_000"):
            run(store.read("customer_000"))
        with pytest.raises(UnknownCustomerError, match="customer_000"):
            run(store.read_if_changed("customer_000", run(store.read("customer_123")).etag))

    @pytest.mark.parametrize("customer_id", ["", "..", "../a", "a/b", "a\n", "a\0", "-a", "a" * 65])
    def test_a_malformed_id_is_refused_by_every_method(self, store, customer_id):
        for call in (
            lambda: store.read(customer_id),
            lambda: store.read_if_changed(customer_id, None),
            lambda: store.write(customer_id, b""),
        ):
            with pytest.raises(InvalidCustomerIdError):
                run(call())
        assert run(store.list()) == []

    def test_a_model_is_sent_again_only_if_it_changed(self, store):
        run(store.write("customer_123", b"one"))
        first = run(store.read("customer_123"))
        assert first.etag == run(store.read("customer_123")).etag
        assert run(store.read_if_changed("customer_123", first.etag)) is None
        run(store.write("customer_123", b"two"))
        second = run(store.read_if_changed("customer_123", first.etag))
        assert second == Artifact(b"two", run(store.read("customer_123")).etag)
        assert second.etag != first.etag
        assert run(store.read_if_changed("customer_123", second.etag)) is None

    def test_who_has_no_tag_is_sent_the_model(self, store):
        run(store.write("customer_123", b"model"))
        assert run(store.read_if_changed("customer_123", None)) == run(store.read("customer_123"))

    def test_a_store_lists_nothing_of_its_neighbour(self, store):
        neighbour = ModelStore(StoreSettings(model_store=f"{store.url}-2"), create=True)
        run(neighbour.write("customer_123", b"model"))
        assert run(store.list()) == []
        with pytest.raises(UnknownCustomerError):
            run(store.read("customer_123"))

    def test_a_simulated_delay_counts_against_the_timeout(self, store):
        far = {"store_timeout_s": 0.5, "store_added_delay_s": 30}
        started = time.monotonic()
        said = why_not(ModelStore(StoreSettings(model_store=store.url, **far)), "read")
        assert said == "the model store did not answer in 0.5 s"
        assert time.monotonic() - started < 30, "the delay was waited for"
