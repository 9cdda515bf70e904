"""What can go wrong, with what HTTP says about it. The first line of each docstring is public."""

from typing import ClassVar

RETRY_AFTER_S = 2


class ServiceError(Exception):
    """Something went wrong in the service.

    A subclass that sets no status or headers is answered as its base.
    """

    status: ClassVar[int] = 500
    headers: ClassVar[dict[str, str]] = {}


class InvalidCustomerIdError(ServiceError):
    """The model id is missing or malformed."""

    status = 400


class UnknownCustomerError(ServiceError):
    """This customer has no model."""

    status = 404


class InvalidHistoryError(ServiceError):
    """The history is not one to forecast from."""

    status = 422


class CorruptModelError(ServiceError):
    """This customer's stored model is damaged."""

    status = 502


class StoreUnavailableError(ServiceError):
    """The model store does not answer; retry after `Retry-After` seconds."""

    status = 503
    headers: ClassVar = {"Retry-After": str(RETRY_AFTER_S)}


class ModelTooLargeError(ServiceError):
    """This customer's model is larger than the service's memory for models."""

    status = 507


class LostBodyError(ServiceError):
    """The server has dropped the body, as it does in a request that asks for an `Upgrade`."""

    status = 400
    headers: ClassVar = {"Connection": "close"}  # what follows on it may be that body


class BodyTooSlowError(ServiceError):
    """The body takes too long to arrive."""

    status = 408
    headers: ClassVar = {"Connection": "close"}


class BodyTooLargeError(ServiceError):
    """The body is too large."""

    status = 413


class UnsupportedEncodingError(ServiceError):
    """The body is compressed."""

    status = 415
    headers: ClassVar = {"Accept-Encoding": "identity"}  # as RFC 9110 has it, section 15.5.16


class ClientLeftError(ServiceError):
    """The client left before its body was complete: nobody gets this answer."""

    status = 499  # no standard has one; nginx logs this


class MissingTokenError(ServiceError):
    """The header `Tenant-Authorization` has no token, or an invalid one."""

    status = 401
    headers: ClassVar = {"WWW-Authenticate": 'Bearer realm="forecasts"'}  # as RFC 6750 has it


class InvalidTokenError(MissingTokenError):
    """The header `Tenant-Authorization` has no token, or an invalid one."""

    headers: ClassVar = {
        "WWW-Authenticate": 'Bearer realm="forecasts", error="invalid_token"',
    }


class ForbiddenCustomerError(ServiceError):
    """The token is not for this customer, whether or not it exists."""

    status = 403
