"""Keys and key files for the tests of tokens: good ones."""

import json

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from jwt.algorithms import AllowedPrivateKeys, ECAlgorithm, OKPAlgorithm, RSAAlgorithm

SECRETS = (  # as `openssl rand` makes them, -hex 32 and -base64 32
    "5dd7f1a2b98b5f4c0b0ea6c4a3c6e2f83d52aa1de4c95f8b7c6e90d1f2a4b3c8",
    "pX3vQm9sZ0yTnW7cR2bLk5hJd8fGa1eUoIiKxYzVwSQ=",
)
PEM = serialization.Encoding.PEM


def private_pem(key: AllowedPrivateKeys, password: bytes | None = None) -> bytes:
    lock = serialization.NoEncryption()
    if password:
        lock = serialization.BestAvailableEncryption(password)
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, lock)


def public_pem(key: AllowedPrivateKeys) -> bytes:
    """Return the public half of a private key."""
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(PEM, info)


def web_key(key: AllowedPrivateKeys, private: bool = False) -> dict:
    """Return the public half of a private key, or all of it, as a JSON Web Key."""
    kinds = {RSAPrivateKey: RSAAlgorithm, EllipticCurvePrivateKey: ECAlgorithm}
    found = [algorithm for kind, algorithm in kinds.items() if isinstance(key, kind)]
    (algorithm,) = found or [OKPAlgorithm]
    return algorithm.to_jwk(key if private else key.public_key(), as_dict=True)


def key_set(**keys: AllowedPrivateKeys) -> bytes:
    """Return the set that the owner of private keys publishes; their names are the ids."""
    published = [web_key(key) | {"kid": name, "use": "sig"} for name, key in keys.items()]
    return json.dumps({"keys": published}, indent=2).encode()
