"""A long table becomes what training takes, and each problem in it names its customer."""

import itertools
import json
import os
import subprocess
import sys
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecast_service.customer_ids import check_customer_id
from forecast_service.long_table import Columns, as_customer_id, read_long_table
from fuzzing import fuzz
from lab.traffic import FOOTFALL

CONTENT = FOOTFALL.parents[1]
FIRST = date(2024, 1, 1)
DAYS = 60


def rows(name: str = "shop", days: range = range(DAYS), value=lambda day: 10 + day) -> list[tuple]:
    return [(name, FIRST + timedelta(day), float(value(day))) for day in days]


@pytest.fixture
def read(tmp_path):
    """Write rows as a table, read it, and check that Parquet and CSV say the same."""

    def read(table: list[tuple] | pl.DataFrame, columns=Columns(), **options):  # noqa: B008
        frame = table
        if not isinstance(table, pl.DataFrame):
            frame = pl.DataFrame(table, schema=list(columns), orient="row", strict=False)
        tables = []
        for suffix in "parquet", "csv":
            path = tmp_path / f"table.{suffix}"
            getattr(frame, f"write_{suffix}")(path)
            tables.append(read_long_table(path, columns, **options))
        one, other = tables
        np.testing.assert_array_equal(one.counts, other.counts)
        assert (one.names, one.customer_ids) == (other.names, other.customer_ids)
        assert [p.fault for p in one.problems] == [p.fault for p in other.problems]
        return one

    return read


def problem(table, name: str = "shop"):
    (found,) = (problem for problem in table.problems if problem.customer == name)
    return found


def test_a_whole_table_becomes_the_trainings_array_and_has_no_problem(footfall, read):
    ids, dates, counts = footfall
    frame = pl.DataFrame(
        {
            "customer": np.repeat(ids[:20], len(dates)),
            "date": np.tile(dates, 20),
            "value": counts[:20].ravel().astype(np.int64),
        }
    )
    table = read(frame)
    assert not table.problems
    customer_ids, days, values = table.complete()
    assert customer_ids == ids[:20] and (days == dates).all() and (values == counts[:20]).all()


