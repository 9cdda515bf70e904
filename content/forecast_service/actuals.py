"""What really came: long tables of customer, date and value, as daily series by customer."""

import csv
from array import array
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np

COLUMNS = "customer", "date", "value"


class Actuals(NamedTuple):
    """Daily counts by customer, all of which end on the same day, and what was wrong with others.

    A customer is in one of the two.
    """

    until: str  # ISO date of the last day of the tables
    series: dict[str, np.ndarray]  # (days,) each, from a customer's own first day
    problems: dict[str, str]  # by customer, what is wrong and what is wanted


class _Rows:
    """The rows of a customer, 12 bytes each: a table of millions fits into memory."""

    def __init__(self):
        self.days, self.values, self.fault = array("i"), array("d"), ""


def read_actuals(paths: Iterable[str | Path]) -> Actuals:
    """Read CSV files with the columns COLUMNS, among others, in any order; a folder is all in it.

    The files may overlap, as weekly ones do, where they agree. Dates are ISO dates, a row for each
    customer and day.

    Raises:
        ValueError: if there is no row, or a file is no such table. It names the file and the line.
        FileNotFoundError: if a file does not exist.
    """
    customers: dict[str, _Rows] = {}
    for path in _files(paths):
        _read(path, customers)
    last = max((max(rows.days) for rows in customers.values() if rows.days), default=None)
    if last is None:
        raise ValueError("there are no actuals: no table has a row with a date and a value")
    series, problems = {}, {}
    for customer_id, rows in sorted(customers.items()):
        try:
            series[customer_id] = _series(rows, last)
        except ValueError as error:
            problems[customer_id] = f"{customer_id}: {error}"
    return Actuals(date.fromordinal(last).isoformat(), series, problems)


def _files(paths: Iterable[str | Path]) -> list[Path]:
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            tables = sorted(path.glob("*.csv"))
            if not tables:
                raise FileNotFoundError(f"the folder {path} has no .csv in it")
            found += tables
        else:
            found.append(path)
    return found


def _read(path: Path, customers: dict[str, _Rows]) -> None:
    """Add the rows of a file, one after the other, to those of the customers."""
    ordinals: dict[str, int] = {}  # by the text of a date: the same few come again and again
    with path.open(newline="", encoding="utf-8-sig") as lines:
        table = csv.reader(lines)
        try:
            header = next(table, [])
            missing = set(COLUMNS) - set(header)
            if missing:
                raise ValueError(
                    f"{path} has the columns {', '.join(header) or 'none'}: it lacks "
                    f"{' and '.join(sorted(missing))}"
                )
            customer_at, date_at, value_at = map(header.index, COLUMNS)
            for row in table:
                if not row:
                    continue
                if len(row) != len(header):
                    raise ValueError(
                        f"{path}, line {table.line_num}: {len(row)} fields, the header has "
                        f"{len(header)}"
                    )
                rows = customers.setdefault(row[customer_at], _Rows())
                try:
                    day = ordinals.get(row[date_at]) or date.fromisoformat(row[date_at]).toordinal()
                    value = float(row[value_at])
                except ValueError:
                    rows.fault = rows.fault or (
                        f"{path.name}, line {table.line_num}: {row[date_at]!r}, "
                        f"{row[value_at]!r} are not a date like 2025-12-31 and a number"
                    )
                    continue
                ordinals[row[date_at]] = day
                rows.days.append(day)
                rows.values.append(value)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}, after line {table.line_num}, is no CSV in UTF-8: {error}"
            ) from None


def _series(rows: _Rows, last: int) -> np.ndarray:
    """Return a customer's counts from its first day to the tables' last, or raise ValueError."""
    if rows.fault:
        raise ValueError(rows.fault)
    order = np.argsort(rows.days, kind="stable")
    days, values = np.array(rows.days)[order], np.array(rows.values)[order]
    again = days[1:] == days[:-1]
    differ = again & (values[1:] != values[:-1])
    if differ.any():
        at = differ.argmax()
        raise ValueError(
            f"two values for {_date(days[at])}, {values[at]:g} and {values[at + 1]:g}: "
            "tables may overlap where they agree"
        )
    first_of_day = np.append(True, ~again)
    days, values = days[first_of_day], values[first_of_day]
    if days[-1] < last:
        raise ValueError(
            f"the last value is of {_date(days[-1])}, the tables end on {_date(last)}: give the "
            "days since, or delete the model of a customer who has left"
        )
    gaps = np.diff(days) > 1
    if gaps.any():
        missing = days[-1] - days[0] + 1 - len(days)
        raise ValueError(
            f"{missing} days are missing, the first is {_date(days[gaps.argmax()] + 1)}: "
            "fill the gaps"
        )
    return values


def _date(ordinal: int) -> str:
    return date.fromordinal(int(ordinal)).isoformat()
