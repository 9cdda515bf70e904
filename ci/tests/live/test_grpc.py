"""The gRPC endpoint: the same answers as over HTTP, and a code for each error."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from live_service import STORE_DELAY_S

from forecast_service.errors import ServiceError
from lab.chapter import NAMED

COLD_CALLS = 200
FIVE_AT_ONCE = COLD_CALLS / 5  # loads in a row, with Ray's default limit


def test_grpc_gives_the_http_answer(ask, ask_grpc, histories):
    for name in NAMED:
        fields = {
            field.name: value for field, value in ask_grpc(name, histories[name]).ListFields()
        }
        assert {
            name: list(value) if name in ("forecast", "lower", "upper") else value
            for name, value in fields.items()
        } == ask(name, histories[name]).json()


@pytest.mark.parametrize(
    ("model_id", "values", "code"),
    [
        ("customer_000", 28, grpc.StatusCode.NOT_FOUND),
        ("../etc", 28, grpc.StatusCode.INVALID_ARGUMENT),
        (None, 28, grpc.StatusCode.INVALID_ARGUMENT),
        ("customer_123", 6, grpc.StatusCode.INVALID_ARGUMENT),
        ("customer_123", 10_001, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_grpc_names_an_error_by_its_code_and_says_what_is_wrong(ask_grpc, model_id, values, code):
    with pytest.raises(grpc.RpcError) as raised:
        ask_grpc(model_id, [1.0] * values)
    assert raised.value.code() == code
    assert raised.value.details() and "Traceback" not in raised.value.details()


def test_grpc_calls_a_broken_store_unavailable_and_a_broken_model_lost(ask_grpc, store):
    store.artifacts["customer_0051"] = b"broken"
    with pytest.raises(grpc.RpcError) as raised:
        ask_grpc("customer_0051", [1] * 28)
    assert raised.value.code() == grpc.StatusCode.DATA_LOSS
    store.down = True
    with pytest.raises(grpc.RpcError) as raised:
        ask_grpc("customer_0058", [1] * 28)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


def test_every_error_has_a_code(endpoints):
    from serve_grpc import GRPC_CODES

    def kinds(error: type[ServiceError]) -> list[type[ServiceError]]:
        return [error, *(kind for below in error.__subclasses__() for kind in kinds(below))]

    assert {kind.status for kind in kinds(ServiceError)} <= GRPC_CODES.keys()


def test_cold_calls_at_once_take_about_one_load(ask_grpc, store, histories):
    """With Ray's default of five requests at a time, they take forty."""
    ask_grpc(NAMED[0], [1] * 28)  # connects
    store.delay_s = STORE_DELAY_S

    def ask_cold(number: int) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as raised:
            ask_grpc(f"nobody_{number}", [1] * 28)
        return raised.value.code()

    started = time.perf_counter()
    assert ask_cold(-1) == grpc.StatusCode.NOT_FOUND
    one_s = time.perf_counter() - started
    with ThreadPoolExecutor(COLD_CALLS) as pool:
        started = time.perf_counter()
        codes = set(pool.map(ask_cold, range(COLD_CALLS)))
        all_s = time.perf_counter() - started
    assert codes == {grpc.StatusCode.NOT_FOUND}
    assert all_s < FIVE_AT_ONCE / 2 * one_s, f"{all_s / one_s:.1f} loads"


def test_a_message_of_megabytes_is_refused(ask_grpc):
    """By Ray, if it is started with RAY_SERVE_GRPC_MAX_MESSAGE_SIZE; by default it takes 2 GB."""
    with pytest.raises(grpc.RpcError) as raised:
        ask_grpc(NAMED[0], [1.0] * 1_000_000)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