@fuzz
@given(st.randoms(use_true_random=False), st.integers(1, 7))
def test_the_order_of_rows_and_the_size_of_batches_change_nothing(tmp_path_factory, random, batch):
    path = tmp_path_factory.mktemp("table") / "table.csv"
    whole = [row for name in "abc" for row in rows(name, range(10))]
    shuffled = random.sample(whole, len(whole))
    pl.DataFrame(shuffled, schema=list(Columns()), orient="row").write_csv(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forecast_service.long_table.BATCH_ROWS", batch)
        table = read_long_table(path)
    assert table.customer_ids == list("abc")
    assert (table.counts == 10 + np.arange(10)).all()
    back = {
        name
        for name in "abc"
        if [row[1] for row in shuffled if row[0] == name] != [row[1] for row in rows(name)[:10]]
    }
    assert {found.customer for found in table.problems} == back
    assert all("order" in found.fault and not found.left_out for found in table.problems)


def test_a_short_gap_is_filled_from_the_same_weekday_before_and_after(read):
    table = read(
        [row for day, row in enumerate(rows(value=lambda day: day)) if day not in (20, 21)]
    )
    assert table.counts[0].tolist() == list(range(DAYS))
    assert "lacks 2 days, the first is 2024-01-21" in problem(table).fault


def test_a_value_that_is_not_there_is_a_gap(read):
    table = read([(*row[:2], None if day == 30 else row[2]) for day, row in enumerate(rows())])
    assert "lacks 1 day, the first is 2024-01-31" in problem(table).fault
    assert table.counts[0, 30] == 40


def closed_on(weekday: int, name: str = "shop", days: range = range(DAYS)) -> list[tuple]:
    """Rows of a customer who has none on a day of the week."""
    return rows(name, [day for day in days if day % 7 != weekday])


def test_a_customer_who_lacks_a_whole_weekday_is_left_out_unless_told_what_that_means(read):
    table = read(closed_on(6) + rows("whole"))
    found = problem(table)
    assert found.left_out and found.fault == "has no rows on 1 weekday at all"
    assert found.advice == "closed, or nothing sold: say --missing zero"
    assert table.customer_ids == ["whole"]
    weekdays_alone = [row for row in closed_on(6) if row[1].weekday() != 5]
    assert problem(read(weekdays_alone)).fault == "has no rows on 2 weekdays at all"


def test_less_than_two_weeks_are_too_few_to_say_that_a_weekday_is_always_missing(read):
    table = read(closed_on(3, days=range(13)))
    assert not table.left_out and problem(table).guessed
    assert list(read(closed_on(3, days=range(14))).left_out) == ["shop"]


def test_days_that_are_missing_are_days_without_sales_if_told_so_however_many_there_are(read):
    gap = [row for row in rows("gap") if not FIRST + timedelta(9) < row[1] < FIRST + timedelta(30)]
    late = closed_on(6, "late", range(20, DAYS - 2))
    table = read(gap + late + rows("whole"), missing="zero")
    series = dict(zip(table.names, table.counts, strict=True))
    assert not table.left_out
    assert np.flatnonzero(series["gap"] == 0).tolist() == list(range(10, 30))
    assert series["gap"][30:].tolist() == [10.0 + day for day in range(30, DAYS)]
    assert np.isnan(series["late"][:21]).all() and (series["late"][27::7] == 0).all()
    assert (series["late"][-2:] == series["late"][-9:-7]).all()  # may be on their way
    found = {(p.customer, p.fault): p for p in table.problems}
    told = found["gap", "lacks 20 days, the first is 2024-01-11"]
    assert told.advice == "taken for days on which nothing was sold" and not told.guessed


def test_one_date_to_come_ends_nobody_else_and_a_day_ahead_is_the_east(read):
    today = date.today()
    good = [("whole", today - timedelta(ago), 5.0) for ago in range(20, -2, -1)]
    table = read([*good, *rows(), ("shop", today + timedelta(2), 5.0)], most_days_late=0)
    assert table.names == ["whole"] and table.dates[-1] == np.datetime64(today + timedelta(1))
    assert str(today + timedelta(2)) in table.left_out["shop"].fault


def test_a_value_that_is_no_number_in_a_column_of_numbers_is_a_gap(tmp_path):
    values = [float("nan") if day == 30 else 10.0 + day for day in range(DAYS)]
    frame = pl.DataFrame(rows(), schema=list(Columns()), orient="row")
    for kind in pl.Float64, pl.Float32:
        frame.with_columns(value=pl.Series(values, dtype=kind)).write_parquet(
            tmp_path / "t.parquet"
        )
        table = read_long_table(tmp_path / "t.parquet")
        assert "lacks 1 day, the first is 2024-01-31" in problem(table).fault
        assert table.counts[0, 30] == 40


@pytest.mark.parametrize("suffix", ["CSV", "Csv", "PARQUET"])
def test_a_suffix_may_be_in_upper_case(tmp_path, suffix):
    frame = pl.DataFrame(rows(), schema=list(Columns()), orient="row")
    getattr(frame, f"write_{suffix.lower()}")(tmp_path / f"t.{suffix}")
    for place in tmp_path, tmp_path / f"t.{suffix}":
        assert read_long_table(place).names == ["shop"]


def test_days_before_a_long_gap_are_dropped(read):
    table = read(rows(days=range(10)) + rows(days=range(30, DAYS)) + rows("whole"))
    assert "lacks 20 days from 2024-01-11" in problem(table).fault
    assert np.isnan(table.counts[0, :30]).all()
    assert table.series("shop").tolist() == [10.0 + day for day in range(30, DAYS)]
    assert table.complete()[0] == ["whole"]


def test_a_customer_that_begins_late_is_taken_and_named(read):
    table = read(rows(days=range(40, DAYS)) + rows("whole"))
    assert problem(table).fault == "begins on 2024-02-10, with 20 of 60 days"
    assert len(table.series("shop")) == 20 and table.complete()[0] == ["whole"]


def test_a_customer_that_ended_is_left_out_and_named(read):
    table = read(rows(days=range(40)) + rows("whole"))
    assert table.customer_ids == ["whole"]
    assert problem(table).left_out and "ended on 2024-02-09, 20 days before" in problem(table).fault


@pytest.mark.parametrize(("duplicates", "value"), [("sum", 30), ("mean", 15)])
def test_rows_of_one_day_are_summed_or_averaged_if_told_so(read, duplicates, value):
    table = read([*rows(), ("shop", FIRST, 20.0)], duplicates=duplicates)
    assert table.counts[0, 0] == value
    assert f"their {duplicates} is taken" in [p.advice for p in table.problems]


def test_rows_of_one_day_that_differ_leave_their_customer_out_unless_told_what_they_mean(read):
    table = read([*rows("whole"), *rows()[:30], ("shop", FIRST, 10.0), ("shop", FIRST, 20.0)])
    found = {p.fault: p for p in table.problems}
    assert found["has several rows for 1 day, the first is 2024-01-01, with 10 and 20"].left_out
    assert table.customer_ids == ["whole"] and list(table.left_out) == ["shop"]


def test_rows_of_one_day_that_say_the_same_are_one(read):
    table = read([*rows(), *rows(days=range(DAYS - 1, DAYS))])
    assert not problem(table).left_out and table.counts[0, -1] == 69


@pytest.mark.parametrize("zone", ["Pacific/Auckland", "Europe/London", "America/New_York", "UTC"])
def test_local_midnights_in_utc_are_days_at_the_customers_time_zone(tmp_path, zone):
    """Over a whole year, and so over both changes of the clocks."""
    midnights = [datetime(2024, 1, 1, tzinfo=ZoneInfo(zone)) + timedelta(day) for day in range(366)]
    frame = pl.DataFrame(
        {"customer": "shop", "date": midnights, "value": range(366)},
        schema_overrides={"date": pl.Datetime("us", zone)},
    ).with_columns(pl.col("date").dt.convert_time_zone("UTC"))
    texts = [moment.astimezone(ZoneInfo("UTC")).isoformat() for moment in midnights]
    zulus = [text.replace("+00:00", "Z").replace("T", " ") for text in texts]
    offsets = [moment.isoformat() for moment in midnights]
    for number, dates in enumerate((frame["date"], texts, zulus, offsets)):
        path = tmp_path / f"{number}.parquet"
        frame.with_columns(date=pl.Series(dates)).write_parquet(path)
        table = read_long_table(path, time_zone=zone)
        assert not table.problems and table.counts[0].tolist() == list(range(366))
        assert str(table.dates[0]) == "2024-01-01"


def test_the_utc_date_of_londons_midnights_has_a_day_twice_in_march_and_a_gap_in_october():
    zone = ZoneInfo("Europe/London")
    midnights = [datetime(2024, 1, 1, tzinfo=zone) + timedelta(day) for day in range(366)]
    days = [moment.astimezone(ZoneInfo("UTC")).date() for moment in midnights]
    steps = {day: (after - day).days for day, after in itertools.pairwise(days)}
    assert {day: step for day, step in steps.items() if step != 1} == {date(2024, 10, 26): 2}
    assert [day for day in days if days.count(day) > 1] == [date(2024, 3, 31)] * 2


def test_hours_add_up_to_local_days_also_on_days_of_23_and_25_hours(read):
    first = datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/London")).astimezone(ZoneInfo("UTC"))
    hours = [first + timedelta(hours=hour) for hour in range(366 * 24)]
    frame = pl.DataFrame({"customer": "shop", "date": hours, "value": 1.0})
    table = read(frame, time_zone="Europe/London", duplicates="sum")
    odd = {str(day): int(n) for day, n in zip(table.dates, table.counts[0], strict=True) if n != 24}
    assert odd == {"2024-03-31": 23, "2024-10-27": 25}


def test_a_timestamp_with_an_offset_wants_a_time_zone(tmp_path, read):
    frame = pl.DataFrame({"customer": "shop", "date": [datetime(2024, 1, 1)], "value": 1.0})
    frame = frame.with_columns(pl.col("date").dt.replace_time_zone("UTC"))
    path = tmp_path / "t.parquet"
    frame.write_parquet(path)
    with pytest.raises(ValueError, match=r"time zone UTC.*time_zone, such as Pacific/Auckland"):
        read_long_table(path)
    text = frame.with_columns(date=pl.lit("2024-01-01T00:00:00Z"))
    with pytest.raises(ValueError, match=r"shop.*offset from UTC, as '2024-01-01T00:00:00Z'.*zone"):
        read(text)
    with pytest.raises(ValueError, match="there is no time zone 'NZ/Auckland'"):
        read(text, time_zone="NZ/Auckland")


@pytest.mark.parametrize(
    ("row", "fault", "advice"),
    [
        (
            ("shop", "31/12/2024", "1"),
            "1 of 1 rows whose date cannot be read, as '31/12/2024'",
            "2023-12-31",
        ),
        (("shop", "2024-02-30", "1"), "whose date cannot be read, as '2024-02-30'", "2023-12-31"),
        (("shop", "", "1"), "1 of 1 rows without a date", "2023-12-31"),
        (("shop", "2034-03-04", "1"), "has rows of days to come, as '2034-03-04'", "correct"),
        (("shop", "2024-01-01", "1,5"), "not a number, as '1,5'", "1234.5"),
        (("shop", "2024-01-01", "n/a"), "not a number, as 'n/a'", "1234.5"),
        (("shop", "2024-01-01", "-1"), "not in 0 to 1e+12, as -1", "FLOOR"),
        (("shop", "2024-01-01", "1e13"), "not in 0 to", "FLOOR"),
        (("shop", "2024-01-01", "inf"), "not in 0 to", "FLOOR"),
        (("shop", "2024-01-01", "nan"), "not in 0 to", "FLOOR"),
        (("", "2024-01-01", "1"), "1 row without a customer", "whose"),
        ((None, "2024-01-01", "1"), "1 row without a customer", "whose"),
    ],
    ids=lambda value: str(value[:3]) if isinstance(value, tuple) else "",
)
def test_a_row_that_cannot_be_used_names_its_customer_and_leaves_it_out(read, row, fault, advice):
    good = [(name, str(day), str(value)) for name, day, value in rows("whole")]
    table = read([*good, row])
    (found,) = table.problems
    assert fault in found.fault and advice in found.advice and found.left_out
    assert found.customer == (row[0] or "(no name)") and table.customer_ids == ["whole"]


names = st.text(min_size=1, max_size=80).map(str.strip).filter(bool)


@fuzz
@given(names)
def test_a_name_of_any_script_becomes_a_customer_id_that_leads_back_to_it(name):
    customer_id = as_customer_id(name.encode(errors="replace").decode())
    assert check_customer_id(customer_id) == customer_id
    if len(name.encode(errors="replace")) <= 32 and customer_id != name:
        assert bytes.fromhex(customer_id).decode() == name.encode(errors="replace").decode()


def test_names_that_cannot_be_ids_are_mapped_and_named(read):
    table = read([row for name in ("Café Ōtāhuhu", "店", "a/b", "007") for row in rows(name)])
    assert table.names == sorted(["Café Ōtāhuhu", "店", "a/b", "007"])
    assert table.customer_ids == [as_customer_id(name) for name in table.names]
    assert {found.customer for found in table.problems} == {"Café Ōtāhuhu", "店", "a/b"}
    assert table.customer_ids[0] == "007"


def test_names_that_differ_in_case_alone_get_ids_that_differ_on_every_file_system(read):
    table = read(rows("Shop") + rows("shop"))
    assert len({customer_id.lower() for customer_id in table.customer_ids}) == 2
    assert all("upper and lower case" in found.fault for found in table.problems)


def test_ways_of_writing_one_name_are_one_customer(read):
    composed, decomposed = "Caf\u00e9", "Cafe\u0301"
    table = read(rows(composed, range(30)) + rows(f" {decomposed} ", range(30, DAYS)))
    assert table.names == [composed] and table.counts[0, -1] == 69
    assert any("2 ways" in found.fault for found in table.problems)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        (
            "t.csv",
            "shop,day,n\na,2024-01-01,1\n",
            "'customer': it has 'shop', 'day', 'n'",
        ),
        ("t.csv", "customer;date;value\na;2024-01-01;1\n", "it has 'customer;date;value'"),
        ("t.csv", "customer;date;value\na;2024-01-01;1\n", "[)], or say --separator$"),
        ("t.csv", "customer\tdate\tvalue\na\t2024-01-01\t1\n", "[)], or say --separator$"),
        ("t.csv", "shop,day,n\na,2024-01-01,1\n", r"\(in Python: Columns\)$"),
        ("t.csv", "customer,date,value\n", "has no rows"),
        ("t.csv", "", "cannot be read"),
        ("t.parquet", "no parquet", "cannot be read"),
        ("t.xlsx", "", "a table is a .csv, a .parquet"),
        ("t.csv", "customer,date,value\na,0203-01-01,1\nb,2024-01-01,1\n", r"0203-01-01 \(a\) to"),
    ],
)
def test_a_table_that_cannot_be_used_says_what_is_wanted(tmp_path, name, text, wanted):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=wanted):
        read_long_table(path)


