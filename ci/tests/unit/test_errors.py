"""Errors say for themselves what HTTP answers, and a subclass is answered as its base."""

import inspect

import pytest
from starlette.testclient import TestClient

from forecast_service import errors
from forecast_service.contract import create_api, describe, describe_responses
from forecast_service.errors import (
    InvalidTokenError,
    MissingTokenError,
    ServiceError,
    StoreUnavailableError,
    UnknownCustomerError,
)

ERRORS = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, ServiceError)
]


class StoreOnFireError(StoreUnavailableError):
    """Sets nothing of its own."""


class StoreOnFireTodayError(StoreOnFireError):
    """Sets nothing either."""


class TeapotError(UnknownCustomerError):
    """Sets a status, and no headers."""

    status = 418


def answer(error: ServiceError):
    """Return what a service answers whose endpoint raises this."""
    api = create_api("a test")

    @api.get("/")
    async def fail() -> None:
        raise error

    with TestClient(api, raise_server_exceptions=False) as client:
        return client.get("/")


@pytest.mark.parametrize("error", ERRORS)
def test_each_is_answered_with_its_status_its_headers_and_what_it_says(error):
    answered = answer(error("what is wrong"))
    assert answered.status_code == error.status
    assert answered.json() == {"detail": "what is wrong"}
    assert (
        error.headers.items()
        <= {
            name.title() if name != "www-authenticate" else "WWW-Authenticate": value
            for name, value in answered.headers.items()
        }.items()
    )


@pytest.mark.parametrize("error", ERRORS)
def test_each_has_a_status_for_an_error_and_a_line_for_the_public(error):
    assert 400 <= error.status < 600
    assert "__doc__" in vars(error) and error.__doc__.strip(), "it has no docstring of its own"
    assert error.__doc__.partition("\n")[0].endswith(".")


@pytest.mark.parametrize("error", [StoreOnFireError, StoreOnFireTodayError])
def test_a_subclass_that_sets_nothing_is_answered_as_its_base(error):
    answered = answer(error("hot"))
    assert answered.status_code == 503
    assert answered.headers["Retry-After"] == StoreUnavailableError.headers["Retry-After"]
    assert describe(error("hot")) == {"status": 503, "detail": "hot"}


def test_a_subclass_may_set_one_and_inherit_the_other():
    assert answer(TeapotError("short and stout")).status_code == 418
    invalid = answer(InvalidTokenError("expired"))
    assert invalid.status_code == MissingTokenError.status == 401
    assert 'error="invalid_token"' in invalid.headers["WWW-Authenticate"]
    assert "error=" not in answer(MissingTokenError("none")).headers["WWW-Authenticate"]


def test_what_is_not_ours_is_a_500_that_says_nothing_of_itself():
    answered = answer(KeyError("a secret"))
    assert answered.status_code == 500
    assert "secret" not in answered.text


def test_the_description_of_the_api_has_the_status_and_the_words_of_each():
    described = describe_responses(UnknownCustomerError, StoreOnFireError)
    assert described[404]["description"] == UnknownCustomerError.__doc__
    assert described.keys() == {422, 404, 503}
