"""Read the file of the keys that tokens are checked with, and refuse what is no key for that.

A file holds keys of one kind:
    secrets             one a line, for HS256: whoever holds one can check tokens and issue them.
                        `openssl rand -hex 32` makes one; the text itself is the secret
    PEM                 public keys of RSA, one after another, for RS256: the private halves stay
                        with whoever issues
    a JSON Web Key Set  {"keys": [...]}, as an identity provider publishes it: each key with its
                        algorithm, and the id (`kid`) that the tokens name which it has signed

Several keys, so that a new one comes in beside the old one and no tenant is locked out: add it,
issue with it, and take the old one out when the last token that it signed has expired.

A set is a file, too, not a URL. PyJWKClient would hold up a replica's other requests while it
downloads, download again for every `kid` that somebody makes up, and let no replica start while the
provider does not answer. A cron job on each node does it better:

    curl -fsS https://login.example.com/.well-known/jwks.json -o keys.new && mv keys.new keys.json

The danger in a file of secrets is a public key that lost its armour: what everybody knows would
sign any token. So a line has to look random. A bare public key of 32 bytes, without any structure,
looks random as well, and nothing can tell it from a secret.
"""

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import AllowedPrivateKeys, AllowedPublicKeys

MIN_SECRET, MAX_SECRET = 32, 256  # characters; an RSA key has more in every encoding
MAX_SECRETS = 4  # in a file: more lines are one key, wrapped
MIN_DISTINCT = 8  # characters of a secret that differ; 32 random hexadecimal digits have about 14
SECRET_TEXT = re.compile(r"[\w!#$%&()*+./?@^|~-]+=*", re.ASCII)  # no blank, quote, bracket or colon
PHRASE = re.compile(r"[a-z]+([-_.][a-z]+)+|[A-Z]+([-_.][A-Z]+)+")  # words of one case
PEM_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
LENGTH = rb"(?:[\x00-\x7f]|\x81.|\x82..|\x83...)"  # as DER writes that of a value
KEY_BYTES = re.compile(  # how keys and certificates begin, in whatever they are wrapped
    rb"\x30%(n)b(?:\x02\x01[\x00-\x03]|\x02%(n)b\x00|\x30%(n)b(?:\x02|\x06|\xa0\x03\x02)|\x06\x09\x2a)"
    rb"|\x00\x00\x00[\x07-\x22](?:ssh-|ecdsa-|sk-)"
    rb"|-----BEGIN|ssh-|ecdsa-"
    rb"|\{[\s\x20-\x7e]*\Z" % {b"n": LENGTH},
    re.DOTALL,
)
WHAT_TO_DO = (
    f"A secret is a line of {MIN_SECRET} to {MAX_SECRET} random characters: `openssl rand -hex 32` "
    "makes one. A public key goes in as a PEM file, from -----BEGIN PUBLIC KEY----- to the END, or "
    'in a JSON Web Key Set, {"keys": [...]}'
)


class KeyFileError(ValueError):
    """The key file is missing, or not what it is wanted for."""


class Key(NamedTuple):
    """What tokens are signed or checked with, and the one algorithm that it is good for."""

    algorithm: str  # as JSON Web Tokens call it: HS256, RS256, ...
    material: bytes | AllowedPublicKeys | AllowedPrivateKeys
    id: str | None = None  # that the tokens name which it has signed

    @property
    def is_secret(self) -> bool:
        """Whether tokens are signed and checked with the same."""
        return isinstance(self.material, bytes)

    @property
    def is_private(self) -> bool:
        """Whether it is the half that tokens are signed with, and not checked."""
        return hasattr(self.material, "private_bytes")


class KeyFile:
    """A file of keys, and whether it has changed."""

    def __init__(self, path: Path):
        self._path = path
        self._in_use = self._last = self._read()

    def keys(self) -> list[Key]:
        """Return the keys that the file had when it was first read. Raises KeyFileError."""
        return self._parse(self._in_use)

    def changed_keys(self) -> list[Key]:
        """Return the keys of a file that has changed since, and has settled; else none.

        It has settled when two calls find the same: somebody may still be writing it.

        Raises:
            KeyFileError: if they are none. Once: the next call is about the next change.
        """
        found = self._read()
        settled, self._last = found == self._last, found
        if not settled or found == self._in_use:
            return []
        self._in_use = found
        return self._parse(found)

    def _read(self) -> bytes | str:
        """Return what is in the file, or what is wrong."""
        try:
            return self._path.read_bytes()
        except OSError as error:
            return f"cannot read the key file {self._path}: {error.strerror}"

    def _parse(self, found: bytes | str) -> list[Key]:
        if isinstance(found, str):
            raise KeyFileError(found)
        try:
            return parse_keys(found)
        except KeyFileError as error:
            raise KeyFileError(f"the key file {self._path} {error}") from None


