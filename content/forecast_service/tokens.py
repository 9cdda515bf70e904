"""Keep tenants apart: decide from a token which customers its bearer may ask for.

The setting `tenant_key` names the file of the key that tokens are checked with. A file, because Ray
shows arguments and environments in its dashboard; a replica reads it when it starts.

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
So an endpoint in front of the service that forgets to pass the token on stays closed. The handle is
no border against Python on the cluster, which could read the store itself.
"""

import re
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from forecast_service.customer_ids import CUSTOMER_ID
from forecast_service.errors import ForbiddenCustomerError, InvalidTokenError, MissingTokenError

TENANT_HEADER = "tenant-authorization"  # in lower case, as the keys of gRPC's metadata have to be
AUDIENCE = "forecasts"
LEEWAY_S = 30  # by which clocks may differ
MAX_HEADER_CHARS = 8192
CACHED_TOKENS = 1024  # that a replica remembers as good; checking a signature takes longer
PATTERN = re.compile(rf"(?=.)({CUSTOMER_ID.pattern})?\*?")


class KeyFileError(ValueError):
    """The key file is missing, or not what it is wanted for."""


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
            raise KeyFileError("tenant_key is a private key: give the service its public half")
        self._key = key
        self._verify_once = lru_cache(CACHED_TOKENS)(self._verify)  # it remembers no failures

    @classmethod
    def of(cls, key_file: Path | None) -> "Tenants | None":
        """Return those of a key file; None, if there is none. Raises KeyFileError."""
        return cls(read_key(key_file)) if key_file else None

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
