"""The command that keeps forecasts good: on a store of its own, while a service answers from it.

Where nothing has to be killed, its main() is called here, on this session's Ray. What one customer,
two models, a lease and a table take is tested in ci/tests/unit.
"""

import asyncio
import csv
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import ray
from live_service import CONTENT, FAST, SERVICE, artifact_of, right_answer
from ray import serve
from ray.exceptions import RayTaskError, TaskCancelledError

from forecast_service import fleet_upkeep
from forecast_service.artifact import from_bytes, to_bytes
from forecast_service.customer_upkeep import Outcome
from forecast_service.errors import StoreUnavailableError
from forecast_service.fleet_upkeep import keep_up
from forecast_service.judge import ALARM_P
from forecast_service.lease import FOLDER, Lease, LeaseHeldError
from forecast_service.long_table import as_customer_id
from forecast_service.model import LAGS, fit
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore
from forecast_service.upkeep import main
from forecast_service.versions import NO_SCORES, PREVIOUS
from lab.chapter import NAMED
from lab.serving import wait_until
from steady_load import SteadyLoad

FLEET = 40  # customers: two batches
DAYS = 100  # since their models were made
MADE = "2025-09-22"
TIMEOUT_S = 120
RATE = 40  # requests per second
MODEL = "model.safetensors"
HEADER = "customer,date,value\n"
MENDED = "recalibrated", "refitted"
LOST = "the lease has run out: another process may be at work by now"
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
def january(series) -> dict[str, bytes]:
    """The artifacts that are in the store before anything is kept up."""
    return {
        name: to_bytes(fit(name, counts[:-DAYS], MADE), NO_SCORES)
        for name, counts in series.items()
    }


@pytest.fixture(scope="module")
def actuals(footfall, series, tmp_path_factory) -> Path:
    """A table of what came."""
    path = tmp_path_factory.mktemp("actuals") / "actuals.csv"
    with path.open("w") as table:
        table.write(HEADER)
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


