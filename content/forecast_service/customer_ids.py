"""What a customer id looks like, wherever one comes in: a header, a setting, a token."""

import re

from forecast_service.errors import InvalidCustomerIdError

CUSTOMER_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
MODEL_ID_HEADER = "serve_multiplexed_model_id"  # Ray Serve takes hyphens for underscores, too


def check_customer_id(customer_id: str) -> str:
    """Return a customer id as it is: it can be a header's value and a folder's name.

    Raises:
        InvalidCustomerIdError: unless the id is all of CUSTOMER_ID.
    """
    if not customer_id:
        raise InvalidCustomerIdError(
            f"no model id: name the customer in the header {MODEL_ID_HEADER}"
        )
    if not CUSTOMER_ID.fullmatch(customer_id):
        raise InvalidCustomerIdError(
            "a customer id is 1 to 64 of A-Z, a-z, 0-9, '_', '.' and '-', "
            "and begins with a letter, a digit or '_'; turn another name into one, for training "
            "and requests alike, by name.encode().hex(), which bytes.fromhex() undoes, or over 32 "
            "bytes by hashlib.sha256(name.encode()).hexdigest()"
        )
    return customer_id
