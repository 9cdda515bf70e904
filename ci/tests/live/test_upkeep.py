"""The command that keeps forecasts good: on a store of its own, while a service answers from it."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live_service import CONTENT, FAST, SERVICE, right_answer
from ray import serve

from forecast_service.artifact import from_bytes, to_bytes
from forecast_service.customer_upkeep import Outcome
from forecast_service.fleet_upkeep import keep_up
from forecast_service.judge import Judgement
from forecast_service.lease import FOLDER, Lease, LeaseHeldError
from forecast_service.model import LAGS, fit
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore
from forecast_service.upkeep import summarize
from forecast_service.versions import NO_SCORES, PREVIOUS
from lab.chapter import NAMED
from lab.serving import wait_until
from steady_load import SteadyLoad

FLEET = 100  # customers: several batches
DAYS = 100  # since their models were made
TIMEOUT_S = 120
RATE = 40  # requests per second
MODEL = "model.safetensors"
pytestmark = pytest.mark.skipif(FAST, reason="is the same behind either ingress")


@pytest.fixture(scope="module")
def names(footfall) -> list[str]:
    return list(dict.fromkeys([*NAMED, *footfall[0]]))[:FLEET]


@pytest.fixture(scope="module")
def series(footfall, names) -> dict[str, np.ndarray]:
    customer_ids, _, counts = footfall
    return {name: counts[customer_ids.index(name)] for name in names}


@pytest.fixture(scope="module")
def until(footfall) -> str:
    return str(footfall[1][-1])


@pytest.fixture(scope="module")
def january(footfall, series) -> dict[str, bytes]:
    """The artifacts that are in the store before anything is kept up."""
    made = str(footfall[1][-DAYS - 1])
    return {
        name: to_bytes(fit(name, counts[:-DAYS], made), NO_SCORES)
        for name, counts in series.items()
    }


@pytest.fixture(scope="module")
def actuals(footfall, series, tmp_path_factory) -> Path:
    """A table of what came."""
    path = tmp_path_factory.mktemp("actuals") / "actuals.csv"
    with path.open("w") as table:
        table.write("customer,date,value\n")
        for name, counts in series.items():
            table.writelines(
                f"{name},{day},{count}\n" for day, count in zip(footfall[1], counts, strict=True)
            )
    return path


@pytest.fixture
def settings(session_dir, january, tmp_path) -> StoreSettings:
    """A folder with the models of January."""
    for name, artifact in january.items():
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / MODEL).write_bytes(artifact)
    return StoreSettings(model_store=str(tmp_path / "models"))


@pytest.fixture
def folder(settings) -> Path:
    return ModelStore(settings).folder


def start(settings: StoreSettings, *arguments: object) -> subprocess.Popen:
    """Start the command on this session's Ray."""
    return subprocess.Popen(
        [sys.executable, "-m", "forecast_service.upkeep", *map(str, arguments)],
        cwd=CONTENT,
        env=os.environ | {"MODEL_STORE": settings.model_store},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def upkeep(settings: StoreSettings, *arguments: object) -> tuple[int, str, str]:
    """Run it. Returns its exit code, and what it printed to stdout and stderr."""
    process = start(settings, *arguments)
    said, faults = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, said, faults


def stored(folder: Path) -> dict[str, bytes]:
    """Return all that a store has of customers."""
    paths = [*folder.glob(f"*/{MODEL}"), *folder.glob(f"*/{PREVIOUS}")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def expected(session_dir, january, series, until, tmp_path_factory) -> dict[str, bytes]:
    """What a store has after one undisturbed run, made by calling the library."""
    folder = tmp_path_factory.mktemp("expected")
    for name, artifact in january.items():
        (folder / name).mkdir()
        (folder / name / MODEL).write_bytes(artifact)
    outcomes = keep_up(series, until, StoreSettings(model_store=str(folder)))
    assert all(isinstance(outcome, Outcome) for outcome in outcomes.values())
    return stored(folder)


def test_it_mends_what_can_be_better_and_keeps_what_served(
    settings, folder, actuals, expected, january
):
    code, said, faults = upkeep(settings, actuals)
    assert code == 0, faults
    assert f"{FLEET} of {FLEET} customers kept up" in said
    after = stored(folder)
    assert after == expected
    promoted = {Path(name).parent.name for name in after if name.endswith(PREVIOUS)}
    assert 0.2 * FLEET < len(promoted) < 0.9 * FLEET
    for name in january:
        old = f"{name}/{PREVIOUS if name in promoted else MODEL}"
        assert after[old] == january[name], "the model that served was not kept"
    assert all(from_bytes(after[f"{name}/{MODEL}"], name) for name in january)


def test_again_on_the_same_actuals_it_changes_nothing_and_finds_the_same(settings, folder, actuals):
    first = upkeep(settings, actuals)
    before = stored(folder)
    again = upkeep(settings, actuals)
    assert again[0] == first[0] == 0 and stored(folder) == before
    assert "recalibrated 0, refitted 0" in again[1]
    found = (said.split("last 4 weeks")[1] for _, said, _ in (first, again))
    assert len(set(found)) == 1, "it judges otherwise what was served"


def test_of_two_at_once_one_works_and_the_other_says_so(settings, folder, actuals, expected):
    processes = [start(settings, actuals) for _ in range(2)]
    told = [process.communicate(timeout=TIMEOUT_S) for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes in ([0, 3], [0, 0]), told  # one after the other is no mistake, if they happen to
    assert stored(folder) == expected


def test_while_another_is_at_work_it_does_nothing(settings, folder, actuals):
    lease, before = Lease(settings), stored(folder)
    asyncio.run(lease.acquire())
    code, said, faults = upkeep(settings, actuals)
    assert code == 3 and not said
    assert f"process {os.getpid()} on {socket.gethostname()} is at work" in faults
    assert stored(folder) == before
    asyncio.run(lease.release())
    assert upkeep(settings, actuals)[0] == 0


def test_killed_half_way_every_customer_has_a_good_model_and_the_next_run_does_the_rest(
    settings, folder, actuals, expected, january
):
    process = start(settings, actuals)
    try:
        wait_until(lambda: list(folder.glob(f"*/{PREVIOUS}")), "a first model is promoted", 60)
    finally:
        process.kill()
        process.communicate()
    left = stored(folder)
    assert left != expected, "it was killed too late: nothing was shown"
    for name in january:
        model = left[f"{name}/{MODEL}"]
        assert model in (january[name], expected[f"{name}/{MODEL}"]), f"{name} has another model"
    assert upkeep(settings, actuals)[0] == 3, "its lease has not run out yet"
    (lease,) = folder.glob(f"{FOLDER}/*/lease.json")
    lease.write_text(json.dumps(json.loads(lease.read_text()) | {"until_s": 0}))  # as time does
    assert upkeep(settings, actuals)[0] == 0
    assert stored(folder) == expected


def test_a_run_that_takes_longer_than_its_lease_renews_it(settings, series, until):
    slow = settings.model_copy(update={"store_added_delay_s": 0.2})
    few = dict(list(series.items())[:8])
    finished, refused = threading.Event(), []

    def try_to_begin() -> None:
        while not finished.is_set():
            try:
                asyncio.run(Lease(settings).acquire())
                refused.append(False)
            except LeaseHeldError:
                refused.append(True)
            finished.wait(0.2)

    store = ModelStore(settings)
    for name in list(series)[8:]:
        asyncio.run(store.delete(name))
    lease_s, began_s = 2.0, time.monotonic()
    other = threading.Thread(target=try_to_begin)
    timer = threading.Timer(lease_s / 2, other.start)
    timer.start()
    outcomes = keep_up(few, until, slow, lease_s=lease_s)
    took_s = time.monotonic() - began_s
    finished.set()
    timer.join()
    other.join()
    assert all(isinstance(outcome, Outcome) for outcome in outcomes.values())
    assert took_s > 1.5 * lease_s, "it did not take longer than its lease: nothing was shown"
    assert refused.count(False) <= 1, "another one began meanwhile"  # the last try may be after it


def test_what_is_wrong_with_some_is_said_and_the_others_are_kept_up(
    settings, folder, actuals, expected, tmp_path
):
    late = tmp_path / "late.csv"
    late.write_text(
        "customer,date,value\n"
        "customer_000,2025-12-31,7\n"  # has no model
        f"{NAMED[0]},2025-12-31,99999\n"  # another value than the table before
        f"{NAMED[1]},2025-12-31,many\n"
    )
    (folder / "forgotten").mkdir()
    (folder / "forgotten" / MODEL).write_bytes(b"of a customer without actuals")
    (folder / NAMED[2] / MODEL).write_bytes(b"damaged")
    code, said, _ = upkeep(settings, actuals, late)
    assert code == 1 and "not kept up: 5" in said
    for name, reason in (
        ("customer_000", "no model to keep up"),
        ("forgotten", "no actuals for its model"),
        (NAMED[0], "two values for 2025-12-31"),
        (NAMED[1], "late.csv, line 4"),
        (NAMED[2], "not a safetensors artifact"),
    ):
        assert any(name in line and reason in line for line in said.splitlines()), name
    after = stored(folder)
    others = {
        name: data for name, data in expected.items() if Path(name).parent.name not in NAMED[:3]
    }
    assert others.items() <= after.items()


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "give either actuals or --roll-back"),
        (("no_such.csv",), "No such file"),
        ((".",), "has no .csv in it"),
        (("train_models.py",), "lacks customer and date and value"),
    ],
)
def test_without_a_table_nothing_is_done(settings, folder, arguments, said):
    before = stored(folder)
    code, _, faults = upkeep(settings, *arguments)
    assert code == 2 and said in faults and "Traceback" not in faults
    assert stored(folder) == before