def parse_keys(data: bytes) -> list[Key]:
    """Return the keys in the bytes of a file, at least one. Raises KeyFileError."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise KeyFileError(f"is not text. {WHAT_TO_DO}") from None
    if text.lstrip().startswith("{"):
        return _parse_set(text)
    return _parse_pem(text) if "-----" in text else _parse_secrets(text)


def _parse_secrets(text: str) -> list[Key]:
    secrets = [line.strip() for line in text.splitlines() if line.strip()]
    if not 0 < len(secrets) <= MAX_SECRETS:
        raise KeyFileError(f"holds {len(secrets)} lines, not 1 to {MAX_SECRETS}. {WHAT_TO_DO}")
    for number, secret in enumerate(secrets, start=1):
        if fault := _fault_of(secret):
            raise KeyFileError(f"has in line {number} what {fault}. {WHAT_TO_DO}")
    return [Key("HS256", secret.encode()) for secret in secrets]


def _fault_of(secret: str) -> str | None:
    """Return why a line is no random secret, if it is none."""
    if any(map(KEY_BYTES.match, _decoded(secret))):
        return "is a key, a certificate or a token, which others may have: not a secret"
    if len(secret) < MIN_SECRET:
        return "is too short for a secret"
    if len(secret) > MAX_SECRET:
        return "is too long for a secret, as keys and certificates are"
    if not SECRET_TEXT.fullmatch(secret):
        return "is no secret: blanks, quotes, colons and brackets are other formats'"
    if len(set(secret)) < MIN_DISTINCT or secret in (secret * 2)[1:-1] or PHRASE.fullmatch(secret):
        return "is not random"
    return None


def _decoded(line: str) -> Iterator[bytes]:
    """Iterate over what a line may stand for: hexadecimal digits, base64, the start of a JWT."""
    with suppress(ValueError):
        yield bytes.fromhex(line)
    digits = line.partition(".")[0].rstrip("=").replace("-", "+").replace("_", "/")
    with suppress(ValueError):
        yield b64decode(digits[: len(digits) // 4 * 4], validate=True)


def _parse_pem(text: str) -> list[Key]:
    blocks = list(PEM_BLOCK.finditer(text))
    if not blocks or PEM_BLOCK.sub("", text).strip():
        raise KeyFileError(
            "is no PEM file: it has more in it than whole keys, each from -----BEGIN to -----END"
        )
    return [_parse_block(block) for block in blocks]


def _parse_block(block: re.Match) -> Key:
    if "CERTIFICATE" in block[1]:
        raise KeyFileError(
            "holds a certificate. Put its public key in: openssl x509 -pubkey -noout -in FILE"
        )
    try:
        material = jwt.get_algorithm_by_name("RS256").prepare_key(block[0])
    except (jwt.InvalidKeyError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        raise KeyFileError(
            f"has a {block[1]} that is damaged, encrypted, or no RSA key: other kinds go into a "
            "JSON Web Key Set"
        ) from None
    return _long_enough(Key("RS256", material))


def _parse_set(text: str) -> list[Key]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: it is nested without end
        raise KeyFileError("begins as JSON, and is none: it is damaged") from None
    if "keys" not in found:
        raise KeyFileError('is JSON, but no key set: one key goes in as {"keys": [{...}]}')
    try:
        usable = jwt.PyJWKSet.from_dict(found)  # without those of other purposes or kinds
    except (jwt.PyJWTError, KeyError, TypeError, NotImplementedError):  # KeyError: a part lacks
        raise KeyFileError("is a JSON Web Key Set without a usable key") from None
    keys = [
        Key(key.algorithm_name, key.key, key.key_id)
        for key in usable
        if key.public_key_use in (None, "sig")
    ]
    if not keys:
        raise KeyFileError("is a JSON Web Key Set without a key for signatures")
    if any(key.is_secret for key in keys):
        raise KeyFileError("has a secret in a JSON Web Key Set: put its text on a line, alone")
    return [_long_enough(key) for key in keys]


def _long_enough(key: Key) -> Key:
    if too_short := jwt.get_algorithm_by_name(key.algorithm).check_key_length(key.material):
        raise KeyFileError(f"has a key that is too short. {too_short}")
    return key
