"""Issue a token for the forecast service, as forecast_service/tokens.py checks them.

    (umask 077; openssl rand -hex 32 > ~/tenants.key)
    python -m lab.issue_token 'acme_*' customer_123 --days 30 --key ~/tenants.key

The key lies outside the checkout, which is uploaded to a cluster.
"""

import argparse
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from forecast_service.tokens import (
    AUDIENCE,
    MAX_HEADER_CHARS,
    Customers,
    Key,
    KeyFileError,
    read_key,
)

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
    if isinstance(key.material, RSAPublicKey):
        raise KeyFileError("tokens are issued with the private key, not with the public one")
    now_s = int(time.time())
    claims = {
        "customers": customers,
        "aud": AUDIENCE,
        "iat": now_s,
        "exp": now_s + int(days * DAY_S),
    }
    token = jwt.encode(claims, key.material, key.algorithm)
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
        "--key", type=Path, required=True, help="file with the secret, or the RSA private key"
    )
    options = parser.parse_args()
    try:
        print(issue(read_key(options.key), options.customers, options.days))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
