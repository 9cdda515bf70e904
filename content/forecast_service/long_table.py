"""Tables with a row for each customer and day, as people have them, made what training takes.

    python -m forecast_service.long_table visitors.parquet --time-zone Pacific/Auckland

Prints each customer's problems, and what was done about them. Exits with 1 if a customer is left
out, and with 2 if no table can be read. Reads CSV and Parquet. Rows are streamed: memory is for the
days of each customer, and not for the rows, of which there may be many a day.
"""

import argparse
import hashlib
import itertools
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Literal, NamedTuple, get_args
from zoneinfo import available_timezones

import numpy as np

from forecast_service.customer_ids import check_customer_id
from forecast_service.errors import InvalidCustomerIdError
from forecast_service.model import FLOOR, MAX_COUNT, SEASON

try:
    import polars as pl
except ModuleNotFoundError as error:  # as in the image of the service, which reads no tables
    raise ModuleNotFoundError(
        "reading tables takes polars: pip install -r chapters/requirements_09_keep_good.txt",
        name=error.name,
    ) from None

MOST_DAYS = 10_000  # from a table's first to its last: 27 years; beyond it, a date is a mistake
LONGEST_GAP_DAYS = SEASON  # that is filled
WEEKDAYS_FROM_DAYS = 2 * SEASON  # from so many on, a weekday without any row is no accident
AHEAD = timedelta(1)  # of the date here, it is already tomorrow in the east
LONGEST_HEX_BYTES = 32  # of a name, whose hexadecimal digits are a customer id
BATCH_ROWS = 100_000  # in memory at a time
FEW = 5  # problems that stand for all
SUFFIXES = ".csv", ".parquet"
OTHER_SEPARATORS = ";", "\t"
NOBODY = "(no name)"
OFFSET = re.compile(r"[T ].*(?:Z|[+-]\d{2}:?\d{2})$")  # from UTC, in a timestamp
Duplicates = Literal["refuse", "sum", "mean"]
Missing = Literal["fill", "zero"]


class Columns(NamedTuple):
    """What a table calls its columns."""

    customer: str = "customer"
    date: str = "date"
    value: str = "value"


class Problem(NamedTuple):
    """What is wrong with a customer's rows, and what was done about it, or is to be done."""

    customer: str  # as the table has it
    fault: str
    advice: str
    left_out: bool = False
    guessed: bool = False  # days were filled in, dropped, or taken for this customer's

    def __str__(self) -> str:
        left_out = "left out: " if self.left_out else ""
        return f"{left_out}{self.customer}: {self.fault}: {self.advice}"


