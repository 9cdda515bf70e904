"""A lease, by a clock that the test moves. What any store has to do for it is in store_suite.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from store_suite import run

from forecast_service import lease as lease_module
from forecast_service import store as store_module
from forecast_service.errors import StoreUnavailableError, UnknownCustomerError
from forecast_service.lease import FOLDER, LEASE_S, Lease, LeaseHeldError
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore


class Clock:
    """Stands for the module `time`."""

    now_s = 1_000_000.0

    def time(self) -> float:
        return self.now_s

    strftime, localtime = (
        staticmethod(lease_module.time.strftime),
        staticmethod(lease_module.time.localtime),
    )


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease_module, "time", clock)
    return clock


@pytest.fixture
def settings(tmp_path) -> StoreSettings:
    return StoreSettings(model_store=str(tmp_path))


@pytest.fixture
def refuse_writes(monkeypatch) -> Callable[[bool], None]:
    """Let a store take nothing more, and again what comes."""
    put, refused = store_module.obstore.put_async, [False]

    async def put_or_fail(*arguments, **options):
        if refused[0]:
            raise OSError("no space left on device")
        return await put(*arguments, **options)

    monkeypatch.setattr(store_module.obstore, "put_async", put_or_fail)
    return lambda on: refused.__setitem__(0, on)


def leases(settings: StoreSettings) -> list[Path]:
    return sorted((ModelStore(settings).folder / FOLDER).glob("*/lease.json"))


def test_whoever_comes_second_hears_who_is_at_work_and_until_when(settings, clock):
    run(Lease(settings).acquire())
    with pytest.raises(LeaseHeldError, match=r"process \d+ on .* its lease ends at \d\d:\d\d:\d\d"):
        run(Lease(settings).acquire())


@pytest.mark.parametrize("ages_s, free", [((LEASE_S - 1,), False), ((LEASE_S + 1,), True)])
def test_a_lease_lasts_as_long_as_it_says(settings, clock, ages_s, free):
    run(Lease(settings).acquire())
    clock.now_s += ages_s[0]
    if free:
        run(Lease(settings).acquire())
    else:
        with pytest.raises(LeaseHeldError):
            run(Lease(settings).acquire())


def test_renewed_in_time_it_goes_on(settings, clock):
    lease = Lease(settings)
    run(lease.acquire())
    for _ in range(5):
        clock.now_s += LEASE_S * 0.9
        run(lease.renew())
        with pytest.raises(LeaseHeldError):
            run(Lease(settings).acquire())


def test_renewed_too_late_it_is_lost_even_if_nobody_else_wanted_it(settings, clock):
    lease = Lease(settings)
    run(lease.acquire())
    clock.now_s += LEASE_S
    with pytest.raises(LeaseHeldError, match="has run out"):
        run(lease.renew())


def test_what_the_store_did_not_take_is_no_renewal_and_may_be_tried_again(
    settings, clock, refuse_writes
):
    lease = Lease(settings)
    run(lease.acquire())
    clock.now_s += LEASE_S * 0.5
    refuse_writes(True)
    with pytest.raises(StoreUnavailableError):
        run(lease.renew())
    refuse_writes(False)
    clock.now_s += LEASE_S * 0.4
    run(lease.renew())
    clock.now_s += LEASE_S * 0.9
    refuse_writes(True)
    with pytest.raises(StoreUnavailableError):
        run(lease.renew())
    refuse_writes(False)
    clock.now_s += LEASE_S * 0.2
    with pytest.raises(LeaseHeldError, match="has run out"):
        run(lease.renew())


def test_it_is_held_for_a_block_whatever_ends_that(settings, clock):
    with pytest.raises(KeyError), Lease(settings).held():
        with pytest.raises(LeaseHeldError):
            run(Lease(settings).acquire())
        raise KeyError
    with Lease(settings).held():
        pass


def test_a_lease_that_cannot_be_given_back_is_logged_and_ends_by_itself(
    settings, clock, refuse_writes, caplog
):
    with Lease(settings).held():
        refuse_writes(True)
    assert f"the lease was not given back, and ends in up to {LEASE_S} s: " in caplog.text
    refuse_writes(False)
    with pytest.raises(LeaseHeldError):
        run(Lease(settings).acquire())
    clock.now_s += LEASE_S + 1
    run(Lease(settings).acquire())


def test_a_holder_who_finds_no_lease_at_all_does_not_renew_it(settings, clock):
    lease = Lease(settings)
    run(lease.acquire())
    for path in leases(settings):
        path.unlink()
    with pytest.raises(LeaseHeldError, match="another process is at work"):
        run(lease.renew())


def test_a_holder_whose_lease_another_has_does_not_renew_it(settings, clock):
    """Its clock is late: it believes to be in time."""
    slow = Lease(settings)
    run(slow.acquire())
    clock.now_s += LEASE_S + 1
    run(Lease(settings).acquire())
    clock.now_s -= LEASE_S
    with pytest.raises(LeaseHeldError, match="at work"):
        run(slow.renew())


def test_one_object_stays_however_often_a_lease_was_taken(settings, clock):
    for _ in range(4):
        lease = Lease(settings)
        run(lease.acquire())
        run(lease.release())
    (only,) = leases(settings)
    assert only.parent.name == "4" and json.loads(only.read_text())["until_s"] == 0
    assert [path.name for path in only.parent.parent.iterdir()] == ["4"], "empty folders stay"


def test_who_has_read_an_old_lease_and_sleeps_takes_nothing_from_the_next(
    settings, clock, monkeypatch
):
    """Two find the same lease over; one takes the next and ends it before the other goes on."""
    run(Lease(settings).acquire())
    clock.now_s += LEASE_S + 1
    sleeper, quick, last = Lease(settings), Lease(settings), Lease(settings)
    read = sleeper._read

    async def read_and_sleep(number: int):
        found = await read(number)
        monkeypatch.setattr(sleeper, "_read", read)
        await quick.acquire()
        await quick.release()
        await last.acquire()
        return found

    monkeypatch.setattr(sleeper, "_read", read_and_sleep)
    with pytest.raises(LeaseHeldError):
        run(sleeper.acquire())
    run(last.renew())


def test_a_lease_is_no_customer_and_a_customer_of_its_name_is_one(settings, clock):
    store = ModelStore(settings)
    run(Lease(settings).acquire())
    assert run(store.list()) == []
    with pytest.raises(UnknownCustomerError):
        run(store.read(FOLDER))
    run(store.write(FOLDER, b"a model"))
    with pytest.raises(LeaseHeldError):
        run(Lease(settings).acquire())
    clock.now_s += LEASE_S + 1
    run(Lease(settings).acquire())
    assert run(store.list()) == [FOLDER] and run(store.read(FOLDER)).data == b"a model"
