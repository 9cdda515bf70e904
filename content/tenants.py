"""Keep tenants apart: decide from a token which customers its bearer may ask for.

    openssl rand -hex 32 > tenants.key
    export TENANT_KEY=$PWD/tenants.key
    python tenants.py issue 'acme_*' customer_123 --days 30

Environment:
    TENANT_KEY   path, relative to this file, of the key that tokens are checked with; by default
                 there is none, and everyone may ask for everyone. A file, because Ray shows the
                 environment of its processes in its dashboard. Read when a replica starts.

A key of 32 bytes or more is the secret of HS256: whoever holds it can check tokens and issue them.
A PEM file with an RSA public key is for RS256: its private half stays with whoever issues, or with
an identity provider. The key decides between the two, never the token.

A token is a JSON Web Token (RFC 7519, checked as RFC 8725 wants it) with these claims:
    customers    list of customer ids; one that ends in `*` stands for all that begin so: `acme_*`,
                 with the separator, for without it acme2_1 would be among them
    aud          AUDIENCE, so that a token for another service is none for this one
    exp          when it ends; tokens cannot be revoked one by one, so let them end soon

It travels in the header TENANT_HEADER, as `Bearer <token>`; `Authorization` is where Anyscale
expects its own. The forecast service checks it for whoever asks, over HTTP or through its handle.
So a door in front of the service that forgets to pass the token on stays closed. The handle is no
border against Python on the cluster, which could read the store itself. serve_stock_multiplex.py is
there to be compared with, and checks nothing.
"""

import argparse
import os
import re
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from model_store import CUSTOMER_ID

TENANT_HEADER = "tenant-authorization"  # in lower case, as the keys of gRPC's metadata have to be
AUDIENCE = "forecasts"
LEEWAY_S = 30  # by which clocks may differ
MAX_HEADER_CHARS = 8192
CACHED_TOKENS = 1024  # that a replica remembers as good; checking a signature takes longer
DAY_S = 24 * 60 * 60
MAX_DAYS = 366  # that a token is issued for
PATTERN = re.compile(rf"(?=.)({CUSTOMER_ID.pattern})?\*?")


class KeyFileError(ValueError):
    """The key file is missing, or not what it is wanted for."""


class MissingTokenError(Exception):
    """The request has no token."""


class InvalidTokenError(Exception):
    """The token is not one of ours, or no longer."""


class ForbiddenCustomerError(Exception):
    """The bearer may not ask for this customer, whether there is one or not."""


class Customers:
    """The customers that patterns name: ids, and beginnings of ids that end in `*`."""

    def __init__(self, patterns: list[str]):
        """Raise ValueError if a pattern is neither."""
        if not isinstance(patterns, list):
            raise ValueError("customers are a list of ids and patterns")
        for pattern in patterns:
            if not (isinstance(pattern, str) and PATTERN.fullmatch(pattern)):
                raise ValueError(f"{pattern!r} is no customer id, nor the beginning of one and '*'")
        self._ids = frozenset(pattern for pattern in patterns if pattern[-1] != "*")
        self._prefixes = tuple(pattern[:-1] for pattern in patterns if pattern[-1] == "*")

    def __contains__(self, customer_id: str) -> bool:
        return customer_id in self._ids or customer_id.startswith(self._prefixes)


class Key(NamedTuple):
    """What tokens are signed or checked with, and the one algorithm that it is good for."""

    algorithm: str  # HS256 or RS256
    material: bytes | RSAPublicKey | RSAPrivateKey


class Verified(NamedTuple):
    """What a token says, its signature checked."""

    customers: Customers
    expires_s: int  # since 1970