@dataclass(frozen=True)
class DailyTable:
    """Daily counts of the customers for whom a model can be trained, and what was wrong."""

    names: list[str]  # of customers, as the table has them
    customer_ids: list[str]  # what the service calls them
    dates: np.ndarray  # (days,) datetime64[D], without a gap
    counts: np.ndarray  # (customers, days); NaN before a customer's first day
    problems: list[Problem]
    left_out: dict[str, Problem]  # by customer id, the first reason why

    def series(self, customer_id: str) -> np.ndarray:
        """Return a customer's counts from its first day to the table's last, shape (days,)."""
        row = self.counts[self.customer_ids.index(customer_id)]
        return row[np.isfinite(row).argmax() :]

    def complete(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Return ids, dates and counts of the customers who have all days.

        It is what train_models.train() takes, and train_models.load_footfall() returns.
        """
        whole = np.isfinite(self.counts[:, 0])
        ids = np.array(self.customer_ids, object)[whole].tolist()
        return ids, self.dates, self.counts[whole]


def as_customer_id(name: str) -> str:
    """Return what the service calls a customer: the name itself if it can, else its digits.

    As the error for a malformed id advises: `name.encode().hex()`, which `bytes.fromhex()` undoes,
    and over 32 bytes a SHA-256.
    """
    try:
        return check_customer_id(name)
    except InvalidCustomerIdError:
        return _digits(name)


def read_long_table(
    tables: str | Path | Iterable[str | Path],
    columns: Columns = Columns(),  # noqa: B008, it cannot be changed
    *,
    time_zone: str | None = None,
    duplicates: Duplicates = "refuse",
    missing: Missing = "fill",
    longest_gap_days: int = LONGEST_GAP_DAYS,
    most_days_late: int = LONGEST_GAP_DAYS,
    separator: str = ",",
) -> DailyTable:
    """Read CSV and Parquet files with a row for each customer and day, in any order, as one table.

    A folder is all such files in it. Files may overlap, as weekly ones do, where they agree.
    Dates are dates, or timestamps, also as text in ISO 8601. A timestamp with a time zone or an
    offset belongs to the day that it is at the customers' own `time_zone`; one without is local.
    `duplicates` says what to do with several rows of one customer and day: `sum` them, as parts of
    a day (then files must not overlap), take their `mean`, or leave the customer out if they
    differ. `missing` says what days without a value are, between a customer's first and its last:
    `zero`, as nothing was sold, or days to `fill` if there are up to `longest_gap_days` of them,
    with the mean of the same weekday before and after. Then days before a longer gap are dropped,
    and a customer who lacks a whole weekday is left out. Up to `most_days_late` days at a
    customer's end are filled in any case. A customer who ends earlier is left out, and so is one
    who has rows of days to come.

    Raises:
        ValueError: if the table as a whole cannot be used. It names what is wanted.
        FileNotFoundError: if there is none.
        OSError: if a file may not be read.
    """
    if time_zone is not None and time_zone not in available_timezones():
        raise ValueError(f"there is no time zone {time_zone!r}: take one such as Pacific/Auckland")
    paths = _files([tables] if isinstance(tables, str | Path) else tables)
    files = [_Rows(path, Columns(*columns), time_zone, separator) for path in paths]
    if len(files) > 1:  # a fault says in which of them it is
        for file in files:
            file.where = f" in {file.path.name}"
    meant, customers = _find_customers(files)
    problems = list(_problems_of_rows(customers))
    cells = _Cells(*_usable(customers, problems))
    for batch in itertools.chain.from_iterable(file.batches() for file in files):
        cells.add(batch, meant)
    problems += _problems_of_duplicates(cells, duplicates)
    counts = cells.counts(duplicates)
    for row, name in enumerate(cells.names):
        if missing == "zero":
            problems += _put_zeros(name, cells.dates, counts[row])
        problems += _close_gaps(name, cells.dates, counts[row], longest_gap_days, most_days_late)
    customer_ids, mapped = _customer_ids(customers["customer"])
    left_out = {}
    for problem in problems:
        if problem.left_out:
            left_out.setdefault(customer_ids[problem.customer], problem)
    kept = [row for row, name in enumerate(cells.names) if customer_ids[name] not in left_out]
    names = [cells.names[row] for row in kept]
    problems += [problem for problem in mapped if customer_ids[problem.customer] not in left_out]
    problems.sort(key=lambda problem: (not problem.left_out, problem.customer))
    ids = [customer_ids[name] for name in names]
    return DailyTable(names, ids, cells.dates, counts[kept], problems, left_out)


def _files(tables: Iterable[str | Path]) -> list[Path]:
    """Return the files of tables, of which some may be folders. Raises as read_long_table()."""
    found = []
    for path in map(Path, tables):
        if not path.exists():
            raise FileNotFoundError(f"there is no table {path}")
        inside = [path]
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _suffix(file) in SUFFIXES)
            if not inside:
                raise FileNotFoundError(f"the folder {path} has no .csv and no .parquet in it")
        elif _suffix(path) not in SUFFIXES:
            raise ValueError(f"{path}: a table is a .csv, a .parquet, or a folder of those")
        found += inside
    return list(dict.fromkeys(found))  # in a folder and by its own name, it is read once


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _digits(name: str) -> str:
    data = name.encode()
    return data.hex() if len(data) <= LONGEST_HEX_BYTES else hashlib.sha256(data).hexdigest()


class _Rows:
    """The rows of a file, a batch at a time, in its order."""

    def __init__(self, path: Path, columns: Columns, time_zone: str | None, separator: str):
        self.path, self.where = path, ""
        with _naming(path):
            if _suffix(path) == ".csv":  # all as text: else the shop 007 would be the shop 7
                table = pl.scan_csv(path, infer_schema=False, separator=separator)
            else:
                table = pl.scan_parquet(path)
            schema = table.collect_schema()
        if missing := [name for name in columns if name not in schema]:
            separated = any(mark in name for name in schema for mark in OTHER_SEPARATORS)
            raise ValueError(
                f"{path} has no column {missing[0]!r}: it has {', '.join(map(repr, schema))}; name "
                f"yours by --columns {','.join(Columns())} (in Python: Columns)"
                f"{', or say --separator' if separated else ''}"
            )
        self._time_zone = time_zone
        self._table = table.select(
            customer=pl.col(columns.customer).cast(pl.String),
            date=pl.col(columns.date),
            value=pl.col(columns.value),
        )
        dates, values = schema[columns.date], schema[columns.value]
        if not (values.is_numeric() or values == pl.String):
            raise ValueError(f"{path}: {columns.value} is {values}: it has to be numbers")
        if not (dates in (pl.Date, pl.String) or isinstance(dates, pl.Datetime)):
            raise ValueError(f"{path}: {columns.date} is {dates}: it has to be dates or timestamps")
        if isinstance(dates, pl.Datetime) and dates.time_zone and not time_zone:
            raise ValueError(
                f"{path}: {columns.date} has the time zone {dates.time_zone}: say the customers' "
                "own in time_zone, such as Pacific/Auckland, because their day begins at their "
                "midnight"
            )

    def batches(self) -> Iterator[pl.DataFrame]:
        """Read BATCH_ROWS at a time, with a `day` and a `number` each, null where there is none.

        A row in which nothing is written, as of an empty line, is left out.
        """
        with _naming(self.path):
            for batch in self._table.collect_batches(
                chunk_size=BATCH_ROWS, maintain_order=True, engine="streaming"
            ):
                batch = batch.filter(~pl.all_horizontal(pl.all().is_null()))
                dates = batch["date"].drop_nulls().unique()  # which many customers share
                day = pl.col("date").replace_strict(dates, self._days(dates), default=None)
                if batch["value"].dtype == pl.String:
                    text = pl.col("value").str.strip_chars().replace("", None)
                    batch = batch.with_columns(value=text)
                elif batch["value"].dtype.is_float():
                    batch = batch.with_columns(value=pl.col("value").fill_nan(None))
                number = pl.col("value").cast(pl.Float64, strict=False)
                yield batch.with_columns(day=day, number=number)

    def _days(self, dates: pl.Series) -> pl.Series:
        """Return the days of dates or timestamps, at the customers' own time zone."""
        if dates.dtype == pl.Date:
            return dates
        if dates.dtype == pl.String:
            text = dates.str.strip_chars().str.replace(" ", "T")
            days = text.str.to_date("%Y-%m-%d", strict=False)
            local = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
            days = days.fill_null(local.dt.date())
            if self._time_zone:
                aware = text.str.replace("Z$", "+00:00").str.to_datetime(
                    "%Y-%m-%dT%H:%M:%S%.f%z", time_unit="us", time_zone="UTC", strict=False
                )
                days = days.fill_null(aware.dt.convert_time_zone(self._time_zone).dt.date())
            return days
        if dates.dtype.time_zone:
            dates = dates.dt.convert_time_zone(self._time_zone)
        return dates.dt.date()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what polars says of a file into a ValueError that names it."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} cannot be read: {reason}") from None


