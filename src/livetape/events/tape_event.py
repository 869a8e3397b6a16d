"""An event on its way to those who watch a tape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

# Neither is frozen, which would triple the time to make one, and one is made of every message of the bus.


@dataclass(slots=True)
class TapeEvent:
    """An event on its way to watchers: its JSON, and where it stands on the tape that is watched. Never changed.

    `offset` and `epoch` are None for an event that is on no tape. `final`: nothing follows on this tape. `at_us`: when
    the log took it, in microseconds since 1970; 0 when it came live and that is not known.
    """

    event_type: str
    payload: bytes
    offset: int | None = None
    epoch: str | None = None
    final: bool = False
    at_us: int = field(default=0, compare=False)

    mixed: ClassVar[bool] = False
    """Whether it stands on a tape to which somebody else writes too (`Tape.mixed`)."""

    shortened: ClassVar[bool] = False
    """Whether its payload is less than the event on the tape: that was too large."""


@dataclass(slots=True)
class MixedTapeEvent(TapeEvent):
    """The same on a mixed tape: its offset rises, but not by one, and is larger than JSON numbers carry exactly."""

    mixed: ClassVar[bool] = True


@dataclass(slots=True)
class ShortenedEvent(TapeEvent):
    """The same, its payload cut: see `shorten_payload`."""

    shortened: ClassVar[bool] = True


@dataclass(slots=True)
class ShortenedMixedEvent(MixedTapeEvent):
    """The same on a mixed tape."""

    shortened: ClassVar[bool] = True


def shortened(event: TapeEvent, payload: bytes) -> TapeEvent:
    """The event with this payload in place of its own, which was too large."""
    kind = ShortenedMixedEvent if event.mixed else ShortenedEvent
    return kind(event.event_type, payload, event.offset, event.epoch, event.final, event.at_us)
