"""How frames leave for many sockets at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from livetape.gateway.member import Writer
from livetape.observability import get_logger

logger = get_logger(__name__)


class Row:
    """The writers of many who get the same. They do not change; `prepared` is what a sender keeps about them."""

    __slots__ = ("prepared", "writers")

    def __init__(self, writers: Sequence[Writer]) -> None:
        self.writers = writers
        self.prepared: object = None


class Sender(Protocol):
    """Hands frames over without waiting. One socket that fails ends nothing for the others: it is about to be lost.

    Per socket frames leave in the order in which they are handed over, here or to its writer.
    """

    def send_all(self, writers: Sequence[Writer], frame: bytes) -> int:
        """The same to each of these; returns how many took nothing."""

    def send_row(self, row: Row, begin: int, end: int, frame: bytes) -> int:
        """The same to each of the row from `begin` to before `end`."""

    def send_each(self, writers: Sequence[Writer], frames: Sequence[bytes]) -> list[int]:
        """To each its own; returns the places of those that took nothing. A writer may stand there several times."""


class PlainSender(Sender):
    """Calls one writer after the other."""

    def send_all(self, writers: Sequence[Writer], frame: bytes) -> int:
        failed = 0
        rest = iter(writers)
        while True:
            try:
                for write in rest:
                    write(frame)
            except Exception:
                failed += 1
                _log()
            else:
                return failed

    def send_row(self, row: Row, begin: int, end: int, frame: bytes) -> int:
        return self.send_all(row.writers[begin:end], frame)

    def send_each(self, writers: Sequence[Writer], frames: Sequence[bytes]) -> list[int]:
        failed = []
        for place, (write, frame) in enumerate(zip(writers, frames, strict=True)):
            try:
                write(frame)
            except Exception:
                failed.append(place)
                _log()
        return failed


def _log() -> None:
    logger.exception("a socket took no frame", extra={"action": "write_failed"})