def _find_customers(files: list[_Rows]) -> tuple[dict[str | None, str], pl.DataFrame]:
    """Return whom each way of writing a name means, and what is known of each customer's rows."""
    parts = [
        _by_customer(batch, file.where) for file in files for batch in file.batches() if len(batch)
    ]
    if not parts:
        raise ValueError(f"{files[0].path} has no rows")
    written = _merge_customers(pl.concat(parts))
    names = written["customer"].str.normalize("NFC").str.strip_chars()
    names = names.replace("", None).fill_null(NOBODY)
    meant = dict(zip(written["customer"], names, strict=True))
    spellings = names.value_counts(name="spellings")
    customers = _merge_customers(written.with_columns(names))
    return meant, customers.join(spellings, on="customer").sort("customer")


def _by_customer(batch: pl.DataFrame, where: str) -> pl.DataFrame:
    """Count what is wrong with the rows of each customer, and keep an example and where it is."""
    day, number = pl.col("day"), pl.col("number")
    faults = {
        "no_day": (day.is_null(), "date"),
        "to_come": (day > date.today() + AHEAD, "day"),
        "no_number": (number.is_null() & pl.col("value").is_not_null(), "value"),
        "outside": (~number.is_between(max(FLOOR, -MAX_COUNT), MAX_COUNT), "value"),
    }
    counted = [
        aggregate
        for name, (fault, written) in faults.items()
        for aggregate in (
            fault.sum().alias(name),
            pl.col(written).filter(fault).first().cast(pl.String).alias(f"{name}_example"),
            pl.when(fault.any()).then(pl.lit(where)).alias(f"{name}_where"),
        )
    ]
    return batch.group_by("customer", maintain_order=True).agg(
        pl.len().alias("rows"),
        (day.diff().dt.total_days() < 0).any().alias("unsorted"),
        day.drop_nulls().first().alias("first_read"),
        day.drop_nulls().last().alias("last_read"),
        day.min().alias("first_day"),
        day.max().alias("last_day"),
        *counted,
    )


