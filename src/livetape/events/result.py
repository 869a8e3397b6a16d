"""What became of a published event: the truth that a publisher tells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from livetape.errors import LivetapeError
from livetape.events.log import Position


@dataclass(frozen=True, slots=True)
class Published:
    """The outcome of one `publish`. False in a condition when the event was delivered nowhere.

    `position`: where it stands on its tape; None for live-only events and when the log did not take it.
    `receivers`: how many subscriptions of the bus got it; None when it could not be pushed, or is not yet (`buffered`).
    `buffered`: the bus is away; the event waits in this process and is pushed when the bus is back.
    `entry_id`: the id of its entry on the tape as a plain Redis client knows it; None for live-only events.
    `replaced`: on the bus stands only the notice that the event is too large.
    `error`: why something is None.
    """

    position: Position | None = None
    receivers: int | None = None
    buffered: bool = False
    error: LivetapeError | None = None
    entry_id: str | None = None
    replaced: bool = False

    @property
    def on_log(self) -> bool:
        """Whether it is durable."""
        return self.position is not None

    @property
    def on_bus(self) -> bool:
        """Whether the bus took it, even if nobody listens now."""
        return self.receivers is not None

    def __bool__(self) -> bool:
        return self.position is not None or bool(self.receivers)


@lru_cache(maxsize=1024)
def delivered(receivers: int) -> Published:
    """The outcome of a live-only event that the bus took."""
    return Published(receivers=receivers)


class Dropped(NamedTuple):
    """An event that was given up after it had been accepted, or for which there was no room.

    `reason` is `overflow` (the local buffer is full), `expired` (it waited too long), `closed` (the bus was closed
    before it could be reached), `unavailable` (there is no buffer), or the `code` of the error that refused it.
    """

    channel: str
    event_type: str
    size_bytes: int
    reason: str
