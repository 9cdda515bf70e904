"""Ask both services through a deployment handle; see what answers and errors leave in the logs."""

import pytest
from live_service import APP_NAMES, ON_BOTH, SERVICE, SMALL, LogWatch, make_cold
from ray import serve

from forecast_service.errors import (
    CorruptModelError,
    InvalidCustomerIdError,
    InvalidHistoryError,
    StoreUnavailableError,
    UnknownCustomerError,
)
from lab.serving import wait_until

REPLICA_LOGS = "replica_*.log"


def call(url: str, model_id: str, history: list, method: str = "forecast") -> dict:
    """Call a method of a service through a handle. Raises what the method raises."""
    handle = serve.get_app_handle(APP_NAMES[url]).options(multiplexed_model_id=model_id)
    return getattr(handle, method).remote(history).result(timeout_s=30)


@ON_BOTH
@pytest.mark.parametrize("days", [10, 28])
def test_the_handle_gives_the_http_answer(url, ask, histories, days):
    history = histories["customer_123"][:days]
    assert call(url, "customer_123", history) == ask("customer_123", history).json()


@ON_BOTH
def test_the_handle_raises_errors_by_type(url, store, fleet, histories):
    history = histories["customer_123"]
    store.artifacts["customer_0025"] = fleet["customer_0025"][:-1]
    for model_id, error in (
        ("customer_000", UnknownCustomerError),
        ("../customer_123", InvalidCustomerIdError),
        ("", InvalidCustomerIdError),
        ("customer_0025", CorruptModelError),
    ):
        with pytest.raises(error):
            call(url, model_id, history)
    with pytest.raises(InvalidHistoryError, match="at least 7"):
        call(url, "customer_123", history[:6])
    store.down = True
    with pytest.raises(StoreUnavailableError):
        call(url, "customer_0026", history)


def test_answer_puts_no_stack_trace_into_a_replicas_log(session_dir, ask, store, histories):
    log, history = LogWatch(session_dir), histories["customer_123"]
    store.artifacts["customer_0027"] = b"broken"
    for model_id, days, status in (
        ("customer_000", 28, 404),
        ("../etc", 28, 400),
        ("", 28, 400),
        ("customer_123", 6, 422),
        ("customer_0027", 28, 502),
    ):
        assert call(SERVICE, model_id, history[:days], "answer")["status"] == status
    wait_until(lambda: "Could not load customer_0027" in log.new(REPLICA_LOGS), "it is logged")
    assert "Traceback" not in log.new(REPLICA_LOGS)


@ON_BOTH
def test_ray_logs_a_stack_trace_of_what_forecast_raises(url, session_dir, store, histories):
    """Ray does, whatever the service: who wants none asks for answer()."""
    log = LogWatch(session_dir)
    with pytest.raises(UnknownCustomerError):
        call(url, "nobody_of_the_log", histories["customer_123"])
    wait_until(lambda: "nobody_of_the_log" in log.new(REPLICA_LOGS), "it is logged")
    assert "Traceback" in log.new(REPLICA_LOGS)


@ON_BOTH
def test_a_cold_load_is_logged_once(url, session_dir, ask, store, fleet):
    """The small service shows Ray's own lines, at DEBUG; production has one of its own."""
    make_cold(ask)
    log, name = LogWatch(session_dir), "customer_0023"
    replica_id = ask(name).headers["X-Replica-Id"]
    ask(name)
    said = f"Successfully loaded model '{name}'" if url == SMALL else f"Cold load of {name}"
    wait_until(lambda: said in log.new(f"*{replica_id}*.log"), f"{said!r} is logged")
    (line,) = [line for line in log.new(f"*{replica_id}*.log").splitlines() if said in line]
    assert line.startswith("DEBUG" if url == SMALL else "INFO")
    assert url == SMALL or f"{len(fleet[name])} bytes" in line
