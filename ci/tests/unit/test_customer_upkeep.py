"""One customer is kept up: the same counts, the same model; whatever fails, a good one serves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_suite import run

from forecast_service import store as store_module
from forecast_service.artifact import to_bytes
from forecast_service.customer_upkeep import (
    MOST_LEVEL_CHANGE,
    Outcome,
    doubt_level,
    keep_up_customer,
)
from forecast_service.mend import TRIAL_DAYS, YEAR_DAYS, mend, refit
from forecast_service.model import ForecastModel
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore
from forecast_service.versions import NO_SCORES, Versions

NAME = "customer_123"
UNTIL = np.datetime64("2025-12-31")
SINCE = TRIAL_DAYS + 10  # days since the model was made


@pytest.fixture(scope="module")
def counts(footfall) -> np.ndarray:
    return footfall[2][0].astype(float)


@pytest.fixture(scope="module")
def narrow(counts) -> ForecastModel:
    """A model whose interval is too narrow: any challenger is better."""
    model = refit(NAME, counts[:-SINCE], str(UNTIL - SINCE))
    return replace(model, half_width=model.half_width / np.float32(5))


@pytest.fixture
def versions(tmp_path, narrow) -> Versions:
    settings = StoreSettings(model_store=str(tmp_path))
    run(ModelStore(settings).write(NAME, to_bytes(narrow, NO_SCORES)))
    return Versions(settings)


def keep_up(versions: Versions, counts: np.ndarray, until: object = UNTIL) -> Outcome | str:
    return run(keep_up_customer(versions, NAME, counts, str(until)))


def stored(versions: Versions) -> dict[str, bytes]:
    folder: Path = versions.serving.folder / NAME
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_better_serves_and_what_served_is_kept(versions, counts, narrow):
    outcome = keep_up(versions, counts)
    assert outcome.trial.best != "champion" and outcome.judgement.coverage < 0.5
    serving, previous = run(versions.read(NAME))
    assert serving.trained_until == str(UNTIL)
    np.testing.assert_array_equal(previous.half_width, narrow.half_width)


def test_run_again_it_changes_nothing_and_finds_the_same(versions, counts):
    first = keep_up(versions, counts)
    after_first = stored(versions)
    second = keep_up(versions, counts)
    assert stored(versions) == after_first and second.trial is None
    assert second.judgement[:2] == first.judgement[:2]
    np.testing.assert_array_equal(second.judgement.outside, first.judgement.outside)


def test_a_new_model_stays_until_four_weeks_have_come(versions, counts):
    """Its own trial is on days that it has not seen."""
    past = counts[: -TRIAL_DAYS - 3]
    first = UNTIL - TRIAL_DAYS - 3
    run(
        ModelStore(StoreSettings(model_store=versions.serving.url)).write(
            NAME, to_bytes(refit(NAME, past, str(first)), NO_SCORES)
        )
    )
    for days in TRIAL_DAYS - 1, TRIAL_DAYS:
        end = len(past) + days
        outcome = keep_up(versions, counts[:end], first + days)
        assert (outcome.trial is not None) == (days == TRIAL_DAYS)


def test_a_roll_back_is_not_undone_the_next_day(versions, counts, narrow):
    keep_up(versions, counts[:-1], UNTIL - 1)
    run(versions.roll_back(NAME))
    assert keep_up(versions, counts).trial is None
    serving, _ = run(versions.read(NAME))
    np.testing.assert_array_equal(serving.half_width, narrow.half_width)


def test_the_one_that_serves_is_on_trial_and_not_the_one_before(versions, counts, narrow):
    good = refit(NAME, counts[:-TRIAL_DAYS], str(UNTIL - TRIAL_DAYS))
    run(versions.promote(good))
    before = stored(versions)
    assert keep_up(versions, counts).trial.best == "champion"
    assert stored(versions) == before
    run(versions.roll_back(NAME))
    assert keep_up(versions, counts).trial.best != "champion"
    np.testing.assert_array_equal(run(versions.read(NAME))[1].half_width, narrow.half_width)


def test_a_champion_that_nothing_beats_serves_on_untouched(versions, counts):
    good = refit(NAME, counts[:-TRIAL_DAYS], str(UNTIL - TRIAL_DAYS))
    run(versions.serving.write(NAME, to_bytes(good, NO_SCORES)))
    before = stored(versions)
    assert keep_up(versions, counts).trial.best == "champion"
    assert stored(versions) == before


SAID = {
    "gap": (lambda counts: np.append(counts[:-1], np.nan), "lack a finite value"),
    "returns": (lambda counts: np.append(counts[:-1], -3), "outside 0 to"),
    "short": (lambda counts: counts[-240:], "240 days are too few"),
}


@pytest.mark.parametrize("change, said", SAID.values(), ids=SAID)
def test_counts_that_cannot_be_used_are_said_and_the_model_goes_on(versions, counts, change, said):
    before = stored(versions)
    reason = keep_up(versions, change(counts))
    assert reason.startswith(f"{NAME}: ") and said in reason
    assert stored(versions) == before


def test_actuals_that_end_before_the_model_does_are_said(versions, counts):
    end = UNTIL - SINCE - 1
    reason = keep_up(versions, counts[: -SINCE - 1], end)
    assert f"end on {end}, and a model of it has seen {UNTIL - SINCE}" in reason


@pytest.mark.parametrize("days", [60, 90])
def test_a_feed_that_goes_on_with_a_tenth_of_the_counts_makes_no_model(versions, footfall, days):
    """Its challengers would win: they have learned from the same wrong counts."""
    counts = footfall[2][0].astype(float)
    good = refit(NAME, counts[:-days], str(UNTIL - days))
    run(versions.serving.write(NAME, to_bytes(good, NO_SCORES)))
    counts[-days:] = np.round(counts[-days:] / 10)
    assert mend(good, counts, str(UNTIL))[1].best != "champion", "the guard is not needed"
    before = stored(versions)
    outcome = keep_up(versions, counts)
    assert outcome.trial is None and stored(versions) == before
    assert outcome.judgement.error > 0
    assert outcome.doubt.startswith(f"{NAME}: its last 28 days are at 2")
    assert outcome.doubt.endswith("train it anew; if not, correct the actuals")
    good = refit(NAME, counts[:-1], str(UNTIL - 1))
    run(versions.serving.write(NAME, to_bytes(good, NO_SCORES)))
    assert keep_up(versions, counts).doubt == "", "it was trained anew, and no trial is due"


@pytest.mark.parametrize(
    "change, doubted",
    [
        (1, False),
        (MOST_LEVEL_CHANGE * 0.98, False),
        (MOST_LEVEL_CHANGE * 1.02, True),
        (1 / MOST_LEVEL_CHANGE * 1.02, False),
        (1 / MOST_LEVEL_CHANGE * 0.98, True),
        (0, True),
    ],
)
def test_a_level_is_doubted_beyond_so_many_times_that_of_the_year_before(change, doubted):
    series = np.concatenate(
        [np.full(500, 9e5), np.full(YEAR_DAYS, 100.0), np.full(TRIAL_DAYS, 100)]
    )
    series[-TRIAL_DAYS:] *= change
    assert bool(doubt_level(series)) == doubted


def test_a_level_of_nothing_is_none_and_values_below_zero_have_none():
    zeros = np.zeros(YEAR_DAYS)
    assert doubt_level(np.append(zeros, np.zeros(TRIAL_DAYS))) == ""
    assert "the first that are not 0" in doubt_level(np.append(zeros, np.ones(TRIAL_DAYS)))
    assert doubt_level(np.append(zeros - 1, np.ones(TRIAL_DAYS))) == ""


def test_a_real_fleet_has_no_level_in_doubt_at_the_end_of_any_month(footfall):
    _, dates, counts = footfall
    for month in np.arange("2025-01", "2026-01", dtype="datetime64[M]"):
        until = dates.searchsorted((month + 1).astype("datetime64[D]"))
        doubted = [series for series in counts[:, :until] if doubt_level(series)]
        assert not doubted, f"{len(doubted)} of {len(counts)} customers at the end of {month}"


def test_a_damaged_model_is_said(versions, counts):
    (versions.serving.folder / NAME / "model.safetensors").write_bytes(b"not a model")
    assert keep_up(versions, counts).startswith(f"{NAME}: the model of {NAME} is not a safetensors")


def test_a_customer_without_a_model_is_said(versions, counts):
    run(versions.serving.delete(NAME))
    assert keep_up(versions, counts) == f"{NAME}: there is no model for {NAME}"


@pytest.mark.parametrize("writes", [0, 1])
def test_a_store_that_takes_no_more_is_said_and_a_good_model_serves(
    versions, counts, monkeypatch, narrow, writes
):
    put, left = store_module.obstore.put_async, [writes]

    async def put_until_full(*arguments, **options):
        if not left[0]:
            raise OSError("no space left on device")
        left[0] -= 1
        return await put(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store_module.obstore, "put_async", put_until_full)
        reason = keep_up(versions, counts)
    assert "a better model could not be stored" in reason
    np.testing.assert_array_equal(run(versions.read(NAME))[0].half_width, narrow.half_width)
    assert keep_up(versions, counts).trial.best != "champion"
    assert run(versions.read(NAME))[0].trained_until == str(UNTIL)
