"""Ports for time and identity, with the system's own. Everything that needs either takes it as an argument."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol, TypeAlias


class Clock(Protocol):
    """Wall time for what people read, monotonic time for waiting. They are never mixed."""

    def now(self) -> datetime:
        """The present moment, timezone-aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go backwards; only differences have a meaning."""
        ...


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


IdFactory: TypeAlias = Callable[[], str]
"""Returns a new id, unique in the system and ordered by the time of its making."""

EPOCH_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_epoch() -> str:
    """A new epoch for a tape: eight random characters, never a `-` (`<epoch>-<offset>` is split there)."""
    return "".join(secrets.choice(EPOCH_ALPHABET) for _ in range(8))


def new_id() -> str:
    """A version-7 UUID: time-ordered, so that rows of one time stand together in an index."""
    return _uuid7(secrets.randbits(74))


class IdPool:
    """`new_id` for who needs many: asks the system for randomness once in a few hundred ids.

    Each request for random bytes gives the interpreter's lock away, which under load costs more than the id.
    Safe for use by several threads, and in a forked process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool = b""
        self._at = 0
        self._pid = os.getpid()

    def __call__(self) -> str:
        with self._lock:
            if self._at >= len(self._pool) or self._pid != os.getpid():
                self._pool, self._at, self._pid = os.urandom(10 * 400), 0, os.getpid()
            drawn = self._pool[self._at : self._at + 10]
            self._at += 10
        return _uuid7(int.from_bytes(drawn) >> 6)


def _uuid7(random: int) -> str:
    """From 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    value = (
        (milliseconds & 0xFFFF_FFFF_FFFF) << 80
        | 0x7 << 76
        | (random >> 62) << 64
        | 0b10 << 62
        | (random & 0x3FFF_FFFF_FFFF_FFFF)
    )
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
