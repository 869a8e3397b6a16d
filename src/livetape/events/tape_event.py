"""An event on its way to those who watch a tape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class TapeEvent:
    """An event on its way to watchers: its JSON, and where it stands on the tape that is watched.

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


@dataclass(frozen=True, slots=True)
class MixedTapeEvent(TapeEvent):
    """The same on a mixed tape: its offset rises, but not by one, and is larger than JSON numbers carry exactly."""

    mixed: ClassVar[bool] = True
