"""A customer id is one wherever it goes, and a name that is none can be turned into one."""

import hashlib
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forecast_service.customer_ids import check_customer_id
from forecast_service.errors import InvalidCustomerIdError

HEX_BYTES = 32  # of a name that fits into an id as hex


def advice(name: str) -> list[str]:
    """Return the Python that the refusal of a name says to turn it into an id with."""
    with pytest.raises(InvalidCustomerIdError) as refused:
        check_customer_id(name)
    return re.findall(r"\S*name\.encode\(\)\S*\)", str(refused.value))


@given(st.text(min_size=1, max_size=200))
@example("store 12/Nord")
@example("../../etc/passwd")
@example("-")
@example("\N{GREEK SMALL LETTER ALPHA}" * 16)
@example("\N{GREEK SMALL LETTER ALPHA}" * 17)
def test_what_the_refusal_of_a_name_says_makes_an_id_of_it(name):
    try:
        assert check_customer_id(name) == name
    except InvalidCustomerIdError:
        in_hex, hashed = (eval(code, {"name": name, "hashlib": hashlib}) for code in advice(name))
        if len(name.encode()) <= HEX_BYTES:
            assert bytes.fromhex(check_customer_id(in_hex)).decode() == name
        assert check_customer_id(hashed) == hashlib.sha256(name.encode()).hexdigest()


def test_the_refusal_says_the_rule_how_to_get_back_and_where_hex_ends():
    with pytest.raises(InvalidCustomerIdError) as refused:
        check_customer_id("store 12/Nord")
    for part in "1 to 64 of A-Z", "begins with", "bytes.fromhex()", f"over {HEX_BYTES} bytes":
        assert part in str(refused.value)
