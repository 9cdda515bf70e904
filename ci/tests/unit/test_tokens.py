"""Tokens: which are good, for whom, and what the service says to the others."""

import hmac
import json
import subprocess
import sys
import threading
import time
from base64 import b64decode, urlsafe_b64encode
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from key_files import SECRETS, key_set, private_pem, public_pem

from forecast_service import tokens
from forecast_service.customer_ids import CUSTOMER_ID
from forecast_service.errors import ForbiddenCustomerError, InvalidTokenError, MissingTokenError
from forecast_service.keys import Key, KeyFile, KeyFileError
from forecast_service.settings import HOME
from forecast_service.tokens import (
    AUDIENCE,
    LEEWAY_S,
    MAX_HEADER_CHARS,
    TENANT_HEADER,
    Customers,
    Tenants,
)
from lab.issue_token import issue

SECRET, NEXT_SECRET = (secret.encode() for secret in SECRETS)
PRIVATE = rsa.generate_private_key(65537, 2048)
PUBLIC_PEM = public_pem(PRIVATE)
HS256 = Key("HS256", SECRET)
RS256 = Key("RS256", PRIVATE)
TENANTS = {"HS256": Tenants([HS256]), "RS256": Tenants([Key("RS256", PRIVATE.public_key())])}
ISSUERS = {"HS256": HS256, "RS256": RS256}


def sign(claims: dict, key: Key = HS256, **options) -> str:
    """Return a header's value with a token of any claims."""
    good = {"customers": ["acme_*"], "aud": AUDIENCE, "exp": int(time.time()) + 3600}
    wanted = {name: value for name, value in (good | claims).items() if value is not None}
    return "Bearer " + jwt.encode(wanted, key.material, options.pop("algorithm", key.algorithm))