def test_without_a_store_nothing_is_done_and_none_is_made(session_dir, actuals, tmp_path):
    missing = StoreSettings(model_store=str(tmp_path / "missing"))
    code, _, faults = upkeep(missing, actuals)
    assert code == 2 and "does not exist" in faults and not (tmp_path / "missing").exists()


def test_a_roll_back_serves_the_old_bytes_and_is_not_undone_by_the_next_run(
    settings, folder, actuals, january
):
    assert upkeep(settings, actuals)[0] == 0
    promoted = next(folder.glob(f"*/{PREVIOUS}")).parent.name
    kept = next(name for name in january if not (folder / name / PREVIOUS).exists())
    code, said, faults = upkeep(settings, "--roll-back", kept, promoted)
    assert code == 1 and f"no previous model of {kept}" in faults and promoted in said
    assert (folder / promoted / MODEL).read_bytes() == january[promoted]
    assert upkeep(settings, actuals)[0] == 0
    assert (folder / promoted / MODEL).read_bytes() == january[promoted]


@pytest.fixture
def url(settings, launch_production) -> Iterator[str]:
    """A service on that store, which follows it."""
    launch_production(
        "upkept", model_store=settings.model_store, reload_check_s=1, models_per_replica=FLEET
    )
    yield f"{SERVICE}/upkept/"
    serve.delete("upkept")


