"""Who listens to which channel: exact names and patterns, with an answer per channel that is remembered. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from livetape.events.channel import is_pattern, matches

MAX_REMEMBERED_CHANNELS: Final = 4096

Member = TypeVar("Member", bound=Hashable)


class RoutingIndex(Generic[Member]):
    """Members under channels and patterns. A member that several patterns lead to is found once."""

    def __init__(self) -> None:
        self._exact: dict[str, set[Member]] = {}
        self._patterns: dict[str, set[Member]] = {}
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
        for pattern, under in self._patterns.items():
            if matches(pattern, channel):
                members |= under
        return tuple(members)

    def _forget(self, pattern: str) -> None:
        if is_pattern(pattern):
            self._found.clear()
        else:
            self._found.pop(pattern, None)