def sign_by_hand(header: dict, secret: bytes) -> str:
    """Return what a library refuses to make: a token with any header, signed with any bytes."""
    claims = {"customers": ["*"], "aud": AUDIENCE, "exp": int(time.time()) + 3600}
    parts = [urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    signature = hmac.digest(secret, b".".join(parts), "sha256") if secret else b""
    return "Bearer " + b".".join([*parts, urlsafe_b64encode(signature).rstrip(b"=")]).decode()


@pytest.fixture
def key_file(tmp_path) -> Path:
    return tmp_path / "key"


WRONG_TOKENS = {
    "signed with another secret": sign({}, Key("HS256", SECRET[::-1])),
    "signed for another algorithm": sign({}, algorithm="HS512"),
    "signed with RS256": sign({}, RS256),
    "unsigned": sign({}).rpartition(".")[0] + ".",
    "without a signature": sign({}).rpartition(".")[0],
    "alg none": sign_by_hand({"alg": "none", "typ": "JWT"}, b""),
    "alg None": sign_by_hand({"alg": "None", "typ": "JWT"}, b""),
    "alg missing": sign_by_hand({"typ": "JWT"}, SECRET),
    "alg a list": sign_by_hand({"alg": ["HS256"]}, SECRET),
    "expired": sign({"exp": int(time.time()) - LEEWAY_S - 5}),
    "not yet good": sign({"nbf": int(time.time()) + 3600}),
    "without an end": sign({"exp": None}),
    "whose end is no number": sign({"exp": "tomorrow"}),
    "whose end is infinite": sign({"exp": float("inf")}),
    "for nobody in particular": sign({"customers": None}),
    "whose customers are a text": sign({"customers": "acme_*"}),
    "whose customers are a table": sign({"customers": {"acme_*": 1}}),
    "with a pattern that is none": sign({"customers": ["acme_*", "a*b"]}),
    "with a customer that is a number": sign({"customers": [1]}),
    "for no service": sign({"aud": None}),
    "for another service": sign({"aud": "payroll"}),
    "another scheme": sign({}).replace("Bearer", "Basic"),
    "bare": sign({}).removeprefix("Bearer "),
    "a scheme alone": "Bearer ",
    "no token at all": "Bearer customer_123",
    "latin letters": sign({}) + "\xe9",
    "half a character": sign({}) + "\udce9",
    "too long": sign({"customers": [f"customer_{number}" for number in range(1000)]}),
}


@pytest.mark.parametrize("algorithm", ISSUERS)
def test_a_token_is_for_the_customers_that_it_names(algorithm):
    token = issue(ISSUERS[algorithm], ["acme_*", "customer_123"], days=1)
    asked = "acme_", "acme_1", "customer_123", "acme", "customer_1234", "customer_"
    for scheme in "Bearer", "bearer":
        allowed = TENANTS[algorithm].customers(f"{scheme} {token}")
        assert [name for name in asked if name in allowed] == ["acme_", "acme_1", "customer_123"]


@pytest.mark.parametrize("wrong", WRONG_TOKENS)
def test_a_wrong_token_is_refused_and_not_repeated(wrong):
    with pytest.raises(InvalidTokenError) as raised:
        TENANTS["HS256"].customers(WRONG_TOKENS[wrong])
    assert "eyJ" not in str(raised.value)


def test_the_public_key_is_no_secret_to_sign_with(key_file):
    body = b"".join(PUBLIC_PEM.splitlines()[1:-1])  # as a provider's page shows it
    key_file.write_bytes(key_set(rsa=PRIVATE))
    for tenants in TENANTS["RS256"], Tenants.of(key_file):
        for secret in PUBLIC_PEM, PUBLIC_PEM.strip(), body, b64decode(body):
            for named in {}, {"kid": "rsa"}:
                with pytest.raises(InvalidTokenError):
                    tenants.customers(sign_by_hand({"alg": "HS256"} | named, secret))


def test_a_public_key_without_its_armour_stops_the_start(key_file):
    key_file.write_bytes(b"".join(PUBLIC_PEM.splitlines()[1:-1]))
    with pytest.raises(KeyFileError, match="others may have: not a secret"):
        Tenants.of(key_file)


@pytest.mark.parametrize("missing", [None, ""])
def test_a_missing_token_is_told_from_a_wrong_one(missing):
    with pytest.raises(MissingTokenError, match=TENANT_HEADER):
        TENANTS["HS256"].customers(missing)


def test_what_a_signed_token_lacks_is_named():
    for claim in "exp", "aud", "customers":
        with pytest.raises(InvalidTokenError, match=claim):
            TENANTS["HS256"].customers(sign({claim: None}))
    with pytest.raises(InvalidTokenError, match="expired"):
        TENANTS["HS256"].customers(WRONG_TOKENS["expired"])


def test_clocks_may_differ_by_the_leeway():
    now = int(time.time())
    late = sign({"exp": now - LEEWAY_S + 10, "nbf": now + LEEWAY_S - 10})
    assert "acme_1" in TENANTS["HS256"].customers(late)


def test_a_token_that_was_good_expires_all_the_same(monkeypatch):
    token = sign({"exp": int(time.time()) + 60})
    assert "acme_1" in TENANTS["HS256"].customers(token)
    later = time.time() + 60 + LEEWAY_S
    monkeypatch.setattr(tokens.time, "time", lambda: later)
    with pytest.raises(InvalidTokenError, match="expired"):
        TENANTS["HS256"].customers(token)


def test_a_signature_is_checked_once_and_only_so_many_are_remembered(monkeypatch):
    monkeypatch.setattr(tokens, "CACHED_TOKENS", 2)
    checked = []
    decode = jwt.decode
    monkeypatch.setattr(jwt, "decode", lambda *a, **kw: checked.append(1) or decode(*a, **kw))
    fresh = Tenants([HS256])
    signed = [sign({"customers": [f"acme_{number}"]}) for number in range(3)]
    for token in [signed[0]] * 5:
        fresh.customers(token)
    assert len(checked) == 1
    for token in (*signed, signed[0]):
        fresh.customers(token)
    assert len(checked) == 4


@pytest.mark.parametrize("customer_id", ["beta_1", "customer_000", "acme", "../etc", "\n"])
def test_another_customer_is_forbidden_in_words_that_do_not_depend_on_it(customer_id):
    said = set()
    for asked in (customer_id, "somebody"):
        with pytest.raises(ForbiddenCustomerError) as raised:
            TENANTS["HS256"].require(sign({}), asked)
        said.add(str(raised.value))
    assert len(said) == 1


def test_a_request_for_nobody_passes_with_a_good_token_only():
    TENANTS["HS256"].require(sign({}), "")
    with pytest.raises(InvalidTokenError):
        TENANTS["HS256"].require(WRONG_TOKENS["expired"], "")


ids = st.from_regex(CUSTOMER_ID, fullmatch=True)
few_ids = st.text("ab_", min_size=1, max_size=4)  # so that they often begin alike


@given(st.lists(few_ids), st.lists(few_ids | st.just("")), few_ids | ids)
def test_an_id_is_allowed_if_it_is_named_or_begins_as_a_pattern_does(named, prefixes, asked):
    allowed = Customers([*named, *(f"{prefix}*" for prefix in prefixes)])
    assert (asked in allowed) == (
        asked in named or any(asked[: len(prefix)] == prefix for prefix in prefixes)
    )


@given(st.text())
def test_a_pattern_is_an_id_or_the_beginning_of_one_and_a_star(text):
    beginning = text.removesuffix("*")
    good = bool(text) and (not beginning or bool(CUSTOMER_ID.fullmatch(beginning)))
    try:
        Customers([text])
    except ValueError:
        assert not good
    else:
        assert good


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
json_values = st.recursive(
    values, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)
headers = st.text() | st.text().map(lambda text: f"Bearer {text}")


@given(headers | st.binary().map(lambda data: f"Bearer {data.decode('latin-1')}"))
def test_no_header_does_anything_but_be_refused(header):
    with pytest.raises((InvalidTokenError, MissingTokenError)):
        TENANTS["HS256"].customers(header)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("exp", "aud", "customers", "iat", "nbf", "sub", "jti"), json_values
        ),
    )
)
def test_no_signed_claims_do_anything_but_be_good_or_refused(claims):
    token = jwt.encode(claims, SECRET, "HS256")
    try:
        TENANTS["HS256"].customers(f"Bearer {token}")
    except InvalidTokenError:
        pass
    else:
        raise AssertionError("arbitrary claims made a good token")


