"""Tapes as they were described a moment ago, for those who come back together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from livetape.events.log import Tape
from livetape.gateway.subjects import Subject

SECONDS: Final = 1.0
"""Whoever began to watch that long before may know nothing better either."""

MAX_TAPES: Final = 10_000


class RecentTapes:
    """The newest descriptions, for a second. `now` counts seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._tapes: OrderedDict[Subject, tuple[float, Tape]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tapes)

    def get(self, subject: Subject) -> Tape | None:
        """How it was described, if that was within the last second."""
        self._tidy()
        found = self._tapes.get(subject)
        # They stand in the order of the answers, and one that took its time may stand behind a younger one.
        return None if found is None or found[0] <= self._now() - SECONDS else found[1]

    def put(self, subject: Subject, tape: Tape, asked_at: float) -> None:
        """This is the answer to a question that was asked then."""
        self._tapes[subject] = (asked_at, tape)
        self._tapes.move_to_end(subject)
        self._tidy()

    def forget(self, subject: Subject) -> None:
        """It may be another one now."""
        self._tapes.pop(subject, None)

    def _tidy(self) -> None:
        oldest = self._now() - SECONDS
        while self._tapes and (len(self._tapes) > MAX_TAPES or next(iter(self._tapes.values()))[0] <= oldest):
            self._tapes.popitem(last=False)
