"""The routing index against the plain meaning of patterns, and what it costs to have many."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from livetape.events.channel import compiled, matches
from livetape.events.routing import Patterns, RoutingIndex

LEVELS = st.lists(st.sampled_from(["a", "ab", "b", "*", "a*", "*b"]), min_size=1, max_size=4).map("/".join)
PATTERNS = st.builds("bus/{}".format, LEVELS)
CHANNELS = st.lists(st.sampled_from(["a", "ab", "b"]), min_size=1, max_size=4).map(
    lambda levels: f"bus/{'/'.join(levels)}"
)


@given(
    st.lists(st.tuples(st.sampled_from(["attach", "detach"]), PATTERNS, st.integers(0, 2)), max_size=30),
    st.lists(CHANNELS, min_size=1, max_size=5),
)
def test_a_message_finds_whom_its_patterns_lead_to(steps: list[tuple[str, str, int]], channels: list[str]) -> None:
    index, led = RoutingIndex[int](), set[tuple[str, int]]()
    for step, pattern, member in steps:
        is_alone = not any(other == pattern for other, _ in led - {(pattern, member)})
        if step == "attach":
            assert index.attach(pattern, member) is (is_alone and (pattern, member) not in led)
            led.add((pattern, member))
        else:
            assert index.detach(pattern, member) is (is_alone and (pattern, member) in led)
            led.discard((pattern, member))
        for channel in channels:
            expected = {member for pattern, member in led if matches(pattern, channel)}
            found = index.members(channel)
            assert set(found) == expected
            assert len(found) == len(expected)
    assert bool(index) is bool(led)


def test_patterns_of_one_user_are_not_looked_at_for_another() -> None:
    made: list[str] = []

    def compile_pattern(pattern: str) -> re.Pattern[str]:
        made.append(pattern)
        return compiled(pattern)

    patterns = Patterns(compile_pattern)
    for number in range(5_000):  # more than any cache of compiled patterns remembers
        patterns.add(f"execution_event/eve/*/{number}")
    patterns.add("execution_event/alice/*/7")
    for _ in range(100):
        assert list(patterns.matching("execution_event/alice/g/7")) == ["execution_event/alice/*/7"]
        assert list(patterns.matching("job_event/7")) == []
    assert list(patterns.matching("execution_event/eve/g/7")) == ["execution_event/eve/*/7"]
    assert len(made) == 5_001, "each is compiled once"


def test_what_is_added_twice_is_one_and_what_is_unknown_is_ignored() -> None:
    patterns = Patterns(compiled)
    patterns.discard("bus/*")
    assert not patterns
    patterns.add("bus/*")
    patterns.add("bus/*")
    assert list(patterns.matching("bus/a/b")) == ["bus/*"]
    patterns.discard("bus/*")
    assert not patterns
    assert list(patterns.matching("bus/a/b")) == []
    patterns.add("bus/*")
    patterns.clear()
    assert not patterns