def _merge_customers(parts: pl.DataFrame) -> pl.DataFrame:
    """Merge what _by_customer() returned for batches, in their order."""
    turned_back = pl.col("first_read") < pl.col("last_read").shift()
    return parts.group_by("customer", maintain_order=True).agg(
        pl.col("rows", "no_day", "to_come", "no_number", "outside").sum(),
        pl.col("^.*_(example|where)$").drop_nulls().first(),
        (pl.col("unsorted").any() | turned_back.any()).alias("unsorted"),
        pl.col("first_read").drop_nulls().first(),
        pl.col("last_read").drop_nulls().last(),
        pl.col("first_day").min(),
        pl.col("last_day").max(),
    )


class _Cells:
    """What the rows say of each customer's days: arrays of shape (customers, days)."""

    def __init__(self, names: list[str], first: date, last: date):
        shape = len(names), (last - first).days + 1
        self.names, self.first = names, first
        self.dates = np.arange(np.datetime64(first), np.datetime64(last) + 1)
        self.rows = np.zeros(shape, np.int32)
        self.sum = np.zeros(shape)
        self.least, self.most = np.full(shape, np.inf), np.full(shape, -np.inf)

    def add(self, batch: pl.DataFrame, meant: dict[str | None, str]) -> None:
        """Add the rows of those customers who are in `names`, without those that lack a value."""
        numbers = {name: number for number, name in enumerate(self.names)}
        written = {text: numbers.get(name) for text, name in meant.items()}
        batch = batch.select(
            "number",
            row=pl.col("customer").replace_strict(written, return_dtype=pl.Int32),
            column=(pl.col("day") - self.first).dt.total_days(),
        ).drop_nulls()
        value, *where = (batch[name].to_numpy() for name in batch.columns)
        where = tuple(where)
        np.add.at(self.rows, where, 1)
        np.add.at(self.sum, where, value)
        np.minimum.at(self.least, where, value)
        np.maximum.at(self.most, where, value)

    def counts(self, duplicates: Duplicates) -> np.ndarray:
        """Return a count for each day, NaN where there is no row."""
        counts = self.sum if duplicates == "sum" else self.least
        if duplicates == "mean":
            counts = self.sum / np.maximum(self.rows, 1)
        return np.where(self.rows > 0, counts, np.nan)


def _usable(customers: pl.DataFrame, problems: list[Problem]) -> tuple[list[str], date, date]:
    """Return whose rows can be used, and the first and the last day of those."""
    left_out = [problem.customer for problem in problems if problem.left_out]
    usable = customers.filter(~pl.col("customer").is_in(left_out))
    if usable.is_empty():
        reasons = "".join(f"\n{problem}" for problem in problems[:FEW])
        raise ValueError(f"no customer has values that can be used{reasons}")
    first, last = usable["first_day"].min(), usable["last_day"].max()
    if (last - first).days >= MOST_DAYS:
        whose = [
            usable.row(usable[column].index_of(day), named=True)["customer"]
            for column, day in (("first_day", first), ("last_day", last))
        ]
        raise ValueError(
            f"dates run from {first} ({whose[0]}) to {last} ({whose[1]}): more than {MOST_DAYS} "
            "days; correct them"
        )
    return usable["customer"].to_list(), first, last