@given(st.data())
def test_a_token_with_one_character_changed_is_refused(data):
    token = sign({})
    position = data.draw(st.integers(len("Bearer "), len(token) - 1))
    letter = data.draw(st.characters(codec="ascii").filter(lambda c: c != token[position]))
    with pytest.raises(InvalidTokenError):
        TENANTS["HS256"].customers(token[:position] + letter + token[position + 1 :])


def test_it_is_off_unless_there_is_a_key_and_never_by_mistake(key_file):
    assert Tenants.of(None) is None
    for mistake in key_file.parent / "no/such/file", key_file.parent:
        with pytest.raises(KeyFileError, match="cannot read"):
            Tenants.of(mistake)
    key_file.write_bytes(SECRET)
    assert "acme_1" in Tenants.of(key_file).customers(sign({}))


def test_the_service_takes_no_private_key(key_file):
    key_file.write_bytes(private_pem(PRIVATE))
    with pytest.raises(KeyFileError, match="public half"):
        Tenants.of(key_file)


NEXT_PRIVATE = rsa.generate_private_key(65537, 2048)
ROTATIONS = {
    "secrets": (b"%s\n%s\n" % (SECRET, NEXT_SECRET), HS256, Key("HS256", NEXT_SECRET)),
    "PEM": (PUBLIC_PEM + public_pem(NEXT_PRIVATE), RS256, Key("RS256", NEXT_PRIVATE)),
    "a key set": (
        key_set(old=PRIVATE, new=NEXT_PRIVATE),
        Key("RS256", PRIVATE, "old"),
        Key("RS256", NEXT_PRIVATE, "new"),
    ),
}


