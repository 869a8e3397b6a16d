"""What the last events were that a topic handed over, to be compared with the log."""

from __future__ import annotations

from array import array
from typing import Final

MARKS: Final = 16
"""So many are remembered."""


class Marks:
    """A number for each of the last events that were handed over one after the other, without a hole.

    Whoever hands one over writes `numbers[offset % MARKS] = hash(payload)`; that is all there is on the hot path.
    """

    __slots__ = ("_start", "numbers")

    def __init__(self) -> None:
        self.numbers = array("q", bytes(8 * MARKS))
        self._start = 0

    def restart(self, offset: int) -> None:
        """Of what stands up to here nothing is known."""
        self._start = offset

    def after(self, position: int) -> int | None:
        """All events from here (exclusive) to the position are remembered; None: not one is."""
        return max(self._start, position - MARKS) if position > self._start else None

    def of(self, offset: int, position: int) -> int | None:
        """The number of the event at `offset`, when the last one stands at `position`; None: not remembered."""
        after = self.after(position)
        return self.numbers[offset % MARKS] if after is not None and after < offset <= position else None
