"""Key files: which keys they hold, and that nothing which others may know is taken for a secret."""

import base64
import json
import secrets
import subprocess
import textwrap
from datetime import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from hypothesis import given, settings
from hypothesis import strategies as st
from key_files import SECRETS, key_set, private_pem, public_pem, web_key

from forecast_service.keys import MAX_SECRETS, Key, KeyFile, KeyFileError, parse_keys

RSA = rsa.generate_private_key(65537, 2048)
KEYS = {
    "rsa": RSA,
    "rsa 1024": rsa.generate_private_key(65537, 1024),
    "rsa 3072": rsa.generate_private_key(65537, 3072),
    "dsa": dsa.generate_private_key(2048),
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "p521": ec.generate_private_key(ec.SECP521R1()),
    "k256": ec.generate_private_key(ec.SECP256K1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "ed448": ed448.Ed448PrivateKey.generate(),
    "x25519": x25519.X25519PrivateKey.generate(),
}
Encoding = serialization.Encoding
DER, PEM, SSH = Encoding.DER, Encoding.PEM, Encoding.OpenSSH
PUBLIC, PRIVATE = serialization.PublicFormat, serialization.PrivateFormat
CLEAR = serialization.NoEncryption()
LOCKED = serialization.BestAvailableEncryption(b"password")


def certificate(key) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "login.example.com")])
    day = datetime(2026, 1, 1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1 << 100, day, day)
    edwards = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return builder.sign(key, None if edwards else hashes.SHA256())


def ders() -> dict[str, bytes]:
    """Return keys and certificates of every kind, without armour."""
    found = {}
    for name, key in KEYS.items():
        public = key.public_key()
        found[f"{name} public"] = public.public_bytes(DER, PUBLIC.SubjectPublicKeyInfo)
        found[f"{name} private"] = key.private_bytes(DER, PRIVATE.PKCS8, CLEAR)
        found[f"{name} encrypted"] = key.private_bytes(DER, PRIVATE.PKCS8, LOCKED)
        if name.startswith("rsa"):
            found[f"{name} PKCS#1"] = public.public_bytes(DER, PUBLIC.PKCS1)
        if name[0] in "rdpk":
            traditional = PRIVATE.TraditionalOpenSSL
            found[f"{name} traditional"] = key.private_bytes(DER, traditional, CLEAR)
        if name[0] in "rpke":
            found[f"{name} certificate"] = certificate(key).public_bytes(DER)
    return found


DERS = ders()
ENCODINGS = {
    "raw": bytes,
    "base64": base64.b64encode,
    "base64url": base64.urlsafe_b64encode,
    "base64url without padding": lambda der: base64.urlsafe_b64encode(der).rstrip(b"="),
    "hex": lambda der: der.hex().encode(),
    "HEX": lambda der: der.hex().upper().encode(),
    "hex with colons": lambda der: der.hex(":").encode(),
    "base64 of PEM": lambda der: base64.b64encode(
        b"-----BEGIN PUBLIC KEY-----\n%s-----END PUBLIC KEY-----\n" % base64.encodebytes(der)
    ),
    "PEM without BEGIN": lambda der: base64.encodebytes(der) + b"-----END PUBLIC KEY-----\n",
    "PEM without END": lambda der: b"-----BEGIN PUBLIC KEY-----\n" + base64.encodebytes(der),
    "PEM with \\n in it": lambda der: (
        rb"-----BEGIN PUBLIC KEY-----\n%s\n-----END PUBLIC KEY-----" % base64.b64encode(der)
    ),
    "an assignment": lambda der: b"KEY=" + base64.b64encode(der),
    "DKIM": lambda der: b"v=DKIM1;k=rsa;p=" + base64.b64encode(der),
}
WIDTHS = None, 48, 64, 76, 100  # of lines


def wrapped(text: bytes, width: int | None) -> bytes:
    if width is None or not text.isascii() or b"\n" in text:
        return text
    return "\n".join(textwrap.wrap(text.decode(), width)).encode()


def refuse(data: bytes) -> str:
    """Fail if data are taken for keys. Return what is said, which does not repeat them."""
    with pytest.raises(KeyFileError) as raised:
        parse_keys(data)
    said = str(raised.value)
    words = [word for line in data.splitlines() for word in line.split() if len(word) > 30]
    assert not any(word.decode("latin-1") in said for word in words)
    return said


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_key_or_certificate_without_its_armour_is_refused(encoding):
    for kind, der in DERS.items():
        for width in WIDTHS:
            for end in b"", b"\n", b"\r\n":
                with pytest.raises(KeyFileError):
                    parse_keys(wrapped(ENCODINGS[encoding](der), width) + end)
                    pytest.fail(f"a {kind} key, {width} characters a line, was taken for a secret")