@pytest.mark.parametrize("kind", ROTATIONS)
def test_with_two_keys_in_the_file_tokens_of_both_are_good_and_of_no_third(key_file, kind):
    data, *keys = ROTATIONS[kind]
    key_file.write_bytes(data)
    tenants = Tenants.of(key_file)
    for key in keys:
        allowed = tenants.customers(f"Bearer {issue(key, ['acme_*'], days=1)}")
        assert "acme_1" in allowed and "beta_1" not in allowed
    third = Key("HS256", SECRET[::-1]), Key("RS256", rsa.generate_private_key(65537, 2048))
    for key in third:
        with pytest.raises(InvalidTokenError):
            tenants.customers(sign({}, key))


def test_the_first_key_of_a_file_signs(key_file):
    key_file.write_bytes(b"%s\n%s\n" % (NEXT_SECRET, SECRET))
    assert KeyFile(key_file).keys()[0] == Key("HS256", NEXT_SECRET)


def test_a_key_of_a_set_checks_the_tokens_that_name_it_and_those_that_name_none(key_file):
    curve, edwards = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
    signers = {
        "rsa": Key("RS256", PRIVATE, "rsa"),
        "ec": Key("ES256", curve, "ec"),
        "ed": Key("EdDSA", edwards, "ed"),
    }
    key_file.write_bytes(key_set(rsa=PRIVATE, ec=curve, ed=edwards))
    tenants = Tenants.of(key_file)
    for named in (*signers, None):
        for name, key in signers.items():
            token = f"Bearer {issue(key._replace(id=named), ['acme_*'], days=1)}"
            if named in (name, None):
                assert "acme_1" in tenants.customers(token)
            else:
                with pytest.raises(InvalidTokenError):
                    tenants.customers(token)


def test_a_kid_that_somebody_made_up_is_refused(key_file):
    key_file.write_bytes(key_set(rsa=PRIVATE))
    tenants = Tenants.of(key_file)
    for kid in "other", "", ["rsa"], 1, None, "../rsa", "x" * 1000:
        with pytest.raises(InvalidTokenError):
            tenants.customers(sign_by_hand({"alg": "RS256", "kid": kid}, SECRET))


def test_the_algorithm_is_the_keys_and_not_the_tokens(key_file):
    key_file.write_bytes(key_set(rsa=PRIVATE))
    for tenants in Tenants.of(key_file), TENANTS["RS256"]:
        for algorithm in "RS384", "RS512", "PS256":
            with pytest.raises(InvalidTokenError):
                tenants.customers(sign({}, RS256, algorithm=algorithm))


@pytest.fixture
def followed(key_file) -> tuple[Tenants, KeyFile]:
    """Tenants and their file, which a test reads in its thread's place."""
    key_file.write_bytes(SECRET)
    file = KeyFile(key_file)
    return Tenants(file.keys()), file


OLD_TOKEN, NEW_TOKEN = sign({}), sign({}, Key("HS256", NEXT_SECRET))


def good(tenants: Tenants) -> list[bool]:
    """Return whether the old and the new token are good."""
    found = []
    for token in OLD_TOKEN, NEW_TOKEN:
        try:
            tenants.customers(token)
        except InvalidTokenError:
            found.append(False)
        else:
            found.append(True)
    return found


def test_a_secret_is_changed_while_the_service_runs(key_file, followed, caplog):
    tenants, file = followed
    steps = [
        (SECRET + b"\n" + NEXT_SECRET, [True, True]),
        (NEXT_SECRET + b"\n" + SECRET, [True, True]),
        (NEXT_SECRET, [False, True]),
    ]
    caplog.set_level("INFO", "ray.serve.forecasts")
    assert good(tenants) == [True, False]
    for number, (data, wanted) in enumerate(steps, start=1):
        key_file.write_bytes(data)
        for _ in range(3):
            tenants.follow(file)
        assert good(tenants) == wanted, "a token that was good is remembered, or a new one is not"
        assert caplog.text.count("new keys") == number
    assert SECRET.decode() not in caplog.text and NEXT_SECRET.decode() not in caplog.text


