"""Channel and tape names, by the sentences of the wire contract."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.errors import ChannelError
from livetape.events import channel as ch

ids = st.text(min_size=1, max_size=60).filter(lambda text: "*" not in text)


def test_names_are_those_of_the_seed() -> None:
    assert ch.execution_channel("u", "g", "e") == "execution_event/u/g/e"
    assert ch.notification_channel("u") == "notification_event/u"
    assert ch.job_channel("j") == "job_event/j"
    assert ch.execution_pattern("*") == "execution_event/*/*/*"
    assert ch.execution_pattern("u", "g") == "execution_event/u/g/*"
    assert (ch.execution_tape("e"), ch.graph_tape("g"), ch.job_tape("j")) == (
        "execution_events:e",
        "graph_events:g",
        "job_events:j",
    )


@given(ids, ids, ids)
def test_any_id_survives_the_wire_and_stays_one_level(user: str, graph: str, execution: str) -> None:
    try:
        name = ch.execution_channel(user, graph, execution)
    except UnicodeEncodeError:
        return  # a lone surrogate is no id
    assert ch.split_channel(name) == ("execution_event", (user, graph, execution))
    assert ch.split_tape(ch.job_tape(user)) == ("job_events", user)


@pytest.mark.parametrize("part", ["", "x" * 201, "*", "a*b"])
def test_what_cannot_be_published_is_refused(part: str) -> None:
    with pytest.raises(ChannelError):
        ch.job_channel(part)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("b/a", "b/a", True),
        ("b/a", "b/a/c", False),
        ("b/*", "b/a/c/d", True),
        ("b/*", "b/", False),
        ("b/*", "bb/a", False),
        ("b/*/c", "b/a/c", True),
        ("b/*/c", "b/a/x/c", False),
        ("b/a/*", "b/a/c/d", False),
        ("b/user_*/graph_*", "b/user_1/graph_2", True),
        ("b/user_*/graph_*", "b/user_1/2/graph_2", False),
        ("b/a.c", "b/abc", False),
        ("b/[ab]?", "b/ab", False),
        ("b/[ab]?", "b/[ab]?", True),
        ("b/*\n", "b/a\n", True),
    ],
)
def test_a_star_matches_within_one_level_and_alone_everything(pattern: str, name: str, expected: bool) -> None:
    assert ch.matches(pattern, name) is expected


@given(st.text("ab*", min_size=1, max_size=6), st.text("ab", min_size=0, max_size=6))
def test_within_one_level_it_is_the_usual_glob(pattern: str, text: str) -> None:
    if pattern != "*":  # alone it is another rule
        assert ch.matches(f"b/{pattern}", f"b/{text}") == fnmatch.fnmatchcase(text, pattern)


def test_other_glob_characters_are_literal_for_redis() -> None:
    assert ch.redis_pattern("b/[x]?^\\*") == r"b/\[x\]\?\^\\*"


@pytest.mark.parametrize("name", ["", "nobus", "/key", "bus/"])
def test_what_is_no_channel_is_refused(name: str) -> None:
    with pytest.raises(ChannelError):
        ch.split_channel(name)
