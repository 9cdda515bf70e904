"""Rules, dashboard and the service's metrics, on a real Prometheus and a live service.

It runs on the config that Ray writes, with the rules added, which scrapes every 10 s: most of what
this takes.
"""

import asyncio
import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from prometheus_server import Series, query, running, wait_for

from faulty_store import FaultyStore
from forecast_service.artifact import to_bytes
from forecast_service.errors import (
    CorruptModelError,
    InvalidCustomerIdError,
    StoreUnavailableError,
    UnknownCustomerError,
)
from forecast_service.model import HOLDOUT_DAYS, LAGS, fit, score
from forecast_service.settings import Settings
from lab import local_ray
from lab.chapter import NAMED, SERVICE, ask
from lab.cluster_metrics import read_metrics
from lab.serving import launch
from lab.traffic import send, zipf_trace
from serve_forecast_production import app
from train_models import load_footfall

CONTENT = Path(local_ray.__file__).parents[1]
RULES_FILE = CONTENT / "deploy" / "prometheus_rules.yaml"
RULES = yaml.safe_load(RULES_FILE.read_text())["groups"][0]["rules"]
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
ALERTS = {rule["alert"]: rule["expr"] for rule in RULES if "alert" in rule}
DASHBOARD = json.loads((CONTENT / "deploy" / "grafana_dashboard.json").read_text())
DRAWN = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())  # a heading has none
}
ERRORS = {
    str(error.status): error.__name__
    for error in (
        InvalidCustomerIdError,
        UnknownCustomerError,
        CorruptModelError,
        StoreUnavailableError,
    )
}
ERRORS["422"] = "InvalidBodyError"
METRICS_INTERVAL_S = 1
MODELS_PER_REPLICA = 4
ONE_MODEL_MB = 0.003  # a budget: a model takes 2.2 kB
OTHERS = [f"customer_{number:04d}" for number in range(1, 6)]

SERVED = {"application": "default", "deployment": "ForecastingService"}
ASKED = "ray_serve_multiplexed_get_model_requests_counter_total"
LOADED = "ray_serve_multiplexed_models_load_counter_total"
EVICTED = "ray_serve_multiplexed_models_unload_counter_total"
REQUESTS = "ray_forecast_requests_total"
FAILURES = "ray_forecast_load_failures_total"
BUCKETS = "ray_forecast_cold_load_seconds_bucket"
COUNTERS = ASKED, LOADED, EVICTED, REQUESTS, FAILURES, BUCKETS
SPLIT_BY = "outcome", "asked_by", "kind", "le"  # labels that tell a name's counters apart
Totals = dict[tuple[str, ...], float]  # by name and by what SPLIT_BY says
Values = dict[tuple[str, ...], float]  # by labels

DAMAGED, UNKNOWN, MALFORMED = "customer_damaged", "no_such_customer", "../secret"
WINDOW_S = 300  # of every rate in the rules


def total(series: Iterable[Series]) -> Totals:
    """Sum the service's counters over its replicas."""
    totals = Counter()
    for labels, value in series:
        if SERVED.items() <= labels.items() and labels["__name__"] in COUNTERS:
            split = (labels[label] for label in SPLIT_BY if label in labels)
            totals[labels["__name__"], *split] += value
    return dict(totals)


def exported(session_dir: Path) -> Totals:
    """Return what the addresses that Prometheus scrapes say now."""
    samples = read_metrics(session_dir)
    return total(({**sample.labels, "__name__": sample.name}, sample.value) for sample in samples)


def scraped(prometheus: str) -> Totals:
    return total(query(prometheus, f'{{__name__=~"{"|".join(COUNTERS)}"}}'))


def requests_in(totals: Totals) -> float:
    return sum(count for (name, *_), count in totals.items() if name == REQUESTS)


def traffic(store: FaultyStore) -> tuple[Counter, str]:
    """Ask, one request after another, for all that can happen. Returns outcomes, and the replica.

    The delays of the store are in the middle of a bucket of the histogram, not near its bounds.
    """
    seen, replicas = Counter(), set()

    def send_all(customer_ids: Sequence[str], trace: Iterable[int], value: float = 100) -> None:
        rows = [[value] * LAGS] * len(customer_ids)
        sent = send(SERVICE, customer_ids, rows, trace, concurrency=1, progress=False)
        answers = asyncio.run(sent)
        for status, cache in zip(answers.status, answers.cache, strict=True):
            seen[str(cache if status == "200" else ERRORS[status])] += 1
        replicas.update(set(answers.replica.tolist()) - {""})

    store.delay_s = 0.15
    send_all(NAMED, zipf_trace(len(NAMED), 24, skew=1, seed=0))
    send_all([DAMAGED, UNKNOWN, MALFORMED], [0, 1, 1, 2, 0, 0])
    send_all(NAMED[:1], [0, 0], value=float("nan"))
    store.delay_s = 0.35
    send_all(OTHERS[:2], [0, 1])
    store.delay_s, store.down = 0, True
    send_all(OTHERS[2:5], [0, 1, 2, 1])
    store.down = False
    (replica,) = replicas
    return seen, replica


