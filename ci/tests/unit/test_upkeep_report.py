"""What an upkeep found, in words and as a table."""

import csv

import numpy as np

from forecast_service.customer_upkeep import Outcome
from forecast_service.judge import REFERENCE_WEEKS, WINDOW_WEEKS, Judgement
from forecast_service.mend import Trial
from forecast_service.upkeep_report import COLUMNS, summarize, write_report

WEEKS = REFERENCE_WEEKS + WINDOW_WEEKS


def outside(seed: int, worse: float = 0) -> np.ndarray:
    """Return the share outside by week, in the last weeks by so much more than before."""
    weeks = np.random.default_rng(seed).uniform(0.1, 0.3, WEEKS)
    weeks[-WINDOW_WEEKS:] += worse
    return weeks


KEPT, REFITTED = Trial(1.0, 2.0, 3.0), Trial(3.0, 2.0, 1.0)
FLEET: dict[str, Outcome | str] = {
    "a": Outcome(Judgement(0.9, 0.8, outside(1)), KEPT, versions=("a1",)),
    "b": Outcome(Judgement(0.8, 0.81, outside(2)), REFITTED, versions=("b2", "b1")),
    "c": Outcome(Judgement(1.9, 0.1, outside(3, worse=0.6)), KEPT, versions=("c1",)),
    "d": Outcome(Judgement(0.7, 0.8, outside(4)), None, "d: is in doubt", ("d1",)),
    "e": Outcome(Judgement(np.nan, np.nan, np.full(WEEKS, np.nan)), None, versions=("e1",)),
    "f": "f: has no model",
} | {
    f"g{number}": Outcome(Judgement(0.9, 0.8, outside(5 + number)), KEPT, versions=("g1",))
    for number in range(20)
}


def test_a_summary_says_what_was_done_who_is_unlike_the_others_and_who_was_left_out():
    assert summarize(FLEET, "2025-12-31").splitlines() == [
        "2025-12-31: 24 of 26 customers kept up",
        "recalibrated 0, refitted 1, kept 22, too new for a trial 1",
        "last 4 weeks: error 0.929 of the seasonal naive forecast's, intervals held 77.1% of the "
        "time",
        "alarm: 1 customer is unlike the rest of the fleet",
        "  c: 10% held, error 1.90",
        "no alarm for 1: less than 56 weeks of errors",
        "not kept up: 2",
        "  d: is in doubt",
        "  f: has no model",
    ]
    known = {name: FLEET[name] for name in FLEET if name not in ("c", "e")}
    said = summarize(known, "2025-12-31")
    assert "alarm: 0 customers are unlike" in said and "no alarm for" not in said


def test_a_report_has_a_row_for_each_customer(tmp_path):
    write_report(tmp_path / "report.csv", FLEET, {"f": "店, Wellington"})
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = {row["customer"]: list(row.values())[1:] for row in csv.DictReader(file)}
    assert list(rows) == sorted(FLEET)
    chances = {name: row.pop(4) for name, row in rows.items()}
    assert rows["a"] == ["", "kept", "0.9000", "0.8000", "a1", "", ""]
    assert rows["b"] == ["", "refitted", "0.8000", "0.8100", "b2", "b1", ""]
    assert rows["d"] == ["", "not kept up", "0.7000", "0.8000", "d1", "", "is in doubt"]
    assert rows["e"] == ["", "untried", "", "", "e1", "", ""]
    assert rows["f"] == ["店, Wellington", "not kept up", "", "", "", "", "has no model"]
    assert chances["c"] == "0.0005" and float(chances["a"]) > 0.1 and chances["e"] == ""
    assert len(COLUMNS) == 9


def test_a_summary_of_nobody_and_of_those_who_are_too_new_says_so():
    nan = np.full(56, np.nan)
    new = Outcome(Judgement(np.nan, np.nan, nan), None)
    assert "too new for a trial 1" in summarize({"a": new}, "2025-12-31")
    said = summarize({f"c{number}": f"c{number}: gone" for number in range(12)}, "2025-12-31")
    assert "0 of 12 customers kept up" in said and "and 2 more" in said


def test_a_summary_calls_customers_as_the_tables_do_and_is_short():
    names = {"e5ba97": "店", "a": "a"}
    guesses = [f"c{number}: lacks 1 day" for number in range(470)]
    said = summarize({"e5ba97": "e5ba97: gone", "a": "a: gone"}, "2025-12-31", names, guesses)
    assert "  e5ba97 (店): gone" in said and "  a: gone" in said
    assert "days that the tables lack: 470" in said and "and 460 more" in said
    assert len(said.splitlines()) < 20
