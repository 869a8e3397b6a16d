"""Tokens, origins and the decision who a caller is."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from livetape.auth import (
    DEFAULT_USER_ID,
    SHARE_AUDIENCE,
    Authenticator,
    ConnectionFacts,
    OriginPolicy,
    Principal,
    TokenOptions,
    TokenVerifier,
    User,
    check_key,
    host_name,
    issue_share_token,
    issue_token,
)
from livetape.errors import ConfigError, NotAuthorizedError, TokenExpiredError, UnauthenticatedError

KEY = "a-secret-of-at-least-thirty-two-bytes!"
NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


class Clock:
    def __init__(self, now: datetime = NOW) -> None:
        self.time = now

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


def verifier(**options: Any) -> TokenVerifier:
    return TokenVerifier(TokenOptions(verify_key=KEY, **options), Clock())


def token(**changes: Any) -> str:
    claims = {"sub": "U", "aud": "authenticated", "exp": NOW.timestamp() + 60, **changes}
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, KEY, algorithm="HS256")


def refused(text: str, **options: Any) -> UnauthenticatedError:
    with pytest.raises(UnauthenticatedError) as caught:
        verifier(**options).verify(text)
    return caught.value


# ---- tokens ----------------------------------------------------


def test_a_good_token_is_its_user() -> None:
    principal = verifier().verify(token(role="admin", jti="T1"))
    assert principal == Principal("U", role="admin", expires_at=NOW + timedelta(seconds=60), token_id="T1")
    assert principal.is_admin
    assert not verifier().verify(token()).is_admin


def test_an_issued_token_verifies() -> None:
    issued = issue_token(KEY, user_id="U", now=NOW, ttl=timedelta(hours=1), role="admin", token_id="T")
    assert verifier().verify(issued) == Principal("U", "admin", NOW + timedelta(hours=1), "T", NOW)
    assert jwt.decode(issued, options={"verify_signature": False})["aud"] == "authenticated"


def test_an_expired_token_says_so() -> None:
    error = refused(token(exp=NOW.timestamp() - 6))
    assert isinstance(error, TokenExpiredError)
    assert error.message == "Token has expired"
    assert error.context["reason"] == "expired"


def test_leeway_is_small() -> None:
    assert verifier().verify(token(exp=NOW.timestamp() - 4)).user_id == "U"
    assert isinstance(refused(token(exp=NOW.timestamp() - 1), leeway_seconds=0), TokenExpiredError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aud": "somebody-else"}, "Invalid token: Audience doesn't match"),
        ({"aud": None}, 'Invalid token: Token is missing the "aud" claim'),
        ({"exp": "tomorrow"}, "Invalid token: The claim exp must be a number"),
        ({"exp": True}, "Invalid token: The claim exp must be a number"),
        ({"nbf": NOW.timestamp() + 60}, "Invalid token: The token is not yet valid (nbf)"),
        ({"iat": NOW.timestamp() + 60}, "Invalid token: The token is not yet valid (iat)"),
        ({"sub": 7}, "Invalid token: Subject must be a string"),
    ],
)
def test_claims_that_do_not_hold_are_refused(changes: dict[str, Any], message: str) -> None:
    error = refused(token(**changes))
    assert error.message == message
    assert error.context["reason"] == "invalid"


@pytest.mark.parametrize("sub", [None, ""])
def test_a_token_without_a_user_is_told_apart(sub: str | None) -> None:
    error = refused(token(sub=sub))
    assert error.message == "User ID not found in token"
    assert error.context["reason"] == "no_user"


def test_a_wrong_signature_is_refused() -> None:
    other = jwt.encode({"sub": "U", "aud": "authenticated"}, KEY + "x", algorithm="HS256")
    assert refused(other).message == "Invalid token: Signature verification failed"


def test_the_algorithm_is_pinned() -> None:
    def part(value: object) -> str:
        return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    unsigned = f"{part({'alg': 'none', 'typ': 'JWT'})}.{part({'sub': 'U', 'aud': 'authenticated'})}."
    other = jwt.encode({"sub": "U", "aud": "authenticated"}, KEY * 2, algorithm="HS512")
    assert refused(unsigned).context["reason"] == "invalid"
    assert refused(other).context["reason"] == "invalid"


def test_a_public_key_is_no_shared_secret() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    signer = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    options = TokenOptions(verify_key=pem, algorithm="ES256")
    assert check_key(options) == []
    good = issue_token(signer, user_id="U", now=NOW, ttl=timedelta(minutes=1), algorithm="ES256")
    assert TokenVerifier(options, Clock()).verify(good).user_id == "U"
    with pytest.raises(ConfigError):
        check_key(TokenOptions(verify_key=pem, algorithm="HS256"))
    with pytest.raises(ConfigError):
        issue_token(pem, user_id="U", now=NOW, ttl=timedelta(minutes=1), algorithm="ES256")


def test_a_token_without_an_end_does_not_expire() -> None:
    assert verifier().verify(token(exp=None)).expires_at is None
    assert verifier().verify(token(exp=10**30)).expires_at is None


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
def test_a_number_beyond_every_float_is_a_number(claim: str) -> None:
    assert verifier().verify(token(**{claim: -(10**400) if claim != "exp" else 10**400})).user_id == "U"
    with pytest.raises(UnauthenticatedError):
        verifier().verify(token(**{claim: 10**400 if claim != "exp" else -(10**400)}))


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "." * 50, "ä.ö.ü", "\ud800.a.b", "[" * 9000, "x" * 20_000])
def test_rubbish_is_an_invalid_token(text: str) -> None:
    assert refused(text).context["reason"] == "invalid"


@given(st.text(max_size=200))
def test_any_text_is_refused_in_the_same_way(text: str) -> None:
    assert refused(text).message.startswith("Invalid token: ")


def test_a_deep_header_is_refused() -> None:
    deep = urlsafe_b64encode(b"[" * 5000).rstrip(b"=").decode()
    assert refused(f"{deep}.{deep}.{deep}").context["reason"] == "invalid"


def test_secrets_are_not_in_representations() -> None:
    options = TokenOptions(verify_key=KEY)
    secret = token()
    shown = f"{options!r} {TokenVerifier(options)!r} {ConnectionFacts(token=secret)!r} {verifier().verify(secret)!r}"
    assert KEY not in shown
    assert secret not in shown


def test_the_user_model_is_the_seeds() -> None:
    payload = {"sub": "U", "email": "u@example.org", "phone": "1", "role": "user"}
    assert User.from_payload(payload) == User("U", "u@example.org", "1", "user")
    assert User.from_payload({"sub": "U"}) == User("U", "", "", "")


# ---- share tokens ----------------------------------------------------


def share(**changes: Any) -> str:
    claims = {
        "share": ["job_events:j"],
        "aud": SHARE_AUDIENCE,
        "jti": "S",
        "iat": NOW.timestamp(),
        "exp": NOW.timestamp() + 60,
        **changes,
    }
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, KEY, algorithm="HS256")


def test_a_share_token_is_a_guest_where_guests_are_let_in() -> None:
    issued = issue_share_token(KEY, tapes=["job_events:j", "execution_events:e"], now=NOW, ttl=timedelta(hours=1))
    guest = verifier().verify(issued, guests=True)
    assert guest.is_guest
    assert guest.shares == {"job_events:j", "execution_events:e"}
    assert guest.user_id.startswith("share:")
    assert (guest.role, guest.is_admin, guest.scopes) == ("", False, None)
    assert guest.expires_at == NOW + timedelta(hours=1)
    assert guest.issued_at == NOW
    assert guest.token_id
    assert verifier().verify(token(), guests=True).user_id == "U", "logins are let in there as well"


def test_a_share_token_is_no_login() -> None:
    assert refused(share()).message == "Invalid token: Audience doesn't match"
    assert refused(share(sub="U", role="admin")).context["reason"] == "invalid"
    with pytest.raises(UnauthenticatedError):
        Authenticator(verifier()).authenticate(ConnectionFacts(token=share()))


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": [SHARE_AUDIENCE]},
        {"aud": ["authenticated", SHARE_AUDIENCE], "sub": "U"},
        {"share": None},
        {"share": []},
        {"share": "job_events:j"},
        {"share": ["job_events:j", 7]},
        {"share": ["everything"]},
        {"share": [f"job_events:{number}" for number in range(101)]},
        {"jti": None},
        {"exp": None},
        {"exp": NOW.timestamp() - 60},
        {"nbf": NOW.timestamp() + 60},
    ],
)
def test_a_share_token_that_is_not_whole_opens_nothing(changes: dict[str, Any]) -> None:
    with pytest.raises(UnauthenticatedError):
        verifier().verify(share(**changes), guests=True)


def test_claims_of_the_other_kind_do_not_count() -> None:
    """What makes a guest cannot be added to a login, nor a user to a share."""
    assert verifier().verify(token(share=["job_events:j"]), guests=True) == verifier().verify(token())
    guest = verifier().verify(share(sub="U", role="admin"), guests=True)
    assert (guest.user_id.startswith("share:"), guest.is_admin) == (True, False)
    assert refused(token(sub="share:x")).message == "Invalid token: A user's id does not begin with share:"


@pytest.mark.parametrize("tapes", [[], [""], ["nothing"], [f"job_events:{number}" for number in range(101)]])
def test_what_cannot_be_shared_is_not_signed(tapes: list[str]) -> None:
    with pytest.raises(ValueError, match="1 to 100"):
        issue_share_token(KEY, tapes=tapes, now=NOW, ttl=timedelta(hours=1))


def test_a_share_token_fits_where_tokens_are_taken() -> None:
    fits = [f"job_events:{number:036}" for number in range(100)]
    assert len(issue_share_token(KEY, tapes=fits, now=NOW, ttl=timedelta(hours=1))) < 8 * 1024
    with pytest.raises(ValueError, match="too long"):
        issue_share_token(KEY, tapes=[name * 5 for name in fits], now=NOW, ttl=timedelta(hours=1))
    with pytest.raises(ConfigError, match="weak"):
        issue_share_token("s" * 8, tapes=fits, now=NOW, ttl=timedelta(hours=1))


def test_logins_have_another_audience() -> None:
    with pytest.raises(ConfigError):
        verifier(audience=SHARE_AUDIENCE)
    near = token(aud=f"{SHARE_AUDIENCE}-prod")
    assert verifier(audience=f"{SHARE_AUDIENCE}-prod").verify(near, guests=True).user_id == "U"


# ---- keys ----------------------------------------------------


def test_weak_and_symmetric_keys_are_warned_of() -> None:
    weak, symmetric = check_key(TokenOptions(verify_key="short"))
    assert "weak" in weak
    assert "symmetric" in symmetric
    assert len(check_key(TokenOptions(verify_key=KEY))) == 1


def test_a_weak_key_still_works_for_who_has_it_already() -> None:
    weak = TokenVerifier(TokenOptions(verify_key="s" * 8), Clock())
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        made = jwt.encode({"sub": "U", "aud": "authenticated"}, "s" * 8, algorithm="HS256")
    assert weak.verify(made).user_id == "U"
    with pytest.raises(ConfigError, match="weak"):
        issue_token("s" * 8, user_id="U", now=NOW, ttl=timedelta(1))


@pytest.mark.parametrize("options", [{"verify_key": " "}, {"verify_key": KEY, "algorithm": "none"}])
def test_a_key_that_protects_nothing_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        TokenVerifier(TokenOptions(**options))


# ---- origins ----------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "permitted"),
    [
        (None, "api.example.org", (), True),
        ("https://api.example.org", "api.example.org", (), True),
        ("http://LOCALHOST:8420", "localhost:8420", (), True),
        ("http://localhost:3000", "localhost:8420", (), False),
        ("http://localhost:3000", "localhost:8420", ("http://localhost:3000/",), True),
        ("https://evil.example", "api.example.org", ("https://app.example.org",), False),
        ("https://a.example.org", "x", (r"regex:https://[a-z]+\.example\.org",), True),
        ("https://a.example.org.evil", "x", (r"regex:https://[a-z]+\.example\.org",), False),
        ("null", "api.example.org", (), False),
        ("", "api.example.org", (), False),
        ("https://x", None, (), False),
    ],
)
def test_foreign_pages_may_not_call(origin: str | None, host: str | None, allowed: tuple[str], permitted: bool) -> None:
    assert OriginPolicy(allowed).permits(origin, host) is permitted


def test_a_broken_pattern_is_refused_at_start() -> None:
    with pytest.raises(ConfigError):
        OriginPolicy(["regex:("])


# ---- the decision ----------------------------------------------------

LOCAL = {"host": "localhost:8420", "peer": "127.0.0.1"}


def test_a_token_is_asked_for() -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        Authenticator(verifier()).authenticate(ConnectionFacts(**LOCAL))
    assert caught.value.context["reason"] == "missing"
    assert caught.value.message == "Authorization header is missing"
    assert Authenticator(verifier()).authenticate(ConnectionFacts(token=token())).user_id == "U"


def test_with_auth_off_everybody_is_the_default_user() -> None:
    off = Authenticator(None, enable_auth=False)
    assert off.authenticate(ConnectionFacts(token="rubbish", peer="203.0.113.9")).user_id == DEFAULT_USER_ID
    assert not off.auth_enabled
    with pytest.raises(NotAuthorizedError):
        off.authenticate(ConnectionFacts(origin="https://evil.example", **LOCAL))


def test_auth_without_a_key_is_refused() -> None:
    with pytest.raises(ConfigError):
        Authenticator(None)


@pytest.mark.parametrize(
    ("facts", "is_dev"),
    [
        (LOCAL, True),
        ({"host": "127.0.0.1", "peer": "127.0.0.1"}, True),
        ({"host": "[::1]:8420", "peer": "::1"}, True),
        ({"host": "localhost", "peer": "::ffff:127.0.0.1"}, True),
        ({**LOCAL, "origin": "http://localhost:8420"}, True),
        ({"host": "tape.test", "peer": "127.0.0.1"}, True),  # in the list below
        ({"host": "evil.example:8420", "peer": "127.0.0.1"}, False),  # DNS rebinding
        ({"host": None, "peer": "127.0.0.1"}, False),
        ({"host": "localhost.evil.example", "peer": "127.0.0.1"}, False),
        ({"host": "localhost", "peer": "203.0.113.9"}, False),
        ({"host": "localhost", "peer": None}, False),
        ({"host": "localhost", "peer": "unix"}, False),
        ({**LOCAL, "forwarded": True}, False),
    ],
)
def test_the_development_user_is_on_this_machine(facts: dict[str, Any], is_dev: bool) -> None:
    dev = Authenticator(verifier(), dev_user=True, allowed_hosts=["Tape.Test"])
    if is_dev:
        assert dev.authenticate(ConnectionFacts(**facts)).user_id == DEFAULT_USER_ID
    else:
        with pytest.raises(UnauthenticatedError):
            dev.authenticate(ConnectionFacts(**facts))


def test_a_foreign_page_is_not_the_development_user() -> None:
    dev = Authenticator(verifier(), dev_user=True)
    for origin in ("https://evil.example", "null", "http://localhost:3000"):
        with pytest.raises(NotAuthorizedError):
            dev.authenticate(ConnectionFacts(origin=origin, **LOCAL))


def test_a_bad_token_is_refused_even_for_the_development_user() -> None:
    dev = Authenticator(verifier(), dev_user=True)
    assert dev.authenticate(ConnectionFacts(token=token(), **LOCAL)).user_id == "U"
    with pytest.raises(UnauthenticatedError):
        dev.authenticate(ConnectionFacts(token="bad", **LOCAL))


def test_facts_from_headers() -> None:
    headers = {"host": "h", "origin": "o", "authorization": "bearer  T ", "x-forwarded-for": "1.2.3.4"}
    facts = ConnectionFacts.of(headers, "127.0.0.1")
    assert facts == ConnectionFacts(token="T", host="h", origin="o", peer="127.0.0.1", forwarded=True)
    assert ConnectionFacts.of({"authorization": "Basic abc"}, None).token is None
    assert ConnectionFacts.of({"authorization": "Bearer "}, None).token is None
    assert ConnectionFacts.of({}, None, token="Q").token == "Q"


@pytest.mark.parametrize(("host", "name"), [("A.b:1", "a.b"), ("[::1]", "::1"), (None, ""), ("[", ""), ("x:y:z", "x")])
def test_host_names(host: str | None, name: str) -> None:
    assert host_name(host) == name


def test_the_default_clock_is_the_systems() -> None:
    made = issue_token(KEY, user_id="U", now=datetime.now(UTC), ttl=timedelta(minutes=1))
    assert TokenVerifier(TokenOptions(verify_key=KEY)).verify(made).expires_at is not None
    assert time.time() > 0
