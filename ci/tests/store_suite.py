"""What holds for every store, a folder or S3: both tiers run this over their own."""

import asyncio
import time

import pytest

from forecast_service.errors import (
    InvalidCustomerIdError,
    StoreUnavailableError,
    UnknownCustomerError,
)
from forecast_service.lease import Lease, LeaseHeldError
from forecast_service.settings import StoreSettings
from forecast_service.store import Artifact, ModelStore

CALLS = {
    "read": lambda store: store.read("customer_123"),
    "read_if_changed": lambda store: store.read_if_changed("customer_123", '"a tag"'),
    "write": lambda store: store.write("customer_123", b"model"),
    "create": lambda store: store.create("customer_123", b"model"),
    "delete": lambda store: store.delete("customer_123"),
    "list": lambda store: store.list(),
}


def run(coroutine):
    return asyncio.run(coroutine)


def why_not(store: ModelStore, call: str) -> str:
    """Return the reason that a call gives for failing."""
    with pytest.raises(StoreUnavailableError) as caught:
        run(CALLS[call](store))
    return str(caught.value)


async def acquired(leases: list[Lease]) -> list[bool | BaseException]:
    """Return which of some leases, all wanted at once, were taken. The others name the holder."""
    results = await asyncio.gather(*(lease.acquire() for lease in leases), return_exceptions=True)
    for result in results:
        assert not isinstance(result, LeaseHeldError) or "at work" in str(result)
    return [
        result is None if result is None or isinstance(result, LeaseHeldError) else result
        for result in results
    ]


def require_one(outcomes: list[bool | BaseException]) -> None:
    """Require that of several at once one succeeded.

    A store under such pressure may answer some too late, who then do not know whether they did.
    """
    late = [outcome for outcome in outcomes if isinstance(outcome, StoreUnavailableError)]
    assert outcomes.count(True) == 1 or (late and outcomes.count(True) == 0), outcomes
    assert outcomes.count(False) == len(outcomes) - outcomes.count(True) - len(late), outcomes


def wait_until_over(lease_s: float) -> None:
    """Wait for as long as a lease lasts, by the clock that it goes by."""
    ends_s = time.time() + lease_s
    while time.time() <= ends_s:
        time.sleep(lease_s)


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

    def test_of_many_who_create_a_model_at_once_one_does_and_it_stays(self, store):
        letters = [letter.encode() for letter in "abcdefgh"]

        async def create_all() -> list[bool | BaseException]:
            creating = (store.create("customer_123", letter) for letter in letters)
            return await asyncio.gather(*creating, return_exceptions=True)

        created = dict(zip(letters, run(create_all()), strict=True))
        require_one(list(created.values()))
        stored = run(store.read("customer_123")).data
        assert stored in letters and created[stored] is not False
        assert run(store.create("customer_123", b"later")) is False
        assert run(store.read("customer_123")).data == stored

    def test_a_deleted_model_is_gone_and_can_be_created_again(self, store):
        for _ in range(2):
            assert run(store.create("customer_123", b"model"))
            run(store.delete("customer_123"))
            assert run(store.list()) == []
        run(store.delete("customer_123"))  # there is none

    def test_of_many_who_want_a_lease_at_once_one_gets_it(self, store):
        leases = [Lease(StoreSettings(model_store=store.url)) for _ in range(8)]
        require_one(run(acquired(leases)))

    def test_a_lease_is_free_when_it_was_given_back(self, store):
        for _ in range(3):
            one, other = (Lease(StoreSettings(model_store=store.url)) for _ in range(2))
            assert run(acquired([one])) == [True] and run(acquired([other])) == [False]
            run(one.renew())
            run(one.release())
        assert run(store.list()) == [], "a lease is taken for a model"

    def test_a_lease_that_has_run_out_is_anybodys_and_its_holder_is_told(self, store):
        settings = StoreSettings(model_store=store.url)
        killed, late = Lease(settings, lease_s=0.01), Lease(settings)
        run(killed.acquire())
        wait_until_over(0.01)
        assert run(acquired([late])) == [True]
        with pytest.raises(LeaseHeldError):
            run(killed.renew())
        run(killed.release())  # too late to matter
        assert run(acquired([Lease(settings)])) == [False]
        run(late.renew())

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
            lambda: store.create(customer_id, b""),
            lambda: store.delete(customer_id),
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
