"""What an answer of the log is compared with. Pure."""

from __future__ import annotations

from typing import NamedTuple

from livetape.events.log import Position, Tape


class Asked(NamedTuple):
    """What was known of a topic when the log was asked (`Topic.ask`, `Topic.learn`)."""

    turn: int
    top: int


class Doubt(NamedTuple):
    """Another event came with this offset than the one that was handed over, which is known by its `mark` if at all."""

    offset: int
    mark: int | None


def is_trimmed(tape: Tape, position: Position) -> bool:
    """Whether events after this position of a mixed tape may be gone: a hole in its numbers does not tell."""
    return 0 < position.offset < tape.first_offset - 1