def test_a_public_key_that_lost_its_armour_is_told_how_to_come_in():
    said = refuse(base64.b64encode(DERS["rsa public"]))
    assert "openssl rand -hex 32" in said and "-----BEGIN PUBLIC KEY-----" in said


BODY = base64.encodebytes(DERS["rsa public"]).splitlines(keepends=True)
LINES = public_pem(RSA).splitlines(keepends=True)
JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJhdWQiOiJmb3JlY2FzdHMifQ.dBjftJeZ4CVPmB92K27uhbUJU1"
WRONG_FILES = {
    "empty": (b"", "0 lines"),
    "blank": (b" \n\n\t", "0 lines"),
    "short": (b"xY3" * 10 + b"x", "too short"),
    "short but for white space": (b"xY3" * 10 + b"x" + b" \n" * 9, "too short"),
    "a short one beside a good one": (SECRETS[0].encode() + b"\nx7w", "line 2 .* too short"),
    "a small RSA key": (public_pem(KEYS["rsa 1024"]), "too short"),
    "a small RSA key in a set": (key_set(small=KEYS["rsa 1024"]), "too short"),
    "an EC key in PEM": (public_pem(KEYS["p256"]), "no RSA key.* JSON Web Key Set"),
    "an Ed25519 key in PEM": (public_pem(KEYS["ed25519"]), "no RSA key"),
    "encrypted": (private_pem(RSA, b"password"), "encrypted"),
    "half a PEM": (public_pem(RSA)[:100], "whole keys"),
    "damaged": (b"".join(LINES[:2] + LINES[3:]), "damaged"),
    "a PEM and something beside it": (public_pem(RSA) + SECRETS[0].encode(), "more in it"),
    "a PEM and half of the next": (public_pem(RSA) + public_pem(RSA)[:300], "more in it"),
    "a certificate": (certificate(RSA).public_bytes(PEM), "openssl x509 -pubkey"),
    "a body of a PEM": (b"".join(BODY), "lines"),
    "a body of a PEM without its first line": (b"".join(BODY[1:]), "lines"),
    "the first line of a body": (BODY[0], "others may have"),
    "a key of SSH": (RSA.public_key().public_bytes(SSH, PUBLIC.OpenSSH), ""),
    "a key of PuTTY": (b"PuTTY-User-Key-File-3: ssh-rsa\nEncryption: none\nPublic-Lines: 6\n", ""),
    "a key of .NET": (b"<RSAKeyValue><Modulus>sbSp4/V2</Modulus></RSAKeyValue>", "brackets"),
    "a modulus": (f"{RSA.public_key().public_numbers().n:x}".encode(), "too long"),
    "a JSON Web Key": (json.dumps(web_key(RSA)).encode(), 'as {"keys": '),
    "JSON Web Keys that lack a part": (b'{"keys": [{"kty": "oct"}, {"kty": "RSA"}]}', "usable"),
    "JSON without end": (b'{"a":' * 5000, "damaged"),
    "a secret JSON Web Key": (b'{"kty": "oct", "k": "xY3xY3xY3xY3"}', 'as {"keys": '),
    "JSON Web Keys without a set": (json.dumps([web_key(KEYS["p256"])]).encode(), "quotes"),
    "a set without keys": (b'{"keys": []}', "usable"),
    "a set of other things": (b'{"keys": [1, "x", {"kty": "RSA"}, {"kty": 7}]}', "usable"),
    "a set that is no list": (b'{"keys": {"kty": "RSA"}}', "usable"),
    "a set of an odd algorithm": (b'{"keys": [{"kty": "RSA", "alg": ["RS256"]}]}', "usable"),
    "a set of no algorithm": (b'{"keys": [{"kty": "RSA", "alg": "none"}]}', "usable"),
    "a set with a secret": (
        json.dumps({"keys": [web_key(RSA), {"kty": "oct", "k": "eFkz" * 11}]}).encode(),
        "secret",
    ),
    "a set for encryption": (
        json.dumps({"keys": [web_key(RSA) | {"use": "enc"}]}).encode(),
        "for signatures",
    ),
    "half a set": (key_set(one=RSA)[:-20], "damaged"),
    "a token": (JWT.encode(), "a token"),
    "a token without its signature": (JWT.rpartition(".")[0].encode(), "a token"),
    "a phrase": (b"correct horse battery staple and some more", "blanks"),
    "a phrase with hyphens": (b"correct-horse-battery-staple-and-more", "not random"),
    "a phrase in capitals": (b"CHANGE_THIS_SECRET_BEFORE_YOU_DEPLOY", "not random"),
    "one character": (b"x" * 64, "not random"),
    "two characters": (b"01101001" * 8, "not random"),
    "six characters": (b"fedcbaabdcfebeadfcbdfaecdabfecdfabce", "not random"),
    "a pattern": (b"0123456789abcdef" * 4, "not random"),
    "a setting": (f"SECRET={SECRETS[0]}".encode(), "is no secret"),
    "quoted": (f'"{SECRETS[0]}"'.encode(), "quotes"),
    "a comment": (b"#this-is-the-key-of-our-tenants:\n" + SECRETS[0].encode(), "line 1"),
    "UTF-16": (SECRETS[0].encode("utf-16"), "not text"),
    "UTF-16 without its mark": (SECRETS[0].encode("utf-16-le"), "is no secret"),
    "UTF-8 with a mark": (b"\xef\xbb\xbf" + SECRETS[0].encode(), "is no secret"),
    "random bytes": (b"\xf0" + secrets.token_bytes(32), "not text"),
    "many lines": (f"{SECRETS[0]}\n".encode() * (MAX_SECRETS + 1), "5 lines, not 1 to 4"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_key_file_that_will_not_do_is_named_with_what_to_do(tmp_path, kind):
    data, wanted = WRONG_FILES[kind]
    refuse(data)
    file = tmp_path / "key"
    file.write_bytes(data)
    with pytest.raises(KeyFileError, match=f"(?s)^the key file {file} .*{wanted}"):
        KeyFile(file).keys()


@pytest.mark.parametrize(
    "command",
    ["rand -hex 32", "rand -hex 16", "rand -hex 64", "rand -base64 32", "rand -base64 48"],
)
def test_what_openssl_makes_is_a_secret_to_the_letter(command):
    for _ in range(20):
        made = subprocess.run(["openssl", *command.split()], capture_output=True, check=True).stdout
        assert parse_keys(made) == [Key("HS256", made.strip())]
        assert parse_keys(b"\r\n  " + made + b"\r\n") == [Key("HS256", made.strip())]


@given(st.integers(32, 96), st.randoms(use_true_random=True))
@settings(max_examples=300)
def test_random_bytes_are_a_secret_in_every_usual_alphabet(size, random):
    made = random.randbytes(size)
    for encode in bytes.hex, encode64, encode64url:
        secret = encode(made)
        assert parse_keys(secret.encode()) == [Key("HS256", secret.encode())]


def encode64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def encode64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_a_password_managers_secret_is_one():
    secret = b"tG7#vQ!z2$Lw9@pXc4&Ns8*Kd6^Bm3%Jh5"
    assert parse_keys(secret) == [Key("HS256", secret)]


def test_a_secret_a_line_in_the_order_of_the_file():
    data = "\n".join(["", SECRETS[0], "", f"  {SECRETS[1]}\t", ""]).encode()
    assert parse_keys(data) == [Key("HS256", secret.encode()) for secret in SECRETS]


def test_pem_keys_follow_one_another_public_or_private():
    other = rsa.generate_private_key(65537, 2048)
    first, second = parse_keys(b"\n" + public_pem(RSA) + b"\n" + public_pem(other))
    assert (first.algorithm, second.algorithm) == ("RS256", "RS256")
    assert [first.material, second.material] == [RSA.public_key(), other.public_key()]
    assert not first.is_private and not first.is_secret
    (private,) = parse_keys(private_pem(RSA))
    assert private.is_private and private.algorithm == "RS256"
    traditional = RSA.private_bytes(PEM, PRIVATE.TraditionalOpenSSL, CLEAR)
    assert parse_keys(traditional)[0].is_private


def test_a_set_is_read_as_a_provider_publishes_it():
    published = json.loads(key_set(now=RSA, soon=KEYS["p256"], ed=KEYS["ed25519"]))
    published["keys"][0] |= {"x5c": ["MIIC"], "x5t": "abc", "alg": "RS384"}
    published["keys"] += [
        web_key(RSA) | {"use": "enc", "alg": "RSA-OAEP", "kid": "for encryption"},
        web_key(RSA) | {"use": "enc", "kid": "for encryption, too"},
        web_key(KEYS["p384"]) | {"kid": "caf\xe9"},
    ]
    data = json.dumps(published, ensure_ascii=False).encode()
    keys = {key.id: key.algorithm for key in parse_keys(data)}
    assert keys == {"now": "RS384", "soon": "ES256", "ed": "EdDSA", "caf\xe9": "ES384"}
    (private,) = parse_keys(json.dumps({"keys": [web_key(RSA, private=True)]}).encode())
    assert private.is_private


@given(st.binary() | st.text().map(str.encode) | st.from_regex(rb"\{.*\}|-----BEGIN .*-----"))
def test_no_file_does_anything_but_hold_keys_or_be_refused(data):
    try:
        keys = parse_keys(data)
    except KeyFileError:
        pass
    else:
        assert keys


@given(st.sampled_from(sorted(DERS)), st.data())
def test_no_piece_of_a_key_that_has_its_beginning_is_a_secret(kind, data):
    size = data.draw(st.integers(24, len(DERS[kind])))
    for encode in bytes.hex, encode64, encode64url:
        refuse(encode(DERS[kind][:size]).encode())
