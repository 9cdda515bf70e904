"""Whatever the ids and bodies are: what is taken is good, and all else is a named error."""

import asyncio
import itertools
import json
import math
import string
from collections.abc import Iterator

import numpy as np
import obstore
import pytest
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from hypothesis import example, given
from hypothesis import strategies as st
from test_artifact import ARTIFACT

from forecast_service.artifact import folded_from_bytes
from forecast_service.contract import (
    MAX_FAULTS,
    MAX_HISTORY,
    MAX_VALUE,
    ForecastRequest,
    read_body,
    report_faults,
    respond,
)
from forecast_service.customer_ids import CUSTOMER_ID
from forecast_service.errors import (
    BodyTooLargeError,
    InvalidCustomerIdError,
    InvalidHistoryError,
    UnknownCustomerError,
)
from forecast_service.model import HORIZON, SEASON
from forecast_service.settings import StoreSettings
from forecast_service.store import ModelStore
from fuzzing import fuzz, json_values

MAX_BYTES = ForecastRequest.max_bytes
MODEL = folded_from_bytes(ARTIFACT, "customer_123")
HOSTILE = ["..", ".", "/", "\\", "%2e", "%2f", "\0", "\n", "\r", "~", ":", "file://", "*", " "]
HOSTILE += ["é", "\uff0e", "\uff0f", "\u202e", "\udce9", "a", "customer_123", "model.safetensors"]
any_ids = (
    st.lists(st.sampled_from(HOSTILE), max_size=6).map("".join)
    | st.from_regex(CUSTOMER_ID)  # with anything before and after
    | st.from_regex(CUSTOMER_ID, fullmatch=True)
    | st.text(st.characters(), max_size=70)
)


@pytest.fixture
def empty_store(tmp_path) -> ModelStore:
    """A store without a model, in which and around which lies what a path trick could reach."""
    for folder in tmp_path, tmp_path / "secret", tmp_path / "store":
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"secret")
    return ModelStore(StoreSettings(model_store=str(tmp_path / "store")))


@fuzz
@given(any_ids)
def test_an_id_is_refused_unread_or_asks_for_its_own_folder_only(empty_store, id):
    asked, get = [], obstore.get_async

    async def record(store, path, **options):
        asked.append(path)
        return await get(store, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(obstore, "get_async", record)
        with pytest.raises((InvalidCustomerIdError, UnknownCustomerError)) as raised:
            asyncio.run(empty_store.read(id))
    if raised.type is InvalidCustomerIdError:
        assert not asked
    else:
        assert asked == [f"{id}/model.safetensors"]
        assert set(id) <= {*string.ascii_letters, *string.digits, *"_.-"} and id[0] not in ".-"
        assert len(id) <= 64


days = st.floats(-MAX_VALUE, MAX_VALUE) | st.integers(-(10**12), 10**12)
histories = st.lists(days, min_size=SEASON, max_size=40)
nearly_days = days | st.sampled_from(
    [math.nan, math.inf, 1e12, -1e12, 1.0000001e12, 10**13, 10**400, "1", True, None, [], {}]
)
nearly_histories = st.lists(nearly_days, max_size=40) | st.builds(
    lambda day, count: [day] * count, nearly_days, st.sampled_from([6, 7, MAX_HISTORY + 1])
)
nearly_bodies = st.fixed_dictionaries(
    {"sequence_data": histories | nearly_histories | json_values},
    optional={"x": json_values},
)


def is_history(value: object) -> bool:
    """Return whether a value is what the contract calls a history."""
    return (
        isinstance(value, list)
        and SEASON <= len(value) <= MAX_HISTORY
        and all(type(day) in (int, float) and abs(day) <= MAX_VALUE for day in value)
    )


def read(body: bytes, cuts: list[int] = ()) -> ForecastRequest:
    """Read a body that arrives in pieces."""
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]

    def pieces() -> Iterator[dict]:
        for start, end in itertools.pairwise(places):
            yield {"type": "http.request", "body": body[start:end], "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}

    arriving = pieces()

    async def receive() -> dict:
        return next(arriving)

    request = Request({"type": "http", "headers": []}, receive)
    return asyncio.run(read_body(request, ForecastRequest))


def require_answer(request: ForecastRequest) -> None:
    """Require a forecast that is finite, and inside its interval."""
    answer = json.loads(respond(MODEL, request).model_dump_json(exclude_none=True))
    for lower, forecast, upper in zip(
        answer["lower"], answer["forecast"], answer["upper"], strict=True
    ):
        assert 0 <= lower <= forecast <= upper < math.inf
    assert len(answer["forecast"]) == HORIZON


def require_named_faults(error: RequestValidationError) -> None:
    """Require an answer of 422 that names the faults, and does not repeat what was sent."""
    answer = asyncio.run(report_faults(None, error))
    faults = json.loads(answer.body)["detail"]
    assert answer.status_code == 422 and 1 <= len(faults) <= MAX_FAULTS
    assert all(fault["loc"][0] == "body" and fault["msg"] for fault in faults)


@fuzz
@given(nearly_bodies | json_values, st.lists(st.integers(0, 500), max_size=3))
@example({"sequence_data": [MAX_VALUE] * SEASON}, [])
@example({"sequence_data": [1.0000001 * MAX_VALUE] * SEASON}, [])
@example({"sequence_data": [-1.0000001 * MAX_VALUE] * SEASON}, [])
def test_a_json_body_is_taken_exactly_if_it_is_what_the_contract_says(value, cuts):
    good = isinstance(value, dict) and [*value] == ["sequence_data"]
    good = good and is_history(value["sequence_data"])
    try:
        request = read(json.dumps(value).encode(), cuts)
    except RequestValidationError as error:
        assert not good
        require_named_faults(error)
    else:
        assert good and request.sequence_data == value["sequence_data"]
        require_answer(request)


@st.composite
def damaged_json(draw) -> bytes:
    """JSON of a body with a piece of it replaced by any bytes."""
    body = json.dumps({"sequence_data": draw(histories)}).encode()
    start, end = sorted(draw(st.integers(0, len(body))) for _ in range(2))
    return body[:start] + draw(st.binary(max_size=9)) + body[end:]


@fuzz
@given(damaged_json() | st.binary(max_size=300) | st.just(b"[" * MAX_BYTES + b"["))
def test_a_body_of_any_bytes_is_a_good_request_or_a_named_error(body):
    try:
        request = read(body)
    except RequestValidationError as error:
        assert len(body) <= MAX_BYTES
        require_named_faults(error)
    except BodyTooLargeError:
        assert len(body) > MAX_BYTES
    else:
        require_answer(request)


python_values = json_values | st.binary() | st.decimals() | st.complex_numbers() | st.dates()
python_values |= st.sets(st.integers()) | st.tuples(days, days) | histories.map(np.array)


@fuzz
@given(nearly_histories | st.lists(python_values, min_size=SEASON) | python_values)
def test_a_history_from_python_is_taken_or_one_kind_of_error(history):
    try:
        request = ForecastRequest.of(history)
    except InvalidHistoryError as error:
        assert not is_history(history) and "sequence_data" in str(error)
    else:
        require_answer(request)