@dataclass
class Phase:
    """What became of some traffic, as each side tells it."""

    prometheus: str  # its address
    at_s: float  # when to ask it: how far it extrapolates depends on that
    seen: Counter  # outcomes, say the clients
    replica: str  # that answered them
    grown: Totals  # what the traffic added, say the addresses that Prometheus scrapes

    def query(self, expression: str) -> Values:
        """Return the service's values, by the labels that tell one from another."""
        return {
            tuple(labels[label] for label in sorted(labels.keys() - {*SERVED, "__name__"})): value
            for labels, value in query(self.prometheus, expression, self.at_s)
            if SERVED.items() <= labels.items()
        }

    def added(self, counter: str) -> Values:
        return {tuple(split): n for (name, *split), n in self.grown.items() if name == counter}

    def seconds(self) -> float:
        """Return what Prometheus divides the growth of a counter by.

        That is the window, less by as much as it extrapolates from the samples that it has: a
        factor that all counters share, having the same timestamps, unless one of them was below 1.1
        of its growth before. Of that one Prometheus believes that it began at 0 a moment ago.
        """
        per_s = self.query(f"sum by (application, deployment) (rate({ASKED}[5m]))")
        return self.grown[ASKED,] / per_s[()]

    def rates(self, counter: str) -> Values:
        return {split: growth / self.seconds() for split, growth in self.added(counter).items()}

    def quantile(self, share: float) -> Values:
        """Return a quantile of the cold loads, taken to be spread evenly within a bucket."""
        growth = sorted((float(bound), count) for (bound,), count in self.added(BUCKETS).items())
        rank = share * growth[-1][1]
        upper = next(index for index, (_, count) in enumerate(growth) if count >= rank)
        (low, below), (high, within) = growth[upper - 1 : upper + 1]
        return {(): low + (high - low) * (rank - below) / (within - below)}

    def expected(self) -> dict[str, Values]:
        """Return what the rules should say, by record."""
        forecasts = self.seen["hit"] + self.seen["miss"]
        hits, errors = "ray_forecast_hits", "ray_forecast_errors"
        evictions = EVICTED.removesuffix("_total")
        cold_load = "deployment:ray_forecast_cold_load_seconds"
        return {
            f"deployment:{hits}_per_forecasts:ratio_rate5m": {(): self.seen["hit"] / forecasts},
            "replica:ray_serve_num_multiplexed_models:sum": {(self.replica,): MODELS_PER_REPLICA},
            f"deployment:{evictions}:rate5m": self.rates(EVICTED),
            f"{cold_load}:p50_rate5m": self.quantile(0.5),
            f"{cold_load}:p99_rate5m": self.quantile(0.99),
            "deployment_outcome:ray_forecast_requests:rate5m": self.rates(REQUESTS),
            f"deployment:{errors}_per_requests:ratio_rate5m": {
                (): 1 - forecasts / self.seen.total()
            },
            "deployment_kind_asked_by:ray_forecast_load_failures:rate5m": self.rates(FAILURES),
        }


@pytest.fixture(scope="module")
def store() -> FaultyStore:
    """A store with the models of NAMED and OTHERS, and a damaged one."""
    customer_ids, dates, counts = load_footfall()
    store = FaultyStore()
    for customer_id in (*NAMED, *OTHERS):
        series = counts[customer_ids.index(customer_id)]
        model = fit(customer_id, series[:-HOLDOUT_DAYS], str(dates[-HOLDOUT_DAYS - 1]))
        store.artifacts[customer_id] = to_bytes(model, score(model, series))
    store.artifacts[DAMAGED] = b"not a model"
    return store


@pytest.fixture(scope="module")
def session_dir(store) -> Iterator[Path]:
    """A Ray with the service, and one more that has unloaded a model, and reloaded another."""
    settings = {
        "model_store": store.url,
        "store_timeout_s": 2,
        "models_per_replica": MODELS_PER_REPLICA,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(CONTENT))  # for Ray's workers
        session_dir = local_ray.start(metrics_every_s=METRICS_INTERVAL_S)
        launch(app(Settings(**settings, reload_check_s=0)))
        reloading = Settings(**settings, reload_check_s=1, model_memory_mb=ONE_MODEL_MB)
        launch(app(reloading), "reloading", "/reloading")
        for customer_id in (NAMED[1], NAMED[0]):  # the second takes the first one's room
            answer = ask(customer_id, [100] * LAGS, f"{SERVICE}/reloading")
            assert answer.status_code == 200, answer.text
        artifact = store.artifacts[customer_id]
        customer_ids, dates, counts = load_footfall()
        series = counts[customer_ids.index(customer_id)]
        newer = fit(customer_id, series, str(dates[-1]))
        store.artifacts[customer_id] = to_bytes(newer, score(newer, series))
        reloads = "ray_forecast_reloads_total"
        wait_for(
            lambda: any(s.name == reloads and s.value for s in read_metrics(session_dir)),
            "a reloaded model",
        )
        store.artifacts[customer_id] = artifact
        yield session_dir
        local_ray.stop()


