"""Rules and dashboard ask for nothing that nobody measures: checked by name, without Ray.

A real Prometheus evaluates them in ci/tests/long/test_prometheus.py.
"""

import ast
import json
import re
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from deploy import grafana_dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from forecast_service import errors
from template_lock import REQUIREMENTS

CONTENT = REQUIREMENTS.parent / "content"
GROUPS = yaml.safe_load((CONTENT / "deploy" / "prometheus_rules.yaml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
RECORDS = {rule["record"] for rule in RULES if "record" in rule}
ALERTS = {rule["alert"]: rule["expr"] for rule in RULES if "alert" in rule}
DASHBOARD = json.loads((CONTENT / "deploy" / "grafana_dashboard.json").read_text())
DRAWN = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PANELS = {panel["title"]: panel for panel in DRAWN}
EXPORTED_AS = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}
OUTCOMES = {"hit", "miss"}
CACHE_COUNTERS = "get_model_requests", "models_load"
WORDS = {"and", "or", "unless", "offset", "bool"}
NOT_A_METRIC = re.compile(  # strings, labels and their values, ranges, lists of labels
    r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)'
)
NAME = re.compile(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?![\w:]|\s*\()")


def exported(source: Path) -> set[str]:
    """Return the names under which Prometheus finds the metrics that a module defines."""
    calls = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call)]
    return {
        f"ray_{name}{suffix}"
        for call in calls
        for suffix in EXPORTED_AS.get(ast.unparse(call.func).rpartition(".")[2], ())
        if call.args and (name := text_of(call.args[0]))
    }


def text_of(node: ast.expr) -> str | None:
    """Return what a text says; where it has a place for a protocol's name, of HTTP."""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else "http" for part in node.values
        )
    return node.value if isinstance(node, ast.Constant) else None


def names_in(expression: str) -> set[str]:
    """Return the metrics and records that an expression asks for."""
    return set(NAME.findall(NOT_A_METRIC.sub(" ", expression))) - WORDS


RAY_SERVE = Path(distribution("ray").locate_file("ray/serve"))
SOURCES = (
    CONTENT / "forecast_service" / "metrics.py",
    RAY_SERVE / "multiplex.py",
    RAY_SERVE / "_private" / "replica.py",
    RAY_SERVE / "_private" / "request_ingress_metrics.py",
)
MEASURED = set().union(*map(exported, SOURCES))
EXPRESSIONS = {
    **{rule.get("record") or rule["alert"]: rule["expr"] for rule in RULES},
    **{
        f"{title} {target['refId']}": target["expr"]
        for title, panel in PANELS.items()
        for target in panel["targets"]
    },
}


def test_the_modules_say_what_they_measure():
    assert {"ray_forecast_requests_total", "ray_forecast_cold_load_seconds_bucket"} <= MEASURED
    assert {"ray_serve_num_multiplexed_models", grafana_dashboard.ANSWERS} <= MEASURED


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_every_name_is_a_metric_or_a_record(place):
    names = names_in(EXPRESSIONS[place])
    assert names and names <= MEASURED | RECORDS


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_every_error_that_is_asked_for_is_one_of_the_services(place):
    named = re.findall(r'(?:kind|outcome)\s*!?=~?\s*"([^"]*)"', EXPRESSIONS[place])
    for name in (name for names in named for name in names.split("|")):
        assert name in OUTCOMES or issubclass(getattr(errors, name), errors.ServiceError)


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_hits_are_counted_by_the_service_itself(place):
    """Ray Serve's cache takes pinned models for misses, and for hits whoever joins a load."""
    of_the_cache = {f"ray_serve_multiplexed_{what}_counter_total" for what in CACHE_COUNTERS}
    assert not names_in(EXPRESSIONS[place]) & of_the_cache


def test_the_dashboard_is_what_its_code_makes():
    assert grafana_dashboard.dashboard() == DASHBOARD, "run python deploy/grafana_dashboard.py"


def test_the_dashboard_draws_every_record_and_all_that_the_service_measures():
    names = [names_in(EXPRESSIONS[place]) for place in EXPRESSIONS]
    drawn = set().union(*(names_in(target["expr"]) for p in DRAWN for target in p["targets"]))
    assert drawn >= RECORDS
    for family in {re.sub("_(bucket|sum|count)$", "", name) for name in exported(SOURCES[0])}:
        assert any(name.startswith(family) for name in set().union(*names)), family


def test_an_expression_stands_in_one_place():
    """Either a rule records it, and the dashboard draws the record, or the dashboard has it."""
    recorded = {re.sub(r"\s", "", rule["expr"]) for rule in RULES}
    for panel in DRAWN:
        for target in panel["targets"]:
            assert re.sub(r"\{application=[^}]*\}|\s", "", target["expr"]) not in recorded


def test_ids_and_titles_are_of_one_panel_each():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(PANELS) + 3 == len(panels)
    for panel in DRAWN:
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs)) and set(refs) <= set("ABC")


def test_every_key_is_one_that_grafana_knows():
    """Grafana's own types drop what they do not know, as Grafana ignores a misspelt key."""
    register_default_plugins()
    understood = Dashboard.from_json(DASHBOARD)
    kept = json.loads(json.dumps(understood, cls=JSONEncoder))

    def lost(ours: object, theirs: object, path: str) -> Iterator[str]:
        if isinstance(ours, dict):
            for key, value in ours.items():
                yield from lost(value, (theirs or {}).get(key), f"{path}.{key}")
        elif isinstance(ours, list):
            for index, value in enumerate(ours):
                yield from lost(value, dict(enumerate(theirs or [])).get(index), f"{path}.{index}")
        elif ours != theirs:
            yield path

    assert list(lost(DASHBOARD, kept, "dashboard")) == []


def test_what_is_missing_is_not_drawn_as_zero():
    for panel in DRAWN:
        assert panel["fieldConfig"]["defaults"]["custom"]["spanNulls"] is False
        for target in panel["targets"]:
            assert not re.search(r"\bor\b|\bvector\(|\babsent", target["expr"])


def test_the_threshold_of_the_hit_rate_is_its_alerts():
    panel = PANELS["Share of forecasts whose model is in memory"]
    low, high = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert (low["color"], high["color"]) == ("red", "green")
    assert f":ratio_rate5m < {high['value']} " in ALERTS["ForecastHitRatioLow"]


def test_a_line_that_is_made_for_a_limit_finds_it():
    for panel in DRAWN:
        named = {o["matcher"]["options"] for o in panel["fieldConfig"]["overrides"]}
        assert named <= {target["legendFormat"] for target in panel["targets"]}
    budget = PANELS["Memory of models, by replica"]["fieldConfig"]["overrides"]
    assert budget, "the budget looks like a replica"


@pytest.mark.parametrize("title", PANELS)
def test_a_panel_says_what_to_make_of_it_and_takes_the_dashboards_choices(title):
    panel = PANELS[title]
    assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all('application=~"$application"' in target["expr"] for target in panel["targets"])
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(panel))) <= variables


def test_no_two_panels_lie_upon_each_other():
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in DASHBOARD["panels"]  # headings, too
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24  # Grafana's columns