def test_a_customer_without_a_value_is_left_out_and_named(read):
    table = read([*rows("whole"), ("shop", FIRST, None)])
    assert problem(table).left_out and problem(table).fault == "has no values"
    assert table.customer_ids == ["whole"]


def test_a_table_that_is_not_there_and_a_folder_without_tables_are_named(tmp_path):
    (tmp_path / "notes.txt").write_text("not a table")
    for path, said in (tmp_path / "t.csv", "no table .*t.csv"), (tmp_path, "has no .csv and no"):
        with pytest.raises(FileNotFoundError, match=said):
            read_long_table(path)


class TestFiles:
    """Several files are one table."""

    @pytest.fixture
    def write(self, tmp_path):
        def write(table: list[tuple], name: str) -> Path:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            frame = pl.DataFrame(table, schema=list(Columns()), orient="row", strict=False)
            getattr(frame, f"write_{path.suffix[1:]}")(path)
            return path

        return write

    def test_a_folder_is_all_of_its_tables_and_weeks_may_overlap(self, write, tmp_path):
        write(rows(days=range(20)), "week_1.csv")
        write(rows(days=range(10, 40)), "later/week_2.parquet")  # with dates, and not text
        write(rows(days=range(40, DAYS)) + rows("other"), "week_3.csv")
        (tmp_path / "notes.txt").write_text("not a table")
        table = read_long_table(tmp_path)
        assert table.names == ["other", "shop"] and not table.left_out
        assert table.counts[1].tolist() == [10 + day for day in range(DAYS)]
        assert not any(found.guessed for found in table.problems)

    def test_files_are_read_in_any_order_and_each_once(self, write, tmp_path):
        paths = [write(rows(days=range(at, at + 20)), f"{at}.csv") for at in (0, 20, 40)]
        for tables in (paths, reversed(paths), [tmp_path, *paths], str(tmp_path)):
            table = read_long_table(tables, duplicates="sum")
            assert table.counts[0].tolist() == [10 + day for day in range(DAYS)]

    def test_where_they_differ_the_customer_is_left_out_with_the_day_and_both(self, write):
        one = write(rows() + rows("whole"), "one.csv")
        other = write([("shop", FIRST + timedelta(3), 99.0)], "other.parquet")
        table = read_long_table([one, other])
        assert table.names == ["whole"]
        assert "the first is 2024-01-04, with 13 and 99" in table.left_out["shop"].fault

    @pytest.mark.parametrize(
        ("row", "said"),
        [
            (("shop", "2024-01-01", "many"), "as 'many' in late.csv"),
            (("shop", "31.12.2024", "1"), "as '31.12.2024' in late.csv"),
            (("shop", "2024-01-01T00:00Z", "1"), "as '2024-01-01T00:00Z' in late.csv"),
            (("shop", "2024-01-01", "-7"), "as -7 in late.csv"),
            (("shop", "2034-03-04", "7"), "as '2034-03-04' in late.csv"),
            (("shop", "", "7"), "rows without a date in late.csv"),
        ],
    )
    def test_a_fault_says_in_which_file_it_is(self, write, row, said):
        table = read_long_table(
            [write(rows() + rows("whole"), "one.csv"), write([row], "late.csv")]
        )
        assert table.left_out["shop"].fault.endswith(said)
        assert "one.csv" not in str(table.problems)

    def test_one_that_cannot_be_read_is_named_and_the_others_are_not(self, write, tmp_path):
        write(rows(), "good.csv")
        bad = tmp_path / "bad.csv"
        for data, said in (
            (b"", "cannot be read"),
            (b"customer,date\na,2024-01-01\n", "has no column 'value'"),
            (b"customer,date,value\na,2024-01-01,1,2\n", "cannot be read: found more fields"),
            (b'customer,date,value\n"a,2024-01-01,1\n', "cannot be read"),
            (b"customer,date,value\n\xff\xfe,2024-01-01,1\n", "cannot be read: invalid utf-8"),
        ):
            bad.write_bytes(data)
            with pytest.raises(ValueError, match=rf"bad\.csv {said}") as raised:
                read_long_table(tmp_path)
            assert "good.csv" not in str(raised.value)