def test_the_service_answers_all_the_while_with_the_old_model_or_the_new_one(
    url, settings, folder, actuals, series, january
):
    asked = list(january)[:30]
    histories = {name: series[name][-LAGS:].tolist() for name in asked}

    def bodies() -> dict[str, bytes]:
        """Return what has to be answered from the store as it is, to the byte."""
        return {
            name: right_answer(
                (folder / name / MODEL).read_bytes(),
                name,
                json.dumps({"sequence_data": histories[name]}).encode(),
            )
            for name in asked
        }

    def wait_for(load: SteadyLoad, wanted: dict[str, bytes]) -> None:
        first = len(load.answers)

        def are_wanted() -> bool:
            latest = load.answers[first:][-len(asked) :]
            return len(latest) == len(asked) and all(
                answer.body == wanted[answer.customer_id] for answer in latest
            )

        wait_until(are_wanted, "all answers come from the models in the store", 60)

    before = bodies()
    with SteadyLoad(url, histories, RATE, tries=1) as load:
        wait_for(load, before)
        assert upkeep(settings, actuals)[0] == 0
        after = bodies()
        wait_for(load, after)
        promoted = [name for name in asked if after[name] != before[name]]
        assert promoted and len(promoted) < len(asked)
        assert upkeep(settings, "--roll-back", *promoted)[0] == 0
        wait_for(load, before)
    for answer in load.answers:
        assert answer.status == 200
        assert answer.body in (before[answer.customer_id], after[answer.customer_id])


def test_a_summary_of_nobody_and_of_those_who_are_too_new_says_so(session_dir):
    nan = np.full(56, np.nan)
    new = Outcome(Judgement(np.nan, np.nan, nan), None)
    assert "too new for a trial 1" in summarize({"a": new}, "2025-12-31")
    said = summarize({f"c{number}": f"c{number}: gone" for number in range(12)}, "2025-12-31")
    assert "0 of 12 customers kept up" in said and "and 2 more" in said