@pytest.fixture(scope="module")
def before(store, session_dir) -> Totals:
    """The counters after traffic that made each of them, well above its growth to come."""
    for _ in range(3):
        traffic(store)
    readings = [{}, exported(session_dir)]
    while readings[-1] != readings[-2]:
        time.sleep(2 * METRICS_INTERVAL_S)
        readings.append(exported(session_dir))
    return readings[-1]


@pytest.fixture(scope="module")
def phase(before, store, session_dir, tmp_path_factory) -> Iterator[Phase]:
    """More of the same traffic, between two scrapes of a Prometheus that saw none before."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((session_dir / "metrics/prometheus/prometheus.yml").read_text())
    config["rule_files"] = [str(RULES_FILE)]  # as the file says
    config["global"]["evaluation_interval"] = "1s"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with running(folder / "prometheus.yml", folder) as prometheus:
        wait_for(lambda: scraped(prometheus) == before, "a scrape before the traffic")
        seen, replica = traffic(store)
        count = requests_in(before) + seen.total()
        wait_for(lambda: requests_in(scraped(prometheus)) == count, "a scrape after the traffic")
        after = exported(session_dir)
        wait_for(lambda: scraped(prometheus) == after, "a scrape of all counters")
        grown = {key: after[key] - before[key] for key in after}
        yield Phase(prometheus, time.time(), seen, replica, grown)


@pytest.mark.parametrize("record", RECORDED)
def test_a_rule_says_what_was_counted(phase, record):
    assert phase.query(RECORDED[record]) == pytest.approx(phase.expected()[record], rel=1e-6)


def test_rates_are_per_second(phase):
    """Of n + 1 samples Prometheus makes at most n + 1.6 intervals; here n is 1 or more."""
    assert WINDOW_S / 2.6 < phase.seconds() < WINDOW_S


def test_requests_are_counted_by_what_the_clients_saw(phase):
    counted = {outcome: count for (outcome,), count in phase.added(REQUESTS).items() if count}
    assert counted == phase.seen
    assert counted.keys() == {"hit", "miss", *ERRORS.values()}


@pytest.mark.parametrize("status", ["404", "502", "503"])
def test_a_load_that_fails_is_counted_by_its_kind(phase, status):
    assert phase.added(FAILURES)["request", ERRORS[status]] == phase.seen[ERRORS[status]]


def test_a_load_that_succeeds_is_a_miss(phase):
    assert phase.added(BUCKETS)["+Inf",] == phase.grown[LOADED,] == phase.seen["miss"]


def test_a_damaged_model_raises_its_alert_the_first_time(phase):
    assert phase.query(ALERTS["ForecastModelCorrupt"])


def test_only_rays_own_list_of_models_names_customers(phase, session_dir):
    customers = {*NAMED, *OTHERS, DAMAGED, UNKNOWN, MALFORMED}
    naming = {s.name for s in read_metrics(session_dir) if customers & set(s.labels.values())}
    assert naming == {"ray_serve_registered_multiplexed_model_id"}


@pytest.mark.parametrize("place", DRAWN)
def test_every_panel_of_the_dashboard_has_something_to_draw(phase, place):
    for application in ".+", "default|reloading":  # all, or several: as Grafana puts them
        expression = DRAWN[place].replace("$application", application)
        wait_for(lambda expression=expression: bool(query(phase.prometheus, expression)), place)
    assert not query(phase.prometheus, DRAWN[place].replace("$application", "another"))


def test_the_memory_is_drawn_against_its_budget(phase):
    """Long after a replica has started: Ray forgets a gauge that is not set again."""
    drawn = [DRAWN[f"Memory of models, by replica {ref}"] for ref in "AB"]
    (memory,), (budget,) = (
        query(phase.prometheus, expression.replace("$application", "reloading"))
        for expression in drawn
    )
    assert budget[1] == ONE_MODEL_MB * 1e6 > memory[1] > budget[1] / 2


def test_a_model_that_made_room_is_drawn_by_its_reason(phase):
    expression = DRAWN["Models evicted or unloaded B"].replace("$application", "reloading")
    ((labels, _),) = query(phase.prometheus, expression)
    assert labels == {"reason": "budget"}


def test_alerts_fire_when_they_should_and_only_then():
    """Their windows are too long to wait for: promtool feeds the rules made-up series."""
    cases = Path(__file__).with_name("prometheus_rules_test.yaml")
    for command in (["check", "rules", RULES_FILE], ["test", "rules", cases]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
