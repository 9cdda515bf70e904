"""Long tables of what came: as series, and what is wrong is said of the customer it is about."""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecast_service.actuals import Actuals, read_actuals

HEADER = "customer,date,value"
DAYS = np.arange("2025-12-01", "2026-01-01", dtype="datetime64[D]")


def rows(customer_id: str, values: list, first: int = 0) -> list[str]:
    days = DAYS[first:][: len(values)]
    return [f"{customer_id},{day},{value}" for day, value in zip(days, values, strict=True)]


@pytest.fixture
def write(tmp_path):
    """Write a table and return its path."""

    def write(lines: list[str], name: str = "actuals.csv", header: str = HEADER) -> Path:
        path = tmp_path / name
        path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
        return path

    return write


def good(write, *customers: str) -> Actuals:
    """Read customers of 31 days each."""
    return read_actuals([write([line for name in customers for line in rows(name, range(31))])])


def test_rows_become_a_series_for_each_customer(write):
    found = good(write, "a", "b")
    assert found.until == "2025-12-31" and not found.problems
    assert {name: series.tolist() for name, series in found.series.items()} == {
        "a": list(range(31)),
        "b": list(range(31)),
    }


@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_and_columns_does_not_matter(tmp_path_factory, random):
    lines = [line.split(",") for name in "ab" for line in rows(name, range(31))]
    random.shuffle(lines)
    columns = [0, 1, 2]
    random.shuffle(columns)
    table = [HEADER.split(","), *lines]
    path = tmp_path_factory.mktemp("table") / "a.csv"
    path.write_text("\n".join(",".join([*(line[at] for at in columns), "x"]) for line in table))
    found = read_actuals([path])
    assert [series.tolist() for series in found.series.values()] == [list(range(31))] * 2


def test_a_folder_is_all_of_its_tables_and_weeks_may_overlap(write, tmp_path):
    write(rows("a", range(20)), "week_1.csv")
    write(rows("a", range(10, 31), first=10), "week_2.csv")
    (tmp_path / "notes.txt").write_text("not a table")
    assert read_actuals([tmp_path]).series["a"].tolist() == list(range(31))


def test_a_customer_may_begin_late_and_have_any_name(write):
    name = "Café 12/Nord"
    found = read_actuals([write([*rows("a", range(31)), *rows(name, range(5), first=26)])])
    assert found.series[name].tolist() == list(range(5))


def test_a_spreadsheets_mark_is_no_part_of_the_first_columns_name(write):
    path = write(rows("a", range(31)))
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(read_actuals([path]).series["a"]) == 31


BAD = {
    "overlap": (
        [*rows("x", range(31)), "x,2025-12-11,99"],
        "x: two values for 2025-12-11, 10 and 99: tables may overlap where they agree",
    ),
    "gap": (
        rows("x", range(10)) + rows("x", range(20), first=11),
        "1 days are missing, the first is 2025-12-11: fill",
    ),
    "ended": (
        rows("x", range(20)),
        "x: the last value is of 2025-12-20, the tables end on 2025-12-31",
    ),
    "no number": (
        [*rows("x", range(30)), "x,2025-12-31,many"],
        r"line 63: '2025-12-31', 'many' are not",
    ),
    "no date": (
        [*rows("x", range(30)), "x,31.12.2025,7"],
        r"'31.12.2025', .* not a date like 2025-12-31",
    ),
    "nothing": ([*rows("x", range(30)), "x,2025-12-31,"], "'2025-12-31', '' are not"),
}


@pytest.mark.parametrize("lines, said", BAD.values(), ids=BAD)
def test_what_is_wrong_with_a_customer_is_said_of_it_and_the_others_are_read(write, lines, said):
    found = read_actuals([write([*rows("a", range(31)), *lines])])
    assert list(found.series) == ["a"]
    (reason,) = found.problems.values()
    assert reason.startswith("x: ")
    assert re.search(said, reason), reason


TABLES = {
    "no value": (
        "customer,date",
        ["a,2025-12-01"],
        "has the columns customer, date: it lacks value",
    ),
    "empty": ("", [], "has the columns none: it lacks customer and date and value"),
    "only a header": (HEADER, [], "no table has a row"),
    "short row": (HEADER, ["a,2025-12-01"], "line 2: 2 fields, the header has 3"),
    "quote": (HEADER, ['"a,2025-12-01,1'], "line 2"),
}


@pytest.mark.parametrize("header, lines, said", TABLES.values(), ids=TABLES)
def test_a_file_that_is_no_such_table_is_named(write, header, lines, said):
    with pytest.raises(ValueError, match=said):
        read_actuals([write(lines, header=header)])


def test_bytes_that_are_no_text_are_no_table(tmp_path):
    (tmp_path / "a.csv").write_bytes(HEADER.encode() + b"\n\xff\xfe,2025-12-01,1\n")
    with pytest.raises(ValueError, match=r"a\.csv.*UTF-8"):
        read_actuals([tmp_path / "a.csv"])


def test_a_file_or_folder_without_tables_is_named(tmp_path):
    for path in tmp_path / "no.csv", tmp_path:
        with pytest.raises(FileNotFoundError, match=path.name):
            read_actuals([path])


def test_a_row_takes_a_few_bytes(tmp_path):
    """As arrays, and not as Python's own numbers: a table of millions of rows is read."""
    path, days = tmp_path / "a.csv", np.arange("2020-01-01", "2025-01-01", dtype="datetime64[D]")
    with path.open("w") as table:
        table.write(HEADER + "\n")
        for customer in range(50):
            table.writelines(f"c{customer},{day},{customer}.5\n" for day in days)
    tracemalloc.start()
    found = read_actuals([path])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    rows = sum(map(len, found.series.values()))
    assert rows == 50 * len(days) and peak / rows < 40, f"{peak / rows:.0f} bytes a row"
