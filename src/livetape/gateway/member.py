"""One subscription as the fan-out sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from livetape.events.log import Position, Tape
from livetape.gateway.messages import Push

Writer: TypeAlias = Callable[[bytes], object]
"""Takes whole frames for one client, without a word back."""


class Member(Protocol):
    """A client's place in a topic."""

    each: bool
    """Whether it also gets every single output."""

    @property
    def writer(self) -> Writer | None:
        """The straight way to its client; None while there is none. `FanOut.shift` is told when it changes."""

    def put(self, push: Push, /) -> bool:
        """Take it without waiting; False when there is no room."""

    def fell_behind(self, position: Position) -> None:
        """It was taken out because `put` refused; it has everything up to here."""

    def finished(self) -> None:
        """The last event of the tape has been handed over."""

    def rewound(self, end: int) -> None:
        """While it reads the log: the tape has lost its end, and ends here or has gone on from here."""

    def may_stay(self, tape: Tape) -> bool:
        """Whether it may still watch, now that this is the tape."""

    def withdrawn(self) -> None:
        """The tape is somebody else's now: it gets nothing more of it."""