@pytest.mark.parametrize("size", [0, 10, 40, len(SECRET) + 1, len(SECRET) + 40])
def test_a_file_that_is_being_written_locks_nobody_out(key_file, followed, size):
    tenants, file = followed
    whole = SECRET + b"\n" + NEXT_SECRET
    for data in whole[:size], whole, whole:
        key_file.write_bytes(data)
        tenants.follow(file)
        assert good(tenants)[0], "half a file was taken for a whole one"
    assert good(tenants) == [True, True]


@pytest.mark.parametrize("fault", [b"", b"x", public_pem(PRIVATE)[30:], private_pem(PRIVATE), None])
def test_a_file_that_goes_bad_leaves_the_keys_and_is_told_once(key_file, followed, caplog, fault):
    tenants, file = followed
    key_file.unlink() if fault is None else key_file.write_bytes(fault)
    for _ in range(5):
        tenants.follow(file)
    assert good(tenants) == [True, False]
    assert caplog.text.count("the same keys as before") == 1
    key_file.write_bytes(NEXT_SECRET)
    for _ in range(2):
        tenants.follow(file)
    assert good(tenants) == [False, True]


def test_a_thread_follows_the_file_until_nobody_asks_any_more(key_file, monkeypatch):
    monkeypatch.setattr(tokens, "KEYS_CHECK_S", 0.001)
    key_file.write_bytes(SECRET)
    before = set(threading.enumerate())
    tenants = Tenants.of(key_file)
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    taken = threading.Event()
    monkeypatch.setattr(tokens.logger, "info", lambda _: taken.set())
    key_file.write_bytes(NEXT_SECRET)
    assert taken.wait(30), "a new key was not taken"
    assert good(tenants) == [False, True]
    del tenants
    thread.join(30)
    assert not thread.is_alive()


def run_issue(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lab.issue_token", *map(str, arguments)]
    return subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("algorithm", ISSUERS)
def test_the_command_issues_a_good_token(tmp_path, algorithm):
    file = tmp_path / "key"
    file.write_bytes(SECRET if algorithm == "HS256" else private_pem(PRIVATE))
    token = run_issue("acme_*", "customer_123", "--days", 2, "--key", file).stdout.strip()
    allowed = TENANTS[algorithm].customers(f"Bearer {token}")
    assert "acme_1" in allowed and "customer_123" in allowed and "beta_1" not in allowed
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 2 * 24 * 60 * 60


def test_what_the_command_cannot_do_it_says_in_a_line(tmp_path):
    secret, public = tmp_path / "secret", tmp_path / "public.pem"
    secret.write_bytes(SECRET)
    public.write_bytes(PUBLIC_PEM)
    for arguments, wanted in (
        (["acme_*"], "--key"),
        (["acme_*", "--key", tmp_path / "none"], "cannot read"),
        (["acme_*", "--key", public], "private key"),
        (["a*b", "--key", secret], "a*b"),
        (["", "--key", secret], "no customer id"),
        (["acme_*", "--days", "0", "--key", secret], "more than 0 and up to 366 days"),
        (["acme_*", "--days", "nan", "--key", secret], "up to 366 days"),
        (["acme_*", "--days", "inf", "--key", secret], "up to 366 days"),
        ([*map("customer_{}".format, range(1000)), "--key", secret], "too many customers"),
        (["--key", secret], "customers"),
    ):
        done = run_issue(*arguments)
        assert done.returncode == 2 and not done.stdout, arguments
        assert wanted in done.stderr.splitlines()[-1], done.stderr
        assert "Traceback" not in done.stderr and SECRET.decode() not in done.stderr


def test_a_token_of_the_longest_header_is_read():
    many = [f"customer_{number:04}" for number in range(300)]
    token = issue(HS256, many, days=1)
    assert 4000 < len(token) < MAX_HEADER_CHARS
    assert "customer_0299" in TENANTS["HS256"].customers(f"Bearer {token}")