def test_empty_lines_and_a_spreadsheets_mark_are_nothing(tmp_path):
    path = tmp_path / "t.csv"
    lines = "\n".join(f"shop,{day},{value}" for _, day, value in rows())
    path.write_text(f"customer,date,value\n\n{lines}\n\n,,\n", encoding="utf-8-sig")
    table = read_long_table(path)
    assert not table.problems and len(table.series("shop")) == DAYS


def test_a_row_that_breaks_off_is_a_gap(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "customer,date,value\n" + "\n".join(f"a,2024-01-{d:02},5" for d in range(1, 15))
    )
    path.write_text(path.read_text().removesuffix(",5") + "\n")
    assert read_long_table(path).series("a").tolist() == [5] * 14
    assert list(read_long_table(path, most_days_late=0).left_out) == ["a"]


@pytest.mark.parametrize("most_days_late", [0, 2, 7])
def test_days_missing_at_the_end_are_filled_up_to_as_many_as_are_allowed(tmp_path, most_days_late):
    frame = pl.DataFrame(
        rows("whole") + rows(days=range(DAYS - 3)), schema=list(Columns()), orient="row"
    )
    frame.write_parquet(tmp_path / "t.parquet")
    table = read_long_table(tmp_path / "t.parquet", most_days_late=most_days_late)
    if most_days_late < 3:
        assert "ended on 2024-02-26, 3 days before the table" in table.left_out["shop"].fault
    else:
        assert table.series("shop")[-3:].tolist() == table.series("shop")[-10:-7].tolist()


