"""Two models of a customer: promoted, rolled back, and never without a good one."""

import json
from pathlib import Path

import numpy as np
import pytest
from store_suite import run

from forecast_service import store as store_module
from forecast_service.artifact import from_bytes, to_bytes
from forecast_service.errors import CorruptModelError, StoreUnavailableError, UnknownCustomerError
from forecast_service.model import ForecastModel
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore
from forecast_service.versions import NO_SCORES, PREVIOUS, Versions

NAME = "customer_0001"


class Killed(BaseException):
    """Nothing in the code catches this."""


@pytest.fixture
def settings(tmp_path) -> StoreSettings:
    (tmp_path / "models").mkdir()
    return StoreSettings(model_store=str(tmp_path / "models"))


@pytest.fixture
def folder(settings) -> Path:
    return ModelStore(settings).folder / NAME


@pytest.fixture
def models(fleet) -> list[ForecastModel]:
    """Three models of one customer, the first as training stores it."""
    first = from_bytes(fleet[NAME], NAME)
    return [
        first,
        *(
            from_bytes(
                to_bytes(
                    ForecastModel(NAME, until, first.weights, first.bias + 1, first.half_width),
                    NO_SCORES,
                ),
                NAME,
            )
            for until in ("2025-08-01", "2025-09-01")
        ),
    ]


@pytest.fixture
def versions(settings, fleet) -> Versions:
    run(ModelStore(settings).write(NAME, fleet[NAME]))
    return Versions(settings)


def served(versions: Versions) -> list[str]:
    """Return which versions are there, the one that serves first."""
    return [model.version for model in run(versions.read(NAME))]


def test_a_customer_fresh_from_training_has_one(versions, models):
    assert served(versions) == [models[0].version]


def test_a_promoted_model_serves_and_the_one_before_is_kept(versions, models, folder, fleet):
    for model in models[1:]:
        run(versions.promote(model))
    assert served(versions) == [models[2].version, models[1].version]
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", PREVIOUS}


def test_services_and_their_lists_do_not_see_what_served_before(versions, models, settings):
    run(versions.promote(models[1]))
    assert run(ModelStore(settings).list()) == [NAME]


def test_a_model_without_a_hold_out_says_no_scores(versions, models, folder):
    run(versions.promote(models[1]))
    data = (folder / "model.safetensors").read_bytes()
    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert about["trained_until"] == "2025-08-01" and not any("holdout" in key for key in about)


def test_rolled_back_the_old_bytes_serve_again_and_again_the_new(versions, models, folder, fleet):
    run(versions.promote(models[1]))
    assert run(versions.roll_back(NAME)).version == models[0].version
    assert (folder / "model.safetensors").read_bytes() == fleet[NAME]
    run(versions.roll_back(NAME))
    assert served(versions) == [models[1].version, models[0].version]


def test_without_a_previous_model_nothing_is_rolled_back(versions, models):
    with pytest.raises(UnknownCustomerError, match=f"no previous model of {NAME}"):
        run(versions.roll_back(NAME))
    assert served(versions) == [models[0].version]


def test_a_damaged_previous_model_never_serves_and_stops_no_promotion(versions, models, folder):
    (folder / PREVIOUS).write_bytes(b"not a model")
    with pytest.raises(CorruptModelError):
        run(versions.roll_back(NAME))
    assert served(versions) == [models[0].version]
    run(versions.promote(models[1]))
    assert served(versions) == [models[1].version, models[0].version]


def test_a_damaged_model_can_be_rolled_back(versions, models, folder):
    run(versions.promote(models[1]))
    (folder / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(CorruptModelError):
        run(versions.read(NAME))
    run(versions.roll_back(NAME))
    assert served(versions) == [models[0].version]


@pytest.mark.parametrize("action", ["promote", "roll_back"])
@pytest.mark.parametrize("writes", [0, 1])
@pytest.mark.parametrize("death", [Killed, OSError])
def test_killed_before_any_write_a_customer_has_a_good_model_and_the_next_run_ends_it(
    versions, models, monkeypatch, action, writes, death
):
    run(versions.promote(models[1]))
    put, left = store_module.obstore.put_async, [writes]

    async def put_until_killed(*arguments, **options):
        if not left[0]:
            raise death
        left[0] -= 1
        return await put(*arguments, **options)

    work = {
        "promote": lambda: versions.promote(models[2]),
        "roll_back": lambda: versions.roll_back(NAME),
    }
    with monkeypatch.context() as patch:
        patch.setattr(store_module.obstore, "put_async", put_until_killed)
        with pytest.raises((death, StoreUnavailableError)):
            run(work[action]())
    left = {
        ("promote", 0): [1, 0],
        ("promote", 1): [1, 1],  # what served is kept before anything takes its place
        ("roll_back", 0): [1, 0],
        ("roll_back", 1): [0, 0],  # what is to serve does so before its copy is replaced
    }[action, writes]
    assert served(versions) == [models[number].version for number in left]
    run(versions.promote(models[2]))
    assert served(versions)[0] == models[2].version and len(served(versions)) == 2


def test_promoting_needs_a_model_that_serves(settings, models):
    with pytest.raises(UnknownCustomerError):
        run(Versions(settings).promote(models[0]))


def test_what_is_promoted_forecasts_the_same_when_it_is_read(versions, models, footfall):
    run(versions.promote(models[1]))
    lags = footfall[2][0][-28:].astype(float)
    np.testing.assert_array_equal(
        run(versions.read(NAME))[0].predict(lags).forecast, models[1].predict(lags).forecast
    )