class Tenants:
    """Tells from tokens who may ask for whom."""

    def __init__(self, key: Key):
        """Take the key that tokens are checked with. Raises KeyFileError if it is a private one."""
        if isinstance(key.material, RSAPrivateKey):
            raise KeyFileError("TENANT_KEY is a private key: give the service its public half")
        self._key = key
        self._verify_once = lru_cache(CACHED_TOKENS)(self._verify)  # it remembers no failures

    @classmethod
    def from_environment(cls) -> "Tenants | None":
        """Return the tenants of TENANT_KEY; None without it. Raises KeyFileError."""
        return cls(read_key(key_file())) if is_on() else None

    def customers(self, authorization: str | None) -> Customers:
        """Return whom one may ask for with this value of the header TENANT_HEADER.

        Raises:
            MissingTokenError: if there is none.
            InvalidTokenError: if it is not a good one.
        """
        if not authorization:
            raise MissingTokenError(f"no token: send it in {TENANT_HEADER}, as 'Bearer <token>'")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise InvalidTokenError(f"{TENANT_HEADER} wants 'Bearer <token>'")
        if not authorization.isascii() or len(authorization) > MAX_HEADER_CHARS:
            raise InvalidTokenError("the token is not valid")
        verified = self._verify_once(token)
        if verified.expires_s <= time.time() - LEEWAY_S:
            raise InvalidTokenError("the token has expired")
        return verified.customers

    def require(self, authorization: str | None, customer_id: str) -> None:
        """Raise unless one may ask for this customer.

        No id at all is nobody's; to refuse it is left to who wants one.

        Raises what customers() raises, and ForbiddenCustomerError.
        """
        allowed = self.customers(authorization)
        if customer_id and customer_id not in allowed:
            raise ForbiddenCustomerError("the token is not for this customer")

    def _verify(self, token: str) -> Verified:
        try:
            claims = jwt.decode(
                token,
                self._key.material,
                algorithms=[self._key.algorithm],
                audience=AUDIENCE,
                leeway=LEEWAY_S,
                options={"require": ["exp", "aud", "customers"]},
            )
            return Verified(Customers(claims["customers"]), int(claims["exp"]))
        except jwt.ExpiredSignatureError:
            raise InvalidTokenError("the token has expired") from None
        except jwt.MissingRequiredClaimError as error:  # which is told of signed tokens only
            raise InvalidTokenError(f"the token has no claim {error.claim}") from None
        except (jwt.PyJWTError, ValueError):
            raise InvalidTokenError("the token is not valid") from None


def is_on() -> bool:
    """Return whether tenants are to be kept apart."""
    return "TENANT_KEY" in os.environ  # empty by mistake, it is not to mean off


def key_file() -> Path:
    """Return the path that TENANT_KEY gives."""
    return Path(__file__).parent / os.environ["TENANT_KEY"]


def read_key(path: Path) -> Key:
    """Return the key in a file; white space around it does not count. Raises KeyFileError."""
    try:
        data = path.read_bytes().strip()
    except OSError as error:
        raise KeyFileError(f"cannot read the key file {path}: {error.strerror}") from None
    name = "RS256" if data.startswith(b"-----BEGIN") else "HS256"
    algorithm = jwt.get_algorithm_by_name(name)
    try:
        key = algorithm.prepare_key(data)
    except (jwt.InvalidKeyError, TypeError):  # TypeError: it is encrypted
        raise KeyFileError(
            f"{path} holds neither an RSA key in PEM format nor a secret for HS256"
        ) from None
    if too_short := algorithm.check_key_length(key):
        raise KeyFileError(f"the key in {path} is too short. {too_short}")
    return Key(name, key)


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
    parser = argparse.ArgumentParser(description="Tokens for the forecast service.")
    command = parser.add_subparsers(required=True).add_parser("issue", help="print a token")
    command.add_argument(
        "customers", nargs="+", help="ids; one that ends in '*' stands for all that begin so"
    )
    command.add_argument("--days", type=float, default=30, help="that it is good for; default 30")
    command.add_argument(
        "--key",
        type=Path,
        default=key_file() if is_on() else None,
        help="file with the secret, or with the RSA private key; default: that of TENANT_KEY",
    )
    options = parser.parse_args()
    if not options.key:
        command.error("which key? Name its file with --key, or in TENANT_KEY")
    try:
        print(issue(read_key(options.key), options.customers, options.days))
    except ValueError as error:
        command.error(str(error))


if __name__ == "__main__":
    main()