def test_what_was_guessed_can_be_told_from_what_is_only_said(read):
    gap = [row for day, row in enumerate(rows("gap")) if day != 20]
    hole = rows("hole", range(10)) + rows("hole", range(30, DAYS))
    written = rows("Caf\u00e9", range(30)) + rows("Cafe\u0301", range(30, DAYS))
    others = rows("late", range(40, DAYS)) + rows("back")[::-1] + rows("twice") + rows("twice")
    table = read(gap + hole + written + others + rows("a b"))
    named = {found.customer for found in table.problems}
    assert named == {"gap", "hole", "Caf\u00e9", "late", "back", "twice", "a b"}
    assert {p.customer for p in table.problems if p.guessed} == {"gap", "hole", "Caf\u00e9"}
    assert not table.left_out


def test_who_is_left_out_has_the_id_that_its_model_has(read):
    table = read([*rows("whole"), ("市場", FIRST, None)])
    assert {name: problem.customer for name, problem in table.left_out.items()} == {
        as_customer_id("市場"): "市場"
    }


def test_the_first_reason_says_why_a_customer_is_left_out_and_its_id_is_no_problem(read):
    rows_of_one = [
        ("a b", "2024-01-01", "x"),
        ("a b", "31.12.2024", "1"),
        ("a b", "2024-01-02", ""),
    ]
    good = [(name, str(day), str(value)) for name, day, value in rows("whole")]
    table = read(good + rows_of_one)
    assert "whose date cannot be read" in table.left_out[as_customer_id("a b")].fault
    faults = [found.fault for found in table.problems]
    assert len(faults) == 2 and "not a number" in faults[1], faults


