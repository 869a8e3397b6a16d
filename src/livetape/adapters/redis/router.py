"""From what the server sends to the inboxes of those who listen: each message once, as cheaply as possible."""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from livetape.adapters.redis.sources import Sources
from livetape.events.bus import BusMessage
from livetape.events.channel import is_pattern
from livetape.events.inbox import DEFAULT_MAX_BYTES, DEFAULT_MAX_MESSAGES, Inbox
from livetape.events.routing import MAX_REMEMBERED_CHANNELS, RoutingIndex

_NEW: Final = tuple.__new__


class Route(NamedTuple):
    """What to do with the messages of one channel: the source that counts, where they go, how many copies come."""

    source: bytes | None
    channel: str
    inboxes: tuple[Inbox, ...]
    copies: int


class Router:
    """Knows who listens to what, and what the server has confirmed; remembers the route of each channel.

    While the link comes back, messages are held: some channels are listened to again before others, and the marker
    that says "something may be missing" must stand before all that comes after it.
    """

    def __init__(self, *, max_held: int = DEFAULT_MAX_MESSAGES, max_held_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.index: RoutingIndex[Inbox] = RoutingIndex()
        self.messages = 0
        """How many were handed on, copies that were ignored not counted."""
        self._sources = Sources()
        self._routes: dict[bytes, Route] = {}
        self._inboxes: set[Inbox] = set()
        self._holding = False
        self._held: deque[tuple[tuple[Inbox, ...], BusMessage]] = deque()
        self._held_bytes = 0
        self._max_held: Final = max_held
        self._max_held_bytes: Final = max_held_bytes

    # ---- who listens -----------------------------------------------------------------------------------------------

    def open(self, inbox: Inbox) -> None:
        """It gets gap markers from now on."""
        self._inboxes.add(inbox)

    def close(self, inbox: Inbox) -> None:
        """Undo `open`."""
        self._inboxes.discard(inbox)

    def attach(self, pattern: str, inbox: Inbox) -> bool:
        """See `RoutingIndex.attach`."""
        self._forget(pattern)
        return self.index.attach(pattern, inbox)

    def detach(self, pattern: str, inbox: Inbox) -> bool:
        """See `RoutingIndex.detach`."""
        self._forget(pattern)
        return self.index.detach(pattern, inbox)

    def route(self, channel: bytes) -> Route:
        """Where its messages go now."""
        route = self._routes.get(channel)
        if route is None:
            if len(self._routes) >= MAX_REMEMBERED_CHANNELS:
                self._routes.clear()
            name = channel.decode("utf-8", "replace")
            source, copies = self._sources.of(name)
            route = self._routes[channel] = Route(source, name, self.index.members(name), copies)
        return route

    def listened(self, channel: str) -> Route | None:
        """As `route`; None when there is nobody here at all, and no copy on its way from the server."""
        if not self.index and not self._sources:
            return None
        return self.route(channel.encode())

    # ---- called by the link ----------------------------------------------------------------------------------------

    def message(self, source: bytes | None, channel: bytes, data: bytes) -> None:
        """One copy, by the pattern `source` or by the exact channel."""
        expected, name, inboxes, _ = self._routes.get(channel) or self.route(channel)
        if source != expected:
            return
        message = _NEW(BusMessage, (name, data, False))  # without its keyword arguments: half the time
        if self._holding:
            self._hold(inboxes, message)
            return
        self.messages += 1
        for inbox in inboxes:
            inbox.offer(message)

    def changed(self, pattern: str, confirmed: bool) -> None:
        """The server listens to it for us from this place in the stream on, or no longer does."""
        self._forget(pattern)
        if confirmed:
            self._sources.confirm(pattern)
        else:
            self._sources.withdraw(pattern)

    def lost(self) -> None:
        """Nothing is listened to any more. What comes before `listening` is held."""
        self._sources.clear()
        self._routes.clear()
        self._held.clear()
        self._held_bytes = 0
        self._holding = True

    def listening(self, *, again: bool) -> None:
        """Everything is listened to; `again` when it was before: then something may be missing."""
        if again:
            for inbox in self._inboxes:
                inbox.mark_gap()
        self._holding = False
        self.messages += len(self._held)
        while self._held:
            inboxes, message = self._held.popleft()
            for inbox in inboxes:
                inbox.offer(message)
        self._held_bytes = 0

    def _hold(self, inboxes: tuple[Inbox, ...], message: BusMessage) -> None:
        """What no longer fits is dropped: the marker that will stand before it speaks for it too."""
        self._held.append((inboxes, message))
        self._held_bytes += len(message.data)
        while len(self._held) > self._max_held or self._held_bytes > self._max_held_bytes:
            _, oldest = self._held.popleft()
            self._held_bytes -= len(oldest.data)

    def _forget(self, pattern: str) -> None:
        if is_pattern(pattern):
            self._routes.clear()
        else:
            self._routes.pop(pattern.encode(), None)
