"""Who listens to which channel: exact names and patterns, with an answer per channel that is remembered. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator
from typing import Final, Generic, TypeVar

from livetape.events.channel import compiled, is_pattern

MAX_REMEMBERED_CHANNELS: Final = 4096

Member = TypeVar("Member", bound=Hashable)


class Patterns:
    """Patterns, found by what they match. Those of one user are not looked at for the channels of another: they are
    kept by what stands before their first `*`."""

    def __init__(self, compile_pattern: Callable[[str], re.Pattern[str]]) -> None:
        self._compile = compile_pattern
        self._by_prefix: dict[str, dict[str, re.Pattern[str]]] = {}
        self._lengths: dict[int, int] = {}
        """Of the prefixes, and how many there are of each."""

    def __bool__(self) -> bool:
        return bool(self._by_prefix)

    def add(self, pattern: str) -> None:
        """Known ones are ignored."""
        prefix = _prefix_of(pattern)
        under = self._by_prefix.get(prefix)
        if under is None:
            under = self._by_prefix[prefix] = {}
            self._lengths[len(prefix)] = self._lengths.get(len(prefix), 0) + 1
        if pattern not in under:
            under[pattern] = self._compile(pattern)

    def discard(self, pattern: str) -> None:
        """Unknown ones are ignored."""
        prefix = _prefix_of(pattern)
        under = self._by_prefix.get(prefix)
        if under is None or under.pop(pattern, None) is None or under:
            return
        del self._by_prefix[prefix]
        self._lengths[len(prefix)] -= 1
        if not self._lengths[len(prefix)]:
            del self._lengths[len(prefix)]

    def clear(self) -> None:
        """None is left."""
        self._by_prefix.clear()
        self._lengths.clear()

    def matching(self, channel: str) -> Iterator[str]:
        """All that match, in no order."""
        for length in self._lengths:
            for pattern, regex in self._by_prefix.get(channel[:length], _NONE).items():
                if regex.fullmatch(channel):
                    yield pattern


_NONE: Final[dict[str, re.Pattern[str]]] = {}


def _prefix_of(pattern: str) -> str:
    return pattern.partition("*")[0]


class RoutingIndex(Generic[Member]):
    """Members under channels and patterns. A member that several patterns lead to is found once."""

    def __init__(self) -> None:
        self._exact: dict[str, set[Member]] = {}
        self._patterns: dict[str, set[Member]] = {}
        self._matching = Patterns(compiled)
        self._found: dict[str, tuple[Member, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._exact or self._patterns)

    def __contains__(self, pattern: str) -> bool:
        return pattern in (self._patterns if is_pattern(pattern) else self._exact)

    def attach(self, pattern: str, member: Member) -> bool:
        """Lead what matches to this member too. True when nobody was under this pattern before."""
        index = self._patterns if is_pattern(pattern) else self._exact
        self._forget(pattern)
        members = index.get(pattern)
        if members is None:
            index[pattern] = {member}
            if index is self._patterns:
                self._matching.add(pattern)
            return True
        members.add(member)
        return False

    def detach(self, pattern: str, member: Member) -> bool:
        """Undo `attach`. True when nobody is under this pattern any more and somebody was."""
        index = self._patterns if is_pattern(pattern) else self._exact
        members = index.get(pattern)
        if members is None or member not in members:
            return False
        self._forget(pattern)
        members.remove(member)
        if members:
            return False
        del index[pattern]
        if index is self._patterns:
            self._matching.discard(pattern)
        return True

    def members(self, channel: str) -> tuple[Member, ...]:
        """All that a message on this channel goes to, each once, in no order."""
        found = self._found.get(channel)
        if found is None:
            if len(self._found) >= MAX_REMEMBERED_CHANNELS:
                self._found.clear()
            found = self._found[channel] = self._search(channel)
        return found

    def _search(self, channel: str) -> tuple[Member, ...]:
        members = set(self._exact.get(channel, ()))
        for pattern in self._matching.matching(channel):
            members |= self._patterns[pattern]
        return tuple(members)

    def _forget(self, pattern: str) -> None:
        if is_pattern(pattern):
            self._found.clear()
        else:
            self._found.pop(pattern, None)