def start(settings: StoreSettings, *arguments: object, **environment: str) -> subprocess.Popen:
    """Start the command, by default on this session's Ray."""
    return subprocess.Popen(
        [sys.executable, "-m", "forecast_service.upkeep", *map(str, arguments)],
        cwd=CONTENT,
        env=os.environ | {"MODEL_STORE": settings.model_store} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def upkeep(settings, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Call the command in this process. Returns its exit code, and what it printed itself."""
    monkeypatch.setenv("MODEL_STORE", settings.model_store)

    def upkeep(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main(list(map(str, arguments)))
        except SystemExit as end:
            code = end.code
        said, faults = capsys.readouterr()
        own = (line for line in said.splitlines(keepends=True) if "(raylet)" not in line)
        return code, "".join(own), faults

    return upkeep


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


def test_on_a_ray_of_its_own_it_mends_what_can_be_better_and_again_changes_nothing(
    settings, folder, actuals, expected, january, upkeep
):
    process = start(settings, actuals, RAY_ADDRESS="local")
    said, faults = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, faults
    assert f"{FLEET} of {FLEET} customers kept up" in said
    after = stored(folder)
    assert after == expected
    promoted = {Path(name).parent.name for name in after if name.endswith(PREVIOUS)}
    assert 0.2 * FLEET < len(promoted) < 0.9 * FLEET
    for name in january:
        old = f"{name}/{PREVIOUS if name in promoted else MODEL}"
        assert after[old] == january[name], "the model that served was not kept"
    assert all(from_bytes(after[f"{name}/{MODEL}"], name) for name in january)

    code, said_again, _ = upkeep(actuals)
    assert code == 0 and stored(folder) == after
    assert "recalibrated 0, refitted 0" in said_again
    found = {text.split("last 4 weeks")[1].strip() for text in (said, said_again)}
    assert len(found) == 1, "it judges otherwise what was served"


def test_killed_half_way_every_customer_has_a_good_model_and_the_next_run_does_the_rest(
    settings, folder, actuals, expected, january, upkeep
):
    process = start(settings, actuals)
    try:
        wait_until(lambda: list(folder.glob(f"{FOLDER}/*/lease.json")), "it holds the lease", 60)
        code, said, faults = upkeep(actuals)
        assert (code, said) == (3, ""), "two are at work at once"
        assert f"process {process.pid} on {socket.gethostname()} is at work" in faults
        wait_until(lambda: list(folder.glob(f"*/{PREVIOUS}")), "a first model is promoted", 60)
    finally:
        process.kill()
        process.communicate()
    left = stored(folder)
    assert left != expected, "it was killed too late: nothing was shown"
    for name in january:
        model = left[f"{name}/{MODEL}"]
        assert model in (january[name], expected[f"{name}/{MODEL}"]), f"{name} has another model"
    assert upkeep(actuals)[0] == 3, "its lease has not run out yet"
    (lease,) = folder.glob(f"{FOLDER}/*/lease.json")
    lease.write_text(json.dumps(json.loads(lease.read_text()) | {"until_s": 0}))  # as time does
    assert upkeep(actuals)[0] == 0
    assert stored(folder) == expected


def test_a_run_that_takes_longer_than_its_lease_renews_it(settings, series, until, monkeypatch):
    slow = settings.model_copy(update={"store_added_delay_s": 0.2})
    few = dict(list(series.items())[:8])  # a batch, of 24 reads
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
    other = threading.Timer(lease_s / 2, try_to_begin)

    class WatchedLease(Lease):
        """Nobody tries any more when it ends: whoever has begun by then began while it lasted."""

        async def release(self) -> None:
            finished.set()
            other.join()
            await super().release()

    monkeypatch.setattr("forecast_service.fleet_upkeep.Lease", WatchedLease)
    other.start()
    outcomes = keep_up(few, until, slow, lease_s=lease_s)
    took_s = time.monotonic() - began_s
    assert all(isinstance(outcome, Outcome) for outcome in outcomes.values())
    assert took_s > 1.5 * lease_s, "it did not take longer than its lease: nothing was shown"
    assert refused and all(refused), "another one began meanwhile"


def test_what_is_wrong_with_some_is_said_and_the_others_are_kept_up(
    settings, folder, footfall, expected, january, series, upkeep, tmp_path
):
    """As Parquet, at midnights in UTC, with columns of other names, in two deliveries."""
    days = pl.Series(footfall[1]).cast(pl.Datetime("us")).dt.replace_time_zone("Pacific/Auckland")
    wrong, ended, damaged, gap, renamed = NAMED[:5]
    (folder / renamed).rename(folder / as_customer_id("市場"))
    artifact = artifact_of(
        from_bytes(january[renamed], renamed), customer_id=as_customer_id("市場")
    )
    (folder / as_customer_id("市場") / MODEL).write_bytes(artifact)
    (folder / "forgotten").mkdir()
    (folder / "forgotten" / MODEL).write_bytes(b"of a customer without actuals")
    (folder / damaged / MODEL).write_bytes(b"damaged")
    table = pl.concat(
        pl.DataFrame(
            {"shop": "市場" if name == renamed else name, "day": days, "n": counts},
            schema_overrides={"n": pl.Float64},
        )
        for name, counts in series.items()
    ).with_columns(pl.col("day").dt.convert_time_zone("UTC"))
    last, before = days.dt.convert_time_zone("UTC")[-1], days.dt.convert_time_zone("UTC")[-9]
    lost = (pl.col("shop") == ended) & (pl.col("day") == last)
    lost |= (pl.col("shop") == gap) & (pl.col("day") == before)
    table.filter(~lost).write_parquet(tmp_path / "until_december.parquet")
    late = pl.DataFrame({"shop": ["customer_000", wrong], "day": last, "n": [7.0, 99999.0]})
    late.write_parquet(tmp_path / "late.parquet")
    arguments = tmp_path, "--time-zone", "Pacific/Auckland", "--columns", "shop,day,n"
    code, said, _ = upkeep(*arguments)
    assert code == 1 and said.startswith(f"2025-12-31: {FLEET - 3} of {FLEET + 2} customers kept")
    for name, reason in (
        ("customer_000", "there is no model to keep up"),
        ("forgotten", "there are no actuals for its model"),
        (wrong, "has several rows for 1 day, the first is 2025-12-31, with"),
        (ended, "ended on 2025-12-30, 1 day before the table does"),
        (damaged, "the model of customer_789 is not a safetensors artifact"),
    ):
        (line,) = (line for line in said.splitlines() if line.startswith(f"  {name}: "))
        assert reason in line
    said_of_gap = said.partition("days that the tables lack: 1\n")[2].splitlines()[0]
    assert (
        said_of_gap
        == f"  {gap}: lacks 1 day, the first is 2025-12-23: filled from the same "
        + ("weekday before and after")
    )
    after = stored(folder)
    others = {
        name: data for name, data in expected.items() if Path(name).parent.name not in NAMED[:5]
    }
    assert others.items() <= after.items()
    assert after[f"{as_customer_id('市場')}/{MODEL}"] != artifact, "nothing was to be mended"
    for name in wrong, ended:
        assert after[f"{name}/{MODEL}"] == january[name]


def test_the_report_says_who_was_promoted_and_what_serves(
    settings, folder, actuals, january, upkeep, tmp_path
):
    report = tmp_path / "report.csv"
    code, said, _ = upkeep(actuals, "--report", report)
    with report.open(newline="") as file:
        rows = {row["customer"]: row for row in csv.DictReader(file)}
    assert code == 0 and rows.keys() == january.keys()
    promoted = {name for name, row in rows.items() if row["outcome"] in MENDED}
    assert promoted == {path.parent.name for path in folder.glob(f"*/{PREVIOUS}")} and promoted
    for name, row in rows.items():
        there = [folder / name / MODEL, folder / name / PREVIOUS]
        versions = [from_bytes(path.read_bytes(), name).version for path in there if path.exists()]
        assert [row["serving"], row["previous"]] == [*versions, ""][:2]
        assert float(row["error"]) > 0 and 0 <= float(row["coverage"]) <= 1 and not row["reason"]
    chances = [float(row["chance"]) for row in rows.values()]
    assert f"alarm: {sum(chance <= ALARM_P for chance in chances)} " in said
    before = stored(folder)
    code, _, faults = upkeep(actuals, "--report", tmp_path / "missing" / "report.csv")
    assert code == 2 and "missing" in faults and stored(folder) == before


def test_one_row_a_day_ahead_is_said_where_it_stops_everybody(
    settings, folder, actuals, until, january, upkeep, tmp_path
):
    ahead = tmp_path / "ahead.csv"
    ahead.write_text(f"{HEADER}{NAMED[0]},{np.datetime64(until) + 1},300\n")
    code, said, _ = upkeep(actuals, ahead)
    assert code == 1 and f"1 of {FLEET} customers kept up" in said
    assert said.splitlines()[-1] == (
        f"most of the tables end on {until}; rows after it are of few customers: take them out"
    )
    ahead.unlink()
    assert "most of the tables end" not in upkeep(actuals)[1]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "give either tables or --roll-back"),
        (("a.csv", "--roll-back", "b"), "give either tables or --roll-back"),
        (("no_such.csv",), "there is no table no_such.csv"),
        ((CONTENT / "lab",), "has no .csv and no .parquet in it"),
        ((CONTENT / "train_models.py",), "a table is a .csv, a .parquet, or a folder"),
    ],
)
def test_without_a_table_nothing_is_done(settings, folder, upkeep, arguments, said):
    code, _, faults = upkeep(*arguments)
    assert code == 2 and said in faults and not (folder / FOLDER).exists()


def test_without_a_store_nothing_is_done_and_none_is_made(
    session_dir, actuals, tmp_path, upkeep, monkeypatch
):
    monkeypatch.setenv("MODEL_STORE", str(tmp_path / "missing"))
    code, _, faults = upkeep(actuals)
    assert code == 2 and "does not exist" in faults and not (tmp_path / "missing").exists()


def test_without_polars_it_says_what_to_install(settings, upkeep, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)  # as Python marks what cannot be imported
    monkeypatch.delitem(sys.modules, "forecast_service.long_table")
    code, said, faults = upkeep("actuals.csv")
    assert code == 2 and not said
    assert faults == (
        "reading tables takes polars: pip install -r chapters/requirements_09_keep_good.txt\n"
    )
    code, _, faults = upkeep("--roll-back", NAMED[0])
    assert code == 1 and f"no previous model of {NAMED[0]}" in faults, "a roll-back takes no tables"


def test_it_rolls_back_each_of_whom_it_is_asked_for_and_names_the_others(
    settings, folder, expected, january, upkeep
):
    promoted = next(Path(name).parent.name for name in expected if name.endswith(PREVIOUS))
    kept = next(name for name in january if f"{name}/{PREVIOUS}" not in expected)
    for name in f"{promoted}/{MODEL}", f"{promoted}/{PREVIOUS}":
        (folder / name).write_bytes(expected[name])
    code, said, faults = upkeep("--roll-back", kept, promoted)
    assert code == 1 and f"no previous model of {kept}" in faults
    assert said.startswith(f"{promoted}: ") and f"of the days until {MADE}" in said
    assert (folder / promoted / MODEL).read_bytes() == january[promoted]


def test_while_another_is_at_work_nothing_is_rolled_back(settings, folder, expected, upkeep):
    promoted = next(Path(name).parent.name for name in expected if name.endswith(PREVIOUS))
    for name in f"{promoted}/{MODEL}", f"{promoted}/{PREVIOUS}":
        (folder / name).write_bytes(expected[name])
    before = stored(folder)
    with Lease(settings).held():
        code, said, faults = upkeep("--roll-back", promoted)
    assert (code, said) == (3, "") and "nothing done: process " in faults
    assert stored(folder) == before
    assert upkeep("--roll-back", promoted)[0] == 0


def test_a_run_whose_lease_is_lost_stops_half_way(settings, actuals, upkeep, monkeypatch):
    """Another one finds it over, as after a long sleep of this machine."""
    monkeypatch.setenv("STORE_ADDED_DELAY_S", "0.2")
    renew, running = Lease.renew, []

    async def renew_too_late(lease: Lease) -> None:
        lease._until_s = 0
        await renew(lease)

    class WatchedRay:
        """Ray, and what it is asked to cancel."""

        def __getattr__(self, name: str) -> object:
            return getattr(ray, name)

        def cancel(self, task: ray.ObjectRef) -> None:
            running.append(task)
            ray.cancel(task)

    monkeypatch.setattr(Lease, "renew", renew_too_late)
    monkeypatch.setattr(fleet_upkeep, "ray", WatchedRay())
    monkeypatch.setattr(fleet_upkeep, "TURNS", 1000)
    code, said, faults = upkeep(actuals)
    assert (code, said) == (3, "")
    assert faults == "stopped half-way: " + LOST + "\n"
    ended, still = ray.wait(running, num_returns=len(running), timeout=0)
    assert ended and not still, "a task works on without a lease"
    for task in ended:
        with pytest.raises((TaskCancelledError, RayTaskError)):
            ray.get(task)
    monkeypatch.undo()
    with Lease(settings).held():
        pass  # it was given back


def test_a_worker_that_dies_is_said_in_a_line_and_ends_the_run(
    settings, actuals, upkeep, monkeypatch
):
    @ray.remote(max_retries=0)
    def die(*_: object) -> None:
        os._exit(1)

    monkeypatch.setattr(fleet_upkeep, "_keep_up_batch", die)
    code, said, faults = upkeep(actuals)
    assert code == 2 and "kept up" not in said and "Traceback" not in faults
    (line,) = (line for line in faults.splitlines() if line.startswith("stopped half-way: "))
    assert "The worker died unexpectedly" in line
    with Lease(settings).held():
        pass  # it was given back


def test_a_store_that_fails_while_a_run_renews_its_lease_does_not_end_it(monkeypatch, caplog):
    """Two turns of a stand-in for Ray; a third would be too many."""
    turns = [(["a"], ["b"]), (["a"], ["b"]), (["a", "b"], [])]
    stand_in = SimpleNamespace(
        wait=lambda pending, **_: turns.pop(0),
        get=lambda batches: [{name: name} for name in batches],
    )
    tries = []

    class Unlucky:
        async def renew(self) -> None:
            tries.append(len(tries))
            if len(tries) == 1:
                raise StoreUnavailableError("no answer")

    monkeypatch.setattr(fleet_upkeep, "ray", stand_in)
    found = fleet_upkeep._wait_for(["a", "b"], Unlucky(), 1)
    assert found == {"a": "a", "b": "b"} and tries == [0, 1]
    assert "the lease was not renewed: no answer" in caplog.text


@pytest.fixture
def url(settings, launch_production) -> Iterator[str]:
    """A service on that store, which follows it."""
    launch_production(
        "upkept", model_store=settings.model_store, reload_check_s=1, models_per_replica=FLEET
    )
    yield f"{SERVICE}/upkept/"
    serve.delete("upkept")


def test_the_service_answers_all_the_while_with_the_old_model_or_the_new_one(
    url, settings, folder, actuals, series, january, upkeep
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
        assert upkeep(actuals)[0] == 0
        after = bodies()
        wait_for(load, after)
        promoted = [name for name in asked if after[name] != before[name]]
        assert promoted and len(promoted) < len(asked)
        assert upkeep("--roll-back", *promoted)[0] == 0
        wait_for(load, before)
    for answer in load.answers:
        assert answer.status == 200
        assert answer.body in (before[answer.customer_id], after[answer.customer_id])
