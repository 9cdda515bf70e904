"""Issue a token for the forecast service, as forecast_service/tokens.py checks them.

    (umask 077; openssl rand -hex 32 > ~/tenants.key)
    python -m lab.issue_token 'acme_*' customer_123 --days 30 --key ~/tenants.key

The key lies outside the checkout, which is uploaded to a cluster. A file's first key signs; the
service checks with all of them. So to change a secret, add the new one as a second line where the
service reads it; then make it the first line; and take the old one out when the last token that it
signed has expired.
"""

import argparse
import time
from pathlib import Path

import jwt

from forecast_service.keys import Key, KeyFile, KeyFileError
from forecast_service.tokens import AUDIENCE, MAX_HEADER_CHARS, Customers

DAY_S = 24 * 60 * 60
MAX_DAYS = 366  # that a token is issued for


def issue(key: Key, customers: list[str], days: float) -> str:
    """Return a token.

    Raises:
        ValueError: if customers or days are not what a token can have.
        KeyFileError: if the key is a public one.
    """
    Customers(customers)
    if not 0 < days <= MAX_DAYS:
        raise ValueError(f"a token is good for more than 0 and up to {MAX_DAYS} days, not {days:g}")
    if not (key.is_secret or key.is_private):
        raise KeyFileError("tokens are issued with the private key, not with the public one")
    now_s = int(time.time())
    claims = {
        "customers": customers,
        "aud": AUDIENCE,
        "iat": now_s,
        "exp": now_s + int(days * DAY_S),
    }
    headers = {"kid": key.id} if key.id else None
    token = jwt.encode(claims, key.material, key.algorithm, headers)
    if len("Bearer ") + len(token) > MAX_HEADER_CHARS:
        raise ValueError("too many customers for a header: name what their ids begin with, and '*'")
    return token


def main() -> None:
    """Print the token that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "customers", nargs="+", help="ids; one that ends in '*' stands for all that begin so"
    )
    parser.add_argument("--days", type=float, default=30, help="that it is valid for; default 30")
    parser.add_argument(
        "--key", type=Path, required=True, help="file with the secret, or the private key"
    )
    options = parser.parse_args()
    try:
        print(issue(KeyFile(options.key).keys()[0], options.customers, options.days))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