def _problems_of_rows(customers: pl.DataFrame) -> Iterator[Problem]:
    """Say what is wrong with what _by_customer() found."""
    for found in customers.iter_rows(named=True):
        name = found["customer"]
        if name == NOBODY:
            fault = f"{_count(found['rows'], 'row')} without a customer"
            yield Problem(name, fault, "say whose they are, or take them out", left_out=True)
            continue
        if found["spellings"] > 1:
            fault = f"is written in {found['spellings']} ways (blanks, or forms of Unicode)"
            yield Problem(name, fault, "taken for one customer", guessed=True)
        if found["unsorted"]:
            yield Problem(name, "its rows are not in the order of their days", "put in order")
        if count := found["no_day"]:
            example, where = (found["no_day_example"] or "").strip(), found["no_day_where"]
            fault = f"{count} of {found['rows']} rows without a date{where}"
            advice = "write 2023-12-31, or 2023-12-31T12:00:00+13:00"
            if OFFSET.search(example):
                fault = f"{count} of {found['rows']} rows with an offset from UTC"
                advice = "say the customers' own time_zone, such as Pacific/Auckland"
            elif example:
                fault = f"{count} of {found['rows']} rows whose date cannot be read"
            if example:
                fault += f", as {example!r}{where}"
            yield Problem(name, fault, advice, left_out=True)
        if found["to_come"]:
            fault = f"has rows of days to come, as '{found['to_come_example']}'"
            fault += found["to_come_where"]
            yield Problem(name, fault, "correct the date", left_out=True)
        if count := found["no_number"]:
            fault = f"{count} of {found['rows']} values not a number, as "
            fault += f"{found['no_number_example']!r}{found['no_number_where']}"
            yield Problem(name, fault, "write 1234.5, or nothing for a gap", left_out=True)
        if count := found["outside"]:
            fault = f"{count} of {found['rows']} values not in {max(FLOOR, -MAX_COUNT):g} to "
            fault += f"{MAX_COUNT:g}, as {found['outside_example']}{found['outside_where']}"
            advice = "correct them, or lower FLOOR in forecast_service/model.py"
            yield Problem(name, fault, advice, left_out=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _problems_of_duplicates(cells: _Cells, duplicates: Duplicates) -> Iterator[Problem]:
    several = cells.rows > 1
    differing = several & (cells.least != cells.most)
    for row in np.flatnonzero(several.any(axis=1)):
        name, days = cells.names[row], several[row]
        advice, left_out = f"their {duplicates} is taken", False
        if duplicates == "refuse" and differing[row].any():
            days, left_out = differing[row], True
            advice = "take one out, or say if their sum or their mean is meant (duplicates)"
        elif duplicates == "refuse":
            advice = "they say the same, one is taken"
        first = days.argmax()
        fault = (
            f"has several rows for {_count(days.sum(), 'day')}, the first is {cells.dates[first]}"
        )
        if left_out:
            fault += f", with {cells.least[row, first]:g} and {cells.most[row, first]:g}"
        yield Problem(name, fault, advice, left_out)


def _put_zeros(name: str, dates: np.ndarray, series: np.ndarray) -> Iterator[Problem]:
    """Put 0 into all gaps of a customer's counts in place, and say so."""
    known = np.flatnonzero(np.isfinite(series))
    if not known.size:
        return
    inside = series[known[0] : known[-1] + 1]
    missing = np.flatnonzero(np.isnan(inside))
    if missing.size:
        inside[missing] = 0
        first = dates[known[0] + missing[0]]
        fault = f"lacks {_count(len(missing), 'day')}, the first is {first}"
        yield Problem(name, fault, "taken for days on which nothing was sold")


def _close_gaps(
    name: str, dates: np.ndarray, series: np.ndarray, longest_days: int, most_days_late: int
) -> list[Problem]:
    """Fill the short gaps of a customer's counts in place, and drop the days before a long one.

    Left out is who ended, or lacks a whole weekday.
    """
    known = np.flatnonzero(np.isfinite(series))
    if not known.size:
        return [Problem(name, "has no values", "fill them in, or take the customer out", True)]
    missing_at_end = len(series) - 1 - known[-1]
    if missing_at_end > most_days_late:
        fault = (
            f"ended on {dates[known[-1]]}, {_count(missing_at_end, 'day')} before the table does"
        )
        return [Problem(name, fault, "nothing to forecast, or its last rows are missing", True)]
    problems = []
    gaps = np.diff(known) - 1
    if (gaps > longest_days).any():
        last_long = np.flatnonzero(gaps > longest_days)[-1]
        fault = f"lacks {gaps[last_long]} days from {dates[known[last_long] + 1]}"
        first = known[last_long + 1]
        advice = f"too many to fill: begins on {dates[first]}"
        problems.append(Problem(name, fault, advice, guessed=True))
        series[:first] = np.nan
        known = known[known >= first]
    elif known[0]:
        days = len(series) - known[0]
        fault = f"begins on {dates[known[0]]}, with {days} of {len(series)} days"
        problems.append(Problem(name, fault, "taken as it is"))
    absent = SEASON - len(np.unique(known % SEASON))
    if absent and known[-1] - known[0] + 1 >= WEEKDAYS_FROM_DAYS:
        fault = f"has no rows on {_count(absent, 'weekday')} at all"
        advice = "closed, or nothing sold: say --missing zero"
        return [*problems, Problem(name, fault, advice, left_out=True)]
    missing = known[0] + np.flatnonzero(np.isnan(series[known[0] :]))
    if missing.size:
        filled = [_same_weekday(series, known, day) for day in missing]
        series[missing] = filled
        fault = f"lacks {_count(len(missing), 'day')}, the first is {dates[missing[0]]}"
        advice = "filled from the same weekday before and after"
        problems.append(Problem(name, fault, advice, guessed=True))
    return problems


def _same_weekday(series: np.ndarray, known: np.ndarray, day: int) -> float:
    """Return the mean of the nearest known counts on a day's weekday, before it and after it.

    A series shorter than a week may have none: then that of the nearest known days.
    """
    alike = known[known % SEASON == day % SEASON]
    alike = alike if alike.size else known
    after = alike.searchsorted(day)
    return float(series[alike[max(after - 1, 0) : after + 1]].mean())


def _customer_ids(names: Iterable[str]) -> tuple[dict[str, str], list[Problem]]:
    """Return what the service calls customers, and who had to be given another name.

    No two ids are alike but for upper and lower case, which not every file system tells apart.
    """
    names = [name for name in names if name != NOBODY]
    alike = defaultdict(list)
    for name in names:
        alike[as_customer_id(name).lower()].append(name)
    ids, problems = {NOBODY: NOBODY}, []
    for name in names:
        customer_id = as_customer_id(name)
        fault = "cannot be a customer id"
        if len(alike[customer_id.lower()]) > 1:
            others = [other for other in alike[customer_id.lower()] if other != name]
            fault, customer_id = f"differs from {others[0]} in upper and lower case", _digits(name)
        if customer_id != name:
            problems.append(Problem(name, fault, f"its id is {customer_id}"))
        ids[name] = customer_id
    return ids, problems


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    table = read_table_of(parser.parse_args())
    print(*table.problems, sep="\n")
    days = f"{len(table.dates)} days, {table.dates[0]} to {table.dates[-1]}"
    print(f"{len(table.names)} customers, {days}; {len(table.left_out)} left out")
    sys.exit(bool(table.left_out))


def add_arguments(parser: argparse.ArgumentParser, how_many: str = "+") -> None:
    """Add the arguments that read_table_of() takes."""
    parser.add_argument(
        "tables", type=Path, nargs=how_many, help=".csv and .parquet files, or folders of those"
    )
    parser.add_argument("--time-zone", help="the customers' own, such as Pacific/Auckland")
    parser.add_argument("--duplicates", choices=get_args(Duplicates), default="refuse")
    parser.add_argument(
        "--missing",
        choices=get_args(Missing),
        default="fill",
        help="days without a row: filled if they are few, or zero, as nothing was sold",
    )
    names = ",".join(Columns())
    parser.add_argument(
        "--columns", type=_columns, default=names, help=f"what the tables call {names}"
    )
    parser.add_argument("--separator", default=",", help="of CSV files")


def _columns(text: str) -> Columns:
    names = text.split(",")
    if len(names) != len(Columns._fields):
        raise argparse.ArgumentTypeError(f"give three names, as {','.join(Columns())}")
    return Columns(*names)


def read_table_of(
    arguments: argparse.Namespace, most_days_late: int = LONGEST_GAP_DAYS
) -> DailyTable:
    """Read the tables that a command line names.

    If they cannot be used, it says why on stderr, and raises SystemExit: the code is 2.
    """
    try:
        return read_long_table(
            arguments.tables,
            arguments.columns,
            time_zone=arguments.time_zone,
            duplicates=arguments.duplicates,
            missing=arguments.missing,
            most_days_late=most_days_late,
            separator=arguments.separator,
        )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
