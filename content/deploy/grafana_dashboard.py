"""Make grafana_dashboard.json, which draws what the service reports of itself, and Ray Serve of it.

    python deploy/grafana_dashboard.py

Most panels draw what prometheus_rules.yaml records, so Prometheus has to have those rules. No panel
fills in a zero: where nothing is reported, nothing is drawn.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
COLUMNS, HEIGHT = 24, 8  # Grafana's grid; of a panel in it
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
CHOSEN = '{application=~"$application"}'
ANSWERS = "ray_serve_http_request_latency_ms_bucket"
WORK = "ray_serve_deployment_processing_latency_ms_bucket"


@dataclass(frozen=True)
class Panel:
    """A graph over time, of what PromQL expressions say, by legend."""

    title: str
    description: str
    unit: str  # one of Grafana's
    queries: dict[str, str]
    most: float | None = None  # of the axis; it begins at 0
    bad: tuple[float, str] | None = None  # a threshold, and the side of it that is bad
    stacked: bool = False
    dashed: str | None = None  # the legend of a limit


def per_s(counter: str, by: str) -> str:
    """Return the expression for how often something happens a second."""
    return f"sum by ({by}) (rate({counter}{CHOSEN}[5m]))"


def quantile(share: float, buckets: str, by: str) -> str:
    """Return the expression for a quantile; without observations there is none, and not NaN."""
    return f"histogram_quantile({share}, {per_s(buckets, f'{by}, le')}) >= 0"


ROWS = {
    "What clients get": [
        Panel(
            "Requests by outcome",
            "hit or miss for a forecast, otherwise the error's name. UnknownCustomerError and "
            "InvalidBodyError are clients' mistakes: find who asks. StoreUnavailableError: look "
            "at the row on the model store. A name that is not in errors.py is a bug: its stack "
            "trace is in a replica's log.",
            "reqps",
            {
                "{{outcome}}": "sum by (outcome) "
                f"(deployment_outcome:ray_forecast_requests:rate5m{CHOSEN})"
            },
            stacked=True,
        ),
        Panel(
            "Share of requests without a forecast",
            "When it jumps, the panel on the left says whether clients or the store are to blame.",
            "percentunit",
            {"{{deployment}}": f"deployment:ray_forecast_errors_per_requests:ratio_rate5m{CHOSEN}"},
            most=1,
            bad=(0.05, "above"),
        ),
        Panel(
            "Answers that are errors, by status",
            "Ray Serve's count at the ingress. 503 beyond the StoreUnavailableErrors on the panel "
            "above: replicas have max_ongoing_requests under way, so add replicas, or raise it. "
            "401 and 403: a client's token. Behind the fast ingress, those that are refused as all "
            "replicas are full are not counted.",
            "reqps",
            {"{{error_code}}": per_s("ray_serve_num_http_error_requests_total", "error_code")},
            stacked=True,
        ),
        Panel(
            "Latency at the ingress",
            "Of all answers, errors included, and read from a histogram, so it is rough. When it "
            "grows while the time of a cold load does not, requests wait for a replica: add "
            "replicas.",
            "ms",
            {f"p{share * 100:g}": quantile(share, ANSWERS, "application") for share in (0.5, 0.99)},
        ),
        Panel(
            "Latency in each replica, p99",
            "Without the way through the ingress. One replica above the others: its node is busy, "
            "or it has a customer whom many ask for.",
            "ms",
            {"{{replica}}": quantile(0.99, WORK, "replica")},
        ),
        Panel(
            "Requests by replica",
            "A replica without requests while others have many: customers are few, or one of them "
            "asks for most. Behind the fast ingress, a customer stays with one replica.",
            "reqps",
            {"{{replica}}": per_s("ray_forecast_requests_total", "replica")},
            stacked=True,
        ),
    ],
    "Models in memory": [
        Panel(
            "Share of forecasts whose model is in memory",
            "Pinned models included; a request that waits for a load is none. When it falls, "
            "models leave before they are asked for again: raise models_per_replica, "
            "model_memory_mb or num_replicas. lab/capacity.py says how far.",
            "percentunit",
            {"{{deployment}}": f"deployment:ray_forecast_hits_per_forecasts:ratio_rate5m{CHOSEN}"},
            most=1,
            bad=(0.5, "below"),
        ),
        Panel(
            "Models in memory, by replica",
            "A replica that has just started has few, and loads them as customers ask.",
            "short",
            {"{{replica}}": f"sum by (replica) (ray_forecast_models_in_memory{CHOSEN})"},
        ),
        Panel(
            "Places taken in Ray Serve's cache, by replica",
            "At models_per_replica it is full, as is normal. Those of models that were unloaded "
            "count, too.",
            "short",
            {"{{replica}}": f"replica:ray_serve_num_multiplexed_models:sum{CHOSEN}"},
        ),
        Panel(
            "Memory of models, by replica",
            "By the models' own size_bytes. At the budget, model_memory_mb, it is full, as is "
            "normal: look at the hit rate. Without a budget, the line for it is missing.",
            "decbytes",
            {
                "{{replica}}": f"sum by (replica) (ray_forecast_model_memory_bytes{CHOSEN})",
                "budget of a replica": "max(ray_forecast_model_memory_budget_bytes" + CHOSEN + ")",
            },
            dashed="budget of a replica",
        ),
        Panel(
            "Models evicted or unloaded",
            "Evicted by Ray Serve's cache, at models_per_replica; unloaded by the service, for its "
            "budget or as they were idle. Near the requests per second, the cache does nothing: "
            "raise what limits it. Each of them is missing until it happens for the first time.",
            "ops",
            {
                "evicted": "sum(deployment:ray_serve_multiplexed_models_unload_counter:rate5m"
                f"{CHOSEN})",
                "unloaded: {{reason}}": per_s("ray_forecast_unloads_total", "reason"),
            },
        ),
    ],
    "The model store": [
        Panel(
            "Time of a cold load",
            "From asking the store for a model to having it in memory. Near store_timeout_s, by "
            "default 10 s, a load ends in a 503: look at the store, and at the network to it.",
            "s",
            {
                name: f"deployment:ray_forecast_cold_load_seconds:{name}_rate5m{CHOSEN}"
                for name in ("p50", "p99")
            },
            bad=(10, "above"),
        ),
        Panel(
            "Cold loads, by replica",
            "Models that came into memory since a request wanted them. Many after a start are "
            "normal. If they stay, see the hit rate.",
            "ops",
            {"{{replica}}": per_s("ray_forecast_cold_load_seconds_count", "replica")},
            stacked=True,
        ),
        Panel(
            "Failed reads of the model store, by kind",
            "For a request, or by the service itself, which follows the store. CorruptModelError: "
            "a model is damaged; `Could not load` in a replica's log says whose: train it again. "
            "StoreUnavailableError: 503 unless the model is in memory. ModelTooLargeError: raise "
            "model_memory_mb.",
            "ops",
            {
                "{{kind}} ({{asked_by}})": "sum by (kind, asked_by) "
                f"(deployment_kind_asked_by:ray_forecast_load_failures:rate5m{CHOSEN})"
            },
        ),
        Panel(
            "Models reloaded in 5 minutes",
            "Models that the store had a newer version of: after a training, up to every model "
            "times every replica. None after a training: is reload_check_s 0?",
            "short",
            {
                "{{deployment}}": "sum by (deployment) "
                f"(increase(ray_forecast_reloads_total{CHOSEN}[5m]))"
            },
        ),
    ],
}


def draw(panel: Panel, number: int, grid: dict[str, int]) -> dict:
    """Return a panel as Grafana takes it."""
    steps = [{"color": "green", "value": None}]
    if panel.bad:
        at, side = panel.bad
        colors = ("green", "red") if side == "above" else ("red", "green")
        steps = [{"color": colors[0], "value": None}, {"color": colors[1], "value": at}]
    defaults = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
        "custom": {
            "lineWidth": 2,
            "fillOpacity": 20 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "spanNulls": False,  # no line across a time in which nothing was reported
            "thresholdsStyle": {"mode": "dashed" if panel.bad else "off"},
        },
    }
    limit = {
        "matcher": {"id": "byName", "options": panel.dashed},
        "properties": [
            {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}},
            {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
        ],
    }
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": grid,
        "fieldConfig": {
            "defaults": defaults if panel.most is None else {**defaults, "max": panel.most},
            "overrides": [limit] if panel.dashed else [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend}
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def lay_out(rows: dict[str, Sequence[Panel]]) -> list[dict]:
    """Return rows of panels, three beside each other, under their headings."""
    drawn, y = [], 0
    width = COLUMNS // 3
    for heading, panels in rows.items():
        grid = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        row = {"id": len(drawn) + 1, "type": "row", "title": heading, "gridPos": grid}
        drawn.append({**row, "collapsed": False, "panels": []})
        for index, panel in enumerate(panels):
            below, beside = divmod(index, 3)
            grid = {"x": beside * width, "y": y + 1 + below * HEIGHT, "w": width, "h": HEIGHT}
            drawn.append(draw(panel, len(drawn) + 1, grid))
        y += 1 + -(-len(panels) // 3) * HEIGHT
    return drawn


def dashboard() -> dict:
    """Return the dashboard as Grafana imports it."""
    return {
        "title": "Forecasts, a model per customer",
        "uid": "forecast-multiplex",
        "tags": ["ray-serve"],
        "description": "Made by deploy/grafana_dashboard.py. Draws what prometheus_rules.yaml "
        "records. Import it in Grafana (Dashboards, New, Import), or provision it from a file.",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                },
                {
                    "name": "application",
                    "label": "Application",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": "label_values(ray_forecast_requests_total, application)",
                    "refresh": 2,  # whenever the time range changes
                    "includeAll": True,
                    "multi": True,
                    "allValue": ".+",
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": lay_out(ROWS),
    }


def main() -> None:
    """Write the dashboard beside this file."""
    FILE.write_text(json.dumps(dashboard(), indent=2) + "\n")


if __name__ == "__main__":
    main()