def test_an_id_does_not_depend_on_whether_another_customers_rows_are_good_today(read):
    good, bad = read(rows("Shop") + rows("shop")), read([*rows("Shop"), ("shop", FIRST, None)])
    assert bad.names == ["Shop"] and bad.customer_ids == good.customer_ids[:1]


def test_columns_of_the_wrong_type_are_refused(tmp_path):
    for column, value in ("date", 20240101), ("value", [1]):
        frame = pl.DataFrame({"customer": ["a"], "date": [FIRST], "value": [1.0]})
        frame.with_columns(pl.Series(column, [value])).write_parquet(tmp_path / "t.parquet")
        with pytest.raises(ValueError, match=f"{column} is .*: it has to be"):
            read_long_table(tmp_path / "t.parquet")


PEAK = """
import json, pathlib, sys
from forecast_service.long_table import read_long_table
table = read_long_table(sys.argv[1], duplicates="sum")
# of this program alone: the resource module's figure begins with that of who started it
peak = pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
print(json.dumps([int(peak) * 1024, table.counts.sum()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_rows_that_are_each_a_day_of_their_own_take_less_than_250_mb(tmp_path):
    """As chapters/09_keep_good.ipynb says, beside Python itself and what it imports."""
    days, customers = 1000, 1000
    frame = pl.DataFrame(
        {
            "customer": np.repeat([f"customer_{number}" for number in range(customers)], days),
            "date": np.tile(np.datetime64("2023-01-01") + np.arange(days), customers),
            "value": np.ones(days * customers),
        }
    )
    frame.write_csv(tmp_path / "million.csv")
    frame.head(1).write_csv(tmp_path / "one.csv")
    peaks = {}
    for name in "one", "million":
        command = [sys.executable, "-c", PEAK, str(tmp_path / f"{name}.csv")]
        done = subprocess.run(
            command, cwd=CONTENT, capture_output=True, text=True, timeout=120, check=True
        )
        peaks[name], total = json.loads(done.stdout)
    assert total == days * customers
    assert 28e6 < peaks["million"] - peaks["one"] < 250e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_million_rows_of_the_same_days_take_hardly_more_memory_than_one(tmp_path):
    days, customers, peaks = 500, 200, {}
    part = pl.DataFrame(
        {
            "customer": np.repeat([f"customer_{number}" for number in range(customers)], days),
            "date": np.tile(np.datetime64("2023-01-01") + np.arange(days), customers),
            "value": np.ones(days * customers),
        }
    )
    for parts in 10, 100:
        path = tmp_path / f"{parts}.parquet"
        pl.concat([part.lazy()] * parts).sink_parquet(path, row_group_size=100_000)
        command = [sys.executable, "-c", PEAK, str(path)]
        done = subprocess.run(
            command, cwd=CONTENT, capture_output=True, text=True, timeout=120, check=True
        )
        peaks[parts], total = json.loads(done.stdout)
        assert total == parts * len(part)
    more_rows_bytes = 90 * part.estimated_size()
    assert peaks[100] - peaks[10] < 0.3 * more_rows_bytes, "rows are held in memory"


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "forecast_service.long_table", *map(str, arguments)]
    settings = {"capture_output": True, "text": True, "timeout": 60, "cwd": CONTENT}
    return subprocess.run(command, **settings | options)


def test_the_command_prints_each_problem_and_exits_with_1_if_a_customer_is_left_out(tmp_path):
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text("customer,date,value\n店,2024-01-01,1\n")
    for text, status in ("店,2024-01-01,1\n", 0), ("b,2024-01-01,x\n", 1):
        other.write_text("customer,date,value\n" + text)
        done = run(one, other)
        assert done.returncode == status, done.stderr
        assert "店: cannot be a customer id: its id is e5ba97" in done.stdout
        assert ("left out: b" in done.stdout) == bool(status)
        assert f"1 customers, 1 days, 2024-01-01 to 2024-01-01; {status} left out" in done.stdout


def test_the_command_says_what_missing_days_are(tmp_path):
    path = tmp_path / "t.csv"
    pl.DataFrame(closed_on(6), schema=list(Columns()), orient="row").write_csv(path)
    left_out = run(path)
    assert left_out.returncode == 1 and "say --missing zero" in left_out.stdout
    told = run(path, "--missing", "zero")
    assert told.returncode == 0 and "nothing was sold" in told.stdout


def test_the_command_exits_with_2_and_a_line_if_no_table_can_be_read(tmp_path):
    for arguments, said in (
        ([tmp_path], f"the folder {tmp_path} has no .csv and no .parquet in it"),
        ([FOOTFALL, "--columns", "a,b"], "give three names, as customer,date,value"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith(said)


def test_without_polars_it_says_what_to_install(tmp_path):
    (tmp_path / "polars.py").write_text("raise ModuleNotFoundError(name='polars')")
    done = run("t.csv", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.stderr.splitlines()[-1].endswith(
        "pip install -r chapters/requirements_09_keep_good.txt"
    )
