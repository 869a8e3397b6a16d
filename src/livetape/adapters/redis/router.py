"""From what the server sends to the outlets of those who listen: each message once, as cheaply as possible."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from livetape.adapters.redis.sources import Sources
from livetape.events.bus import BusMessage
from livetape.events.channel import is_pattern
from livetape.events.funnel import NO_LANES, Funnel
from livetape.events.inbox import DEFAULT_MAX_BYTES, DEFAULT_MAX_MESSAGES
from livetape.events.outlet import Outlet
from livetape.events.routing import MAX_REMEMBERED_CHANNELS, RoutingIndex
from livetape.observability import Metrics, NoMetrics, get_logger

logger = get_logger(__name__)

_NEW: Final = tuple.__new__


@dataclass(frozen=True, slots=True)
class Route:
    """What to do with the messages of one channel: the source that counts, where they go, how many copies come."""

    source: bytes | None
    channel: str
    outlets: tuple[Outlet, ...]
    copies: int
    takers: tuple[Callable[[BusMessage], object], ...]


class Router:
    """Knows who listens to what, and what the server has confirmed; remembers the route of each channel.

    While the link comes back, messages are held: some channels are listened to again before others, and the marker
    that says "something may be missing" must stand before all that comes after it.
    """

    def __init__(
        self,
        *,
        max_held: int = DEFAULT_MAX_MESSAGES,
        max_held_bytes: int = DEFAULT_MAX_BYTES,
        metrics: Metrics | None = None,
    ) -> None:
        self.index: RoutingIndex[Outlet] = RoutingIndex()
        self.messages = 0
        """How many were handed on, copies that were ignored not counted."""
        self._sources = Sources()
        self._routes: dict[bytes, Route] = {}
        self._outlets: set[Outlet] = set()
        self._funnels: tuple[Funnel, ...] = ()
        self._express: Funnel | None = None  # the first one that has lanes: nobody else's are used
        self._others: dict[str, set[Outlet]] = {}  # who else listens, by channel or pattern
        self._barred: set[bytes] = set()  # those channels
        self._others_patterns: set[str] = set()
        self._holding = False
        self._held: deque[tuple[tuple[Callable[[BusMessage], object], ...], BusMessage]] = deque()
        self._held_bytes = 0
        self._metrics = metrics or NoMetrics()
        self._max_held: Final = max_held
        self._max_held_bytes: Final = max_held_bytes

    # ---- who listens -----------------------------------------------------------------------------------------------

    def open(self, outlet: Outlet) -> None:
        """It gets gap markers from now on."""
        self._outlets.add(outlet)
        if isinstance(outlet, Funnel):
            self._funnels = (*self._funnels, outlet)
            if self._express is None and outlet.lanes is not NO_LANES:
                self._express = outlet

    def close(self, outlet: Outlet) -> None:
        """Undo `open`."""
        self._outlets.discard(outlet)
        self._funnels = tuple(funnel for funnel in self._funnels if funnel is not outlet)
        if outlet is self._express:
            self._express = None

    def attach(self, pattern: str, outlet: Outlet) -> bool:
        """See `RoutingIndex.attach`."""
        self._forget(pattern)
        if outlet is not self._express:
            self._others.setdefault(pattern, set()).add(outlet)
            self._bar(pattern)
        return self.index.attach(pattern, outlet)

    def detach(self, pattern: str, outlet: Outlet) -> bool:
        """See `RoutingIndex.detach`."""
        self._forget(pattern)
        others = self._others.get(pattern)
        if others is not None:
            others.discard(outlet)
            self._bar(pattern)
        return self.index.detach(pattern, outlet)

    def route(self, channel: bytes) -> Route:
        """Where its messages go now."""
        route = self._routes.get(channel)
        if route is None:
            if len(self._routes) >= MAX_REMEMBERED_CHANNELS:
                self._routes.clear()
            name = channel.decode("utf-8", "replace")
            source, copies = self._sources.of(name)
            outlets = self.index.members(name)
            takers = tuple(outlet.taker for outlet in outlets)
            route = self._routes[channel] = Route(source, name, outlets, copies, takers)
        return route

    def listened(self, channel: str) -> Route | None:
        """As `route`; None when there is nobody here at all, and no copy on its way from the server."""
        if not self.index and not self._sources:
            return None
        return self.route(channel.encode())

    # ---- called by the link ----------------------------------------------------------------------------------------

    def arrived(self, pushes: Sequence[list[Any]], one: Callable[[list[Any]], None]) -> None:
        """What came together. `one` is given what is not a copy by an exact channel whose route is remembered.

        Those who want what came together in one call get it at the end.
        """
        if self._holding:
            for push in pushes:
                one(push)
            return
        routes, lanes = self._routes, self._free_lanes()
        known = taken = 0
        for push in pushes:
            if push[0] != b"message":
                one(push)
                continue
            channel = push[1]
            lane = lanes.get(channel)
            if lane is not None:
                try:
                    if lane(push[2]):
                        taken += 1
                        continue
                except Exception:  # the sink gets it, and is told that something may be missing
                    logger.exception("a lane raised", extra={"action": "bus_sink_failed"})
                    self._metrics.count("internal_errors_total", part="bus")
                    for funnel in self._funnels:
                        funnel.mark_gap()
            if (route := routes.get(channel)) is not None:
                if route.source is not None:
                    continue
                known += 1
                message = _NEW(BusMessage, (route.channel, push[2], False))  # half the time without keyword arguments
                for take in route.takers:
                    take(message)
            else:
                one(push)
        self.messages += known + taken
        self._flush(taken)

    def message(self, source: bytes | None, channel: bytes, data: bytes) -> None:
        """One copy, by the pattern `source` or by the exact channel."""
        route = self._routes.get(channel) or self.route(channel)
        if source != route.source:
            return
        message = BusMessage(route.channel, data)
        if self._holding:
            self._hold(route.takers, message)
            return
        self.messages += 1
        for take in route.takers:
            take(message)

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
            for outlet in self._outlets:
                outlet.mark_gap()
        self._holding = False
        self.messages += len(self._held)
        while self._held:
            takers, message = self._held.popleft()
            for take in takers:
                take(message)
        self._held_bytes = 0
        self._flush()

    def _flush(self, taken: int = 0) -> None:
        for funnel in self._funnels:
            funnel.flush(taken if funnel is self._express else 0)

    def _hold(self, takers: tuple[Callable[[BusMessage], object], ...], message: BusMessage) -> None:
        """What no longer fits is dropped: the marker that will stand before it speaks for it too."""
        self._held.append((takers, message))
        self._held_bytes += len(message.data)
        while len(self._held) > self._max_held or self._held_bytes > self._max_held_bytes:
            _, oldest = self._held.popleft()
            self._held_bytes -= len(oldest.data)

    def _free_lanes(self) -> Mapping[bytes, Callable[[bytes], bool]]:
        if self._express is None or self._others_patterns:
            return NO_LANES
        lanes = self._express.lanes
        for channel in self._barred:
            if channel in lanes:
                return {channel: lane for channel, lane in lanes.items() if channel not in self._barred}
        return lanes

    def _bar(self, pattern: str) -> None:
        """Lanes take nothing away from others who listen."""
        listened = bool(self._others[pattern])
        if not listened:
            del self._others[pattern]
        if is_pattern(pattern):
            (self._others_patterns.add if listened else self._others_patterns.discard)(pattern)
        else:
            (self._barred.add if listened else self._barred.discard)(pattern.encode())

    def _forget(self, pattern: str) -> None:
        if is_pattern(pattern):
            self._routes.clear()
        else:
            self._routes.pop(pattern.encode(), None)
