"""What looks like a secret is black; the rest can be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.events.blackout import black_out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no such file: a.txt", "no such file: a.txt"),
        ("redis://user:hunter2@db:6379/0 refused", "redis://user:***@db:6379/0 refused"),
        ("redis://:hunter2@db", "redis://:***@db"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        ("password=hunter2, user=u", "password=***, user=u"),
        ("{'db_password': 'hunter 2', 'n': 1}", "{'db_password': ***, 'n': 1}"),
        ('{"api_key":"k-1"}', '{"api_key":***}'),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("sent bearer abcdefghij", "sent bearer ***"),
        ("?token=abc&x=1", "?token=***&x=1"),
        ("the token has expired", "the token has expired"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert black_out(text, 1000) == shown


@given(st.text(), st.integers(1, 50))
def test_it_is_never_longer_than_asked(text: str, most: int) -> None:
    assert len(black_out(text, most)) <= most
