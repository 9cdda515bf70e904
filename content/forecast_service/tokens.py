"""Keep tenants apart: decide from a token which customers its bearer may ask for.

The setting `tenant_key` names the file of the keys that tokens are checked with: keys.py says what
it may hold. A file, because Ray shows arguments and environments in its dashboard. A replica reads
it when it starts, and looks at it every KEYS_CHECK_S: a key that is added or taken out counts after
two looks, and no replica has to start anew with an empty cache. What is no key file is said in the
log, and leaves the keys as they are. Each key has its algorithm; a token never chooses.

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

import logging
import re
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import jwt

from forecast_service.customer_ids import CUSTOMER_ID
from forecast_service.errors import ForbiddenCustomerError, InvalidTokenError, MissingTokenError
from forecast_service.keys import Key, KeyFile, KeyFileError

TENANT_HEADER = "tenant-authorization"  # in lower case, as the keys of gRPC's metadata have to be
AUDIENCE = "forecasts"
LEEWAY_S = 30  # by which clocks may differ
MAX_HEADER_CHARS = 8192
CACHED_TOKENS = 1024  # that a replica remembers as good; checking a signature takes longer
KEYS_CHECK_S = 2  # between two looks at the key file
PATTERN = re.compile(rf"(?=.)({CUSTOMER_ID.pattern})?\*?")
logger = logging.getLogger("ray.serve.forecasts")


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


class Verified(NamedTuple):
    """What a token says, its signature checked."""

    customers: Customers
    expires_s: int  # since 1970


class Tenants:
    """Tells from tokens who may ask for whom."""

    def __init__(self, keys: Sequence[Key]):
        """Take the keys that tokens are checked with. Raises KeyFileError if one is private."""
        self._use(keys)

    @classmethod
    def of(cls, path: Path | None) -> "Tenants | None":
        """Return those of a key file, which is followed; None, if there is none.

        Raises KeyFileError.
        """
        if path is None:
            return None
        file = KeyFile(path)
        tenants = cls(file.keys())
        Thread(target=_follow, args=(weakref.ref(tenants), file), daemon=True).start()
        return tenants

    def follow(self, file: KeyFile) -> None:
        """Use the keys of a file if they have changed, and are good ones."""
        try:
            if keys := file.changed_keys():
                self._use(keys)
                logger.info(f"Tokens are checked with new keys: {len(keys)} in the key file.")
        except KeyFileError as error:
            logger.warning(f"Tokens are checked with the same keys as before: {error}")

    def _use(self, keys: Sequence[Key]) -> None:
        if any(key.is_private for key in keys):
            raise KeyFileError("tenant_key is a private key: give the service its public half")
        # One assignment, for the thread that follows the file: keys and what they found good.
        self._verify_once = lru_cache(CACHED_TOKENS)(partial(_verify, keys))  # no failures

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


def _follow(tenants: "weakref.ref[Tenants]", file: KeyFile) -> None:
    """Let tenants follow their file, in a thread: a file may be slow to read."""
    while True:
        time.sleep(KEYS_CHECK_S)
        following = tenants()
        if following is None:
            return
        following.follow(file)
        del following  # so that it can end while this sleeps


def _verify(keys: Sequence[Key], token: str) -> Verified:
    try:
        claims = _signed_claims(keys, token)
        return Verified(Customers(claims["customers"]), int(claims["exp"]))
    except jwt.ExpiredSignatureError:
        raise InvalidTokenError("the token has expired") from None
    except jwt.MissingRequiredClaimError as error:  # which is told of signed tokens only
        raise InvalidTokenError(f"the token has no claim {error.claim}") from None
    except (jwt.PyJWTError, ValueError):
        raise InvalidTokenError("the token is not valid") from None


def _signed_claims(keys: Sequence[Key], token: str) -> dict:
    """Return the claims of a token that one of the keys has signed. Raises PyJWTError."""
    named = jwt.get_unverified_header(token).get("kid")
    for key in keys:
        if named is None or key.id in (None, named):
            with suppress(jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
                return jwt.decode(
                    token,
                    key.material,
                    algorithms=[key.algorithm],
                    audience=AUDIENCE,
                    leeway=LEEWAY_S,
                    options={"require": ["exp", "aud", "customers"]},
                )
    raise jwt.InvalidSignatureError("no key has signed it")
