"""The short way takes only what PyJWT takes, with the same claims; what is said about the rest is PyJWT's."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.signed_tokens import SignedTokens

KEY = "the key of the tests, long enough to be one"
AUDIENCES = ["authenticated", "livetape-share"]
TOKENS = SignedTokens(KEY, "HS256")
HS256 = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)

values = st.one_of(
    st.none(), st.integers(), st.text(max_size=5), st.sampled_from(AUDIENCES), st.lists(st.sampled_from(AUDIENCES))
)
claims = st.dictionaries(st.sampled_from(["aud", "sub", "jti", "exp", "iat", "role"]), values)
heads = st.dictionaries(st.sampled_from(["kid", "typ", "crit", "b64", "x"]), st.one_of(st.text(max_size=3), st.just(1)))


def part(value: Any) -> bytes:
    return urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).rstrip(b"=")


def signed(head: Any, body: Any, key: str = KEY) -> str:
    said = part(head) + b"." + part(body)
    return (said + b"." + part(HS256.sign(said, key.encode()))).decode()


def usual(token: str) -> dict[str, Any] | None:
    options: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
    try:
        found: dict[str, Any] = jwt.decode(token, KEY, algorithms=["HS256"], audience=AUDIENCES, options=options)
    except jwt.InvalidTokenError:
        return None
    return found


@given(heads, claims)
def test_good_and_bad_claims_are_taken_as_pyjwt_takes_them(head: dict[str, Any], body: dict[str, Any]) -> None:
    token = signed({"alg": "HS256", **head}, body)
    found = TOKENS._plainly_good(token, AUDIENCES)
    if found is not None:
        assert found == usual(token)
    try:
        assert TOKENS.claims(token, AUDIENCES) == usual(token)
    except jwt.InvalidTokenError:
        assert usual(token) is None


@given(st.integers(0, 400), st.characters(codec="utf-8"), st.sampled_from(["replace", "insert", "cut"]))
def test_a_token_that_was_changed_is_not_good(place: int, character: str, how: str) -> None:
    token = signed({"alg": "HS256", "typ": "JWT"}, {"sub": "U", "aud": "authenticated"})
    place %= len(token)
    rest = token[place + 1 :] if how == "replace" else token[place:]
    changed = token[:place] if how == "cut" else token[:place] + character + rest
    if changed != token:
        assert TOKENS._plainly_good(changed, AUDIENCES) is None or usual(changed) is not None


def test_the_short_way_is_taken() -> None:
    token = signed({"alg": "HS256", "typ": "JWT"}, {"sub": "U", "aud": ["x", "authenticated"]})
    assert TOKENS._plainly_good(token, AUDIENCES) == {"sub": "U", "aud": ["x", "authenticated"]}


@pytest.mark.parametrize(
    ("head", "body", "key"),
    [
        ({"alg": "none"}, {"aud": "authenticated"}, KEY),
        ({"alg": "HS512"}, {"aud": "authenticated"}, KEY),
        ({"alg": "HS256"}, {"aud": "authenticated"}, "another key, which is as long as the other"),
        ({"alg": "HS256"}, {"aud": "others"}, KEY),
        ({"alg": "HS256"}, {}, KEY),
        ({"alg": "HS256"}, [], KEY),
        ({"alg": "HS256"}, {"aud": "authenticated", "sub": 1}, KEY),
        ([], {"aud": "authenticated"}, KEY),
    ],
)
def test_what_does_not_hold_is_refused_as_ever(head: Any, body: Any, key: str) -> None:
    with pytest.raises(jwt.InvalidTokenError):
        TOKENS.claims(signed(head, body, key), AUDIENCES)
