"""The comparisons with other servers, but for the servers: rows, failures, and targets."""

import json
import socket

import pytest

import server_process
from comparison import Comparison, medians, shorten
from lab.benchmark_tables import Column
from server_process import InstallError, Running, Server, ServerError, running
from targets import (
    BARE,
    CEILING,
    MAX_BURST,
    SERVICE,
    STOCK,
    TARGETS,
    find_faults,
    judge,
    print_verdicts,
)

SPEED = Column("req/s", "speed", ".0f", max)
ENDS = Server("a server that ends at once", ("python", "-c", "raise SystemExit('no such model')"))


@pytest.fixture
def comparison(monkeypatch) -> Comparison:
    monkeypatch.setattr("comparison.versions", lambda server: {"python": "3"})
    return Comparison({"first": ENDS, "second": ENDS})


@pytest.fixture
def free_port(monkeypatch) -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setattr(server_process, "PORT", str(port))
    return port


def test_a_server_that_does_not_start_says_so_in_its_row(comparison, free_port, capsys):
    def start(name: str) -> dict:
        if name == "second":
            return {"speed": 7}
        with running(ENDS, {}, {"url": f"http://127.0.0.1:{free_port}"}):
            raise AssertionError("it runs")

    comparison.add_to_all(comparison.servers, start, "speeds", [SPEED])
    assert comparison.rows["first"]["failed"] == "a server that ends at once does not start"
    assert comparison.rows["second"]["speed"] == 7
    first, second = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert first[:3] == ["first", "n/a", "failed:"] and second == ["second", "7"]
    with pytest.raises(SystemExit, match=r"(?s)first: .* does not start:.*no such model"):
        comparison.finish()


def test_a_server_that_cannot_be_installed_says_so_in_its_row(monkeypatch):
    def install(server: Server) -> None:
        if server.peer:
            raise InstallError("requirements_x.txt cannot be installed:\nno matching distribution")

    monkeypatch.setattr("comparison.install", install)
    monkeypatch.setattr("comparison.versions", lambda server: install(server) or {})
    comparison = Comparison({"x": Server("x", ("x",), "x"), "ours": ENDS})
    assert comparison.rows["x"]["failed"] == "requirements_x.txt cannot be installed"
    assert "failed" not in comparison.rows["ours"]
    with pytest.raises(SystemExit, match="no matching distribution"):
        comparison.finish()


def test_what_has_failed_is_not_measured_again(comparison):
    def fail(name: str) -> dict:
        raise ServerError("it answers nonsense")

    comparison.add("first", lambda name: {"speed": 1})
    comparison.add("first", fail)
    comparison.add("first", lambda name: {"speed": 2})
    assert comparison.rows["first"]["failed"] == "it answers nonsense"
    assert comparison.rows["first"]["speed"] == 1, "a figure was lost, or measured once more"
    assert len(comparison.faults) == 1


def test_all_is_well_without_faults(comparison):
    comparison.add("first", lambda name: {"speed": 1})
    comparison.finish()
    with pytest.raises(SystemExit, match="3 requests failed"):
        comparison.finish(["first: 3 requests failed"])


def test_only_servers_that_take_part_are_measured(comparison, capsys):
    comparison.add_to_all(["third"], pytest.fail, "nothing", [SPEED])
    assert capsys.readouterr().out == ""


def test_results_name_machine_date_and_versions(comparison, tmp_path):
    comparison.add("first", lambda name: {"speed": 1234.5678})
    comparison.write(tmp_path / "results.json", parameters={"rounds": 5})
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["machine"]["cores"] > 0 and report["parameters"] == {"rounds": 5}
    assert list(report["servers"]) == ["first", "second"]
    first = report["servers"]["first"]
    assert first["speed"] == 1235 and first["versions"] == {"python": "3"}
    assert first["about"] == "a server that ends at once" and first["date"].startswith("20")


def test_figures_are_rounded_and_counts_are_not():
    assert shorten({"a": {"b": 0.123456, "c": 123456}, "d": None}) == {
        "a": {"b": 0.1235, "c": 123456},
        "d": None,
    }


def test_medians_are_of_each_figure_and_errors_add_up():
    runs = [{"p50_ms": p50, "p99_ms": p99, "errors": 1} for p50, p99 in ((1, 30), (2, 10), (9, 20))]
    assert medians(runs) == {"p50_ms": 2, "p99_ms": 20, "errors": 3}


def test_loads_are_told_from_checks(tmp_path):
    live = Running(None, 0, tmp_path / "loads")
    assert (live.loads(), live.checks()) == (0, 0)
    live.loads_file.write_text("..?.??.")
    assert (live.loads(), live.checks()) == (4, 3)


def reached() -> dict[str, dict]:
    """Rows in which the service reaches each target, but no more than that."""

    def row(rate: float, p50_ms: float, p99_ms: float, model_kb: float) -> dict:
        warm = {"1": {"p50_ms": p50_ms}, "16": {"requests_per_s": rate, "p99_ms": p99_ms}}
        return {
            "warm": warm,
            "crowd": {"model_kb": model_kb},
            "cold": {"burst_per_one": 1.3, "burst_s": 0.13},
        }

    rows = {SERVICE: row(3400, 0.35, 15, 12), BARE: row(4000, 0.25, 10, 0)}
    rows |= {CEILING: row(5000, 0.1, 5, 7), STOCK: row(226, 9, 90, 0)}
    rows[STOCK]["cold"]["burst_s"] = 3
    return rows


def test_targets_are_judged(capsys):
    verdicts = judge(reached())
    assert [verdict["met"] for verdict in verdicts] == [True] * len(TARGETS)
    print_verdicts(verdicts)
    assert "MISSED" not in capsys.readouterr().out


@pytest.mark.parametrize("number", range(len(TARGETS)), ids=[target.what for target in TARGETS])
def test_a_missed_target_is_reported(number, capsys):
    rows = reached()
    *places, last = TARGETS[number].path.split(".")
    part = rows[SERVICE]
    for place in places:
        part = part[place]
    part[last] *= 0.9 if TARGETS[number].at_least else 1.1
    verdict = judge(rows)[number]
    assert verdict["met"] is False
    print_verdicts([verdict])
    assert "MISSED" in capsys.readouterr().out


def test_a_target_without_figures_is_not_judged(capsys):
    rows = reached() | {BARE: {"failed": "it does not start"}}
    unknown = [verdict for verdict in judge(rows) if verdict["met"] is None]
    assert len(unknown) == sum(target.peer == BARE for target in TARGETS) > 0
    print_verdicts(unknown)
    assert "not measured" in capsys.readouterr().out


def test_failed_requests_and_broken_ratios_are_faults():
    rows = reached() | {"x": {"failed": "it does not start"}}
    assert find_faults(rows, MAX_BURST) == []
    rows[BARE]["warm"]["16"]["errors"] = 2
    rows[SERVICE]["cold"] = {"burst_per_one": 1.6, "burst_s": 0.8}
    rows[STOCK]["warm"]["16"]["requests_per_s"] = 2000
    failed, slow, serial, ratio = find_faults(rows, MAX_BURST)
    assert failed == "FastAPI: warm.16.errors: 2"
    assert "1.6 x one cold customer" in slow and "4 x as fast" in serial
    assert "1.7 x what stock Ray" in ratio
