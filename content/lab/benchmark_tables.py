"""Print the results of benchmarks, a row for each server, and say who wins each column."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

OURS = "ours"  # how the names of this project's services begin
MIN_WIDTH = 6  # of a figure
ALIKE = 0.02  # a row wins too if its figure differs from the best one by no more than this share


class Column(NamedTuple):
    """What a table shows of each row."""

    heading: str
    path: str  # where a row has the figure: names, joined by dots
    spec: str  # the format of the figure
    best: Callable | None = min  # or max; None if nobody wins it

    @property
    def width(self) -> int:
        return max(len(self.heading), MIN_WIDTH) + 2


def figure(row: dict, path: str) -> float | None:
    """Return what a row has under a path, or None if it has nothing there."""
    for name in path.split("."):
        row = row.get(name) if row else None
    return row


def heading(columns: Sequence[Column], width: int) -> str:
    """Return a table's first line. Names of rows are `width` characters wide."""
    return " " * width + "".join(f"{each.heading:>{each.width}}" for each in columns)


def line(name: str, row: dict, columns: Sequence[Column], width: int) -> str:
    """Return a row: its figures, "n/a" for those that it has not, and what failed."""
    text = f"{name:{width}}"
    for column in columns:
        value = figure(row, column.path)
        cell = "n/a" if value is None else format(value, column.spec)
        text += f"{cell:>{column.width}}"
    return text + (f"  failed: {row['failed']}" if "failed" in row else "")


def print_table(rows: dict[str, dict], columns: Sequence[Column]) -> None:
    """Print all rows under their headings."""
    width = max(map(len, rows))
    print(heading(columns, width))
    for name, row in rows.items():
        print(line(name, row, columns, width))


def ranking(rows: dict[str, dict], column: Column) -> dict[str, float]:
    """Return a column's figures by name, the best first, of all rows that have one.

    A server that answers no forecasts is a bound for the others, and takes no part.
    """
    figures = {
        name: figure(row, column.path) for name, row in rows.items() if row.get("forecasts", True)
    }
    known = [name for name, value in figures.items() if value is not None]
    return {
        name: figures[name] for name in sorted(known, key=figures.get, reverse=column.best is max)
    }


def winners(ranked: dict[str, float]) -> list[str]:
    """Return the names of the first in a ranking, and of those that are as good but for ALIKE."""
    best = next(iter(ranked.values()))
    return [name for name, value in ranked.items() if abs(value - best) <= ALIKE * abs(best)]


def print_winners(rows: dict[str, dict], columns: Sequence[Column]) -> None:
    """Print who wins each column, with the best figure of ours and of the others."""
    for column in columns:
        ranked = ranking(rows, column)
        if column.best and ranked:
            text = f"{column.heading}: {'; '.join(winners(ranked))}"
            for side, ours in ("ours", True), ("others", False):
                mine = (value for name, value in ranked.items() if name.startswith(OURS) == ours)
                if (value := next(mine, None)) is not None:
                    text += f"; {side} {value:{column.spec}}"
            print(text)


def show_results(path: str, columns: Sequence[Column]) -> dict[str, dict]:
    """Print a file of results: where and when they were measured, the table, and who wins.

    Returns the rows, for further use.
    """
    report = json.loads(Path(path).read_text())
    machine, rows = report["machine"], report["servers"]
    dates = " and ".join(sorted({row["date"][:10] for row in rows.values()}))
    print(f"{dates}: {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}\n")
    print_table(rows, columns)
    print("\nWho wins, and the best of ours and of others")
    print_winners(rows, columns)
    return rows
