"""Which of the copies that a server sends of one message is the one to deliver. Pure.

A connection gets a message once for its exact channel and once more for every pattern that matches. All copies come
over one connection in the server's order, and so do its confirmations: what is confirmed at that place in the stream
says which copies there are. One source is chosen per channel, the others are ignored.
"""

from __future__ import annotations

import re

from livetape.events.channel import is_pattern, redis_pattern
from livetape.events.routing import Patterns


def server_name(pattern: str) -> bytes:
    """A channel or pattern as the server knows it."""
    return (redis_pattern(pattern) if is_pattern(pattern) else pattern).encode()


def own_pattern(name: bytes) -> str:
    """The pattern whose `server_name` this is (of patterns only: in channels nothing is escaped)."""
    return re.sub(r"\\(.)", r"\1", name.decode("utf-8", "replace"))


class Sources:
    """The channels and patterns that the server has confirmed so far."""

    def __init__(self) -> None:
        self._exact: set[str] = set()
        self._patterns = Patterns(_as_the_server_matches)

    def __bool__(self) -> bool:
        return bool(self._exact or self._patterns)

    def clear(self) -> None:
        """The connection is gone."""
        self._exact.clear()
        self._patterns.clear()

    def confirm(self, pattern: str) -> None:
        """From here on the server sends copies for it."""
        if is_pattern(pattern):
            self._patterns.add(pattern)
        else:
            self._exact.add(pattern)

    def withdraw(self, pattern: str) -> None:
        """From here on it sends none any more."""
        self._exact.discard(pattern)
        self._patterns.discard(pattern)

    def of(self, channel: str) -> tuple[bytes | None, int]:
        """The source whose copy counts and how many copies there are.

        The source is the name of a pattern, or None for the exact channel (and when there are no copies).
        """
        matching = list(self._patterns.matching(channel))
        if channel in self._exact:
            return None, 1 + len(matching)
        return (server_name(matching[0]) if matching else None), len(matching)


def _as_the_server_matches(pattern: str) -> re.Pattern[str]:
    """Its `*` crosses levels; everything else in our patterns is literal there."""
    return re.compile(".*".join(re.escape(piece) for piece in pattern.split("*")), re.DOTALL)
