"""Rules and dashboard ask for nothing that nobody measures: checked by name, without Ray.

A real Prometheus evaluates them in ci/tests/long/test_prometheus.py.
"""

import ast
import json
import re
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml

from forecast_service import errors
from template_lock import REQUIREMENTS

CONTENT = REQUIREMENTS.parent / "content"
GROUPS = yaml.safe_load((CONTENT / "deploy" / "prometheus_rules.yaml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
RECORDS = {rule["record"] for rule in RULES if "record" in rule}
DASHBOARD = json.loads((CONTENT / "deploy" / "grafana_dashboard.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
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
        f"ray_{call.args[0].value}{suffix}"
        for call in calls
        if call.args and isinstance(call.args[0], ast.Constant)
        for suffix in EXPORTED_AS.get(ast.unparse(call.func).rpartition(".")[2], ())
    }


def names_in(expression: str) -> set[str]:
    """Return the metrics and records that an expression asks for."""
    return set(NAME.findall(NOT_A_METRIC.sub(" ", expression))) - WORDS


MEASURED = exported(CONTENT / "forecast_service" / "metrics.py") | exported(
    Path(distribution("ray").locate_file("ray/serve/multiplex.py"))
)
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
    assert {"ray_serve_num_multiplexed_models"} <= MEASURED


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


def test_the_dashboard_is_small_and_draws_every_record():
    assert 6 <= len(PANELS) == len(DASHBOARD["panels"]) <= 8, "a title appears twice, or too many"
    drawn = set().union(*(names_in(EXPRESSIONS[place]) for place in EXPRESSIONS if " " in place))
    assert drawn >= RECORDS


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
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24  # Grafana's columns
