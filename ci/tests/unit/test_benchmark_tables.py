"""Tables of benchmarks: what they show of a row, and who wins a column."""

import json

from lab.benchmark_tables import (
    Column,
    figure,
    print_table,
    print_winners,
    ranking,
    show_results,
    winners,
)

RATE = Column("req/s", "closed.requests_per_s", ".0f", max)
LATENCY = Column("p50", "closed.p50_ms", ".1f")
ERRORS = Column("errors", "closed.errors", ".0f", None)


def row(rate: float, p50_ms: float, **others) -> dict:
    return {"closed": {"requests_per_s": rate, "p50_ms": p50_ms, "errors": 0}} | others


ROWS = {
    "ours": row(1000, 4.0),
    "ours, small": row(700, 5.0),
    "FastAPI": row(1200, 4.04),
    "a bound": row(9000, 0.1, forecasts=False),
    "broken": {"failed": "it does not start"},
}


def test_a_figure_that_a_row_lacks_is_none():
    assert figure(ROWS["ours"], "closed.p50_ms") == 4.0
    assert figure(ROWS["ours"], "open.p50_ms") is None
    assert figure({"open": None}, "open.p50_ms") is None
    assert figure({}, "closed.p50_ms") is None


def test_more_wins_or_less_as_the_column_has_it():
    assert list(ranking(ROWS, RATE)) == ["FastAPI", "ours", "ours, small"]
    assert list(ranking(ROWS, LATENCY)) == ["ours", "FastAPI", "ours, small"]


def test_rows_that_are_hardly_apart_share_a_win():
    assert winners(ranking(ROWS, LATENCY)) == ["ours", "FastAPI"]
    assert winners(ranking(ROWS, RATE)) == ["FastAPI"]


def test_losses_of_ours_are_told(capsys):
    print_winners(ROWS, [RATE, LATENCY, ERRORS])
    rate, latency = capsys.readouterr().out.splitlines()
    assert rate.strip() == "req/s: FastAPI; ours 1000; others 1200"
    assert latency.strip() == "p50: ours; FastAPI; ours 4.0; others 4.0"


def test_nobody_wins_a_column_without_figures(capsys):
    print_winners({"broken": ROWS["broken"]}, [RATE])
    assert capsys.readouterr().out == ""


def test_a_table_has_all_rows_and_says_what_failed(capsys):
    some = {"FastAPI": ROWS["FastAPI"], "broken": ROWS["broken"]}
    half = {"half": row(10, 1.0) | {"failed": "it has ended"}}
    print_table(some | half, [RATE, Column("p99", "closed.p99_ms", ".1f")])
    heading, *lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert heading == "req/s p99"
    assert lines == [
        "FastAPI 1200 n/a",
        "broken n/a n/a failed: it does not start",
        "half 10 n/a failed: it has ended",
    ]


def test_results_are_shown_with_machine_and_date(tmp_path, capsys):
    machine = {"cpu": "a CPU", "cores": 2, "python": "3.11.7"}
    rows = {"FastAPI": row(1200, 4.0, date="2026-11-28T09:59:00+00:00")}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"machine": machine, "servers": rows}))
    assert show_results(path, [RATE]) == rows
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "2026-11-28: a CPU, 2 cores, Python 3.11.7"
    assert shown[3].split() == ["FastAPI", "1200"]
    assert shown[-1] == "req/s: FastAPI; others 1200"
