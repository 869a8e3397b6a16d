"""What became of a published event: the truth that a publisher tells."""

from __future__ import annotations

from dataclasses import dataclass

from livetape.errors import LivetapeError
from livetape.events.log import Position


@dataclass(frozen=True, slots=True)
class Published:
    """The outcome of one `publish`. False in a condition when the event was delivered nowhere.

    `position`: where it stands on its tape; None for live-only events and when the log did not take it.
    `receivers`: how many subscriptions of the bus got it; None when it could not be pushed, or is not yet (`buffered`).
    `buffered`: the bus is away; the event waits in this process and is pushed when the bus is back.
    `error`: why something is None.
    """

    position: Position | None = None
    receivers: int | None = None
    buffered: bool = False
    error: LivetapeError | None = None

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
