"""Writes and reads of a SQLite file as the ports of the event library see them: opened when needed, errors mapped."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Writer
from livetape.clock import Clock
from livetape.errors import LogError, LogUnavailableError

T = TypeVar("T")

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class SqliteFile:
    """Runs functions of a connection.

    Raises:
        LogUnavailableError: the file cannot be used now (locked, full, gone).
        LogError: any other failure of SQLite.
        ClosedError: after the writer was closed.
    """

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def write(self, unit: Callable[[sqlite3.Connection], T], *, brief: bool = False) -> T:
        """The unit's result, after its commit."""
        try:
            return await self._writer.run(unit, brief=brief)
        except sqlite3.Error as error:
            raise _mapped(error) from error

    def write_now(self, unit: Callable[[sqlite3.Connection], None]) -> bool:
        """Commit a brief unit here and now, if nothing else is being written and no commit waits for the disk."""
        try:
            return self._writer.run_now(unit)
        except sqlite3.Error as error:
            raise _mapped(error) from error

    async def read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """The result of a function that only reads."""
        if not self._writer.is_open:
            await self.write(_nothing)  # the file, and what is in it, is made by the writer
        try:
            return await self._readers.run(read)
        except sqlite3.Error as error:
            raise _mapped(error) from error


def microseconds(clock: Clock) -> int:
    """The present moment since 1970, as the tables keep it."""
    return microseconds_of(clock.now())


def microseconds_of(time: datetime) -> int:
    """An aware datetime as the tables keep it."""
    return (time - _UNIX_EPOCH) // _MICROSECOND


def _nothing(_: sqlite3.Connection) -> None:
    pass


def _mapped(error: sqlite3.Error) -> LogError:
    if isinstance(error, sqlite3.OperationalError):
        return LogUnavailableError(f"the event log cannot be used: {error}")
    return LogError(f"the event log failed: {error}")
