"""Ephemeral values in a SQLite file: they outlive the process, and all processes that use the file share them.

The table is also the platform's; there the migrations make it (`adapters/sql/tables.py`), and a test holds both
definitions alike.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final, TypeVar

from livetape.adapters.sqlite.file import microseconds
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Writer
from livetape.clock import Clock, SystemClock
from livetape.errors import StoreUnavailableError
from livetape.store.ephemeral import Ephemeral, check

T = TypeVar("T")

EPHEMERAL_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS ephemeral (
    key VARCHAR NOT NULL PRIMARY KEY,
    value BLOB NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS ephemeral_end ON ephemeral (expires_at);
"""

SWEEP_EVERY_US: Final = 10_000_000
SWEPT_AT_ONCE: Final = 1_000


def create_ephemeral_schema(connection: sqlite3.Connection) -> None:
    """Make the table where it is missing. For uses without the platform's migrations."""
    for statement in EPHEMERAL_SCHEMA.split(";"):
        if statement.strip():
            connection.execute(statement)


class SqliteEphemeral(Ephemeral):
    """Rows of the table `ephemeral`, written through the process's one writer.

    Times to live go by the wall clock: a restart does not prolong them. What has ended is never seen again; its rows
    are removed now and then, by whoever writes.
    """

    def __init__(self, writer: Writer, readers: Readers, *, clock: Clock | None = None) -> None:
        self._writer = writer
        self._readers = readers
        self._clock = clock or SystemClock()
        self._sweep_at = 0

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        check(key, value, ttl_s)
        now = microseconds(self._clock)
        await self._write(lambda db: _set(db, key, value, now + _microseconds(ttl_s)), now)

    async def put_once(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        check(key, value, ttl_s)
        now = microseconds(self._clock)

        def unit(db: sqlite3.Connection) -> bool:
            if _get(db, key, now) is not None:
                return False
            _set(db, key, value, now + _microseconds(ttl_s))
            return True

        return await self._write(unit, now)

    async def get(self, key: str) -> bytes | None:
        check(key)
        now = microseconds(self._clock)
        try:
            if not self._writer.is_open:
                await self._writer.run(lambda db: None)  # the file, and what is in it, is made by the writer
            found = await self._readers.run(lambda db: _get(db, key, now))
        except sqlite3.Error as error:
            raise _unavailable(error) from error
        return None if found is None else found[0]

    async def take(self, key: str) -> bytes | None:
        check(key)
        now = microseconds(self._clock)

        def unit(db: sqlite3.Connection) -> bytes | None:
            found = _get(db, key, now)
            if found is not None:
                db.execute("DELETE FROM ephemeral WHERE key = ?", (key,))
            return None if found is None else found[0]

        return await self._write(unit, now)

    async def incr(self, key: str, *, ttl_s: float, by: int = 1) -> int:
        check(key, ttl_s=ttl_s)
        now = microseconds(self._clock)

        def unit(db: sqlite3.Connection) -> int:
            value, end = _get(db, key, now) or (b"0", now + _microseconds(ttl_s))
            total = int(value) + by
            _set(db, key, b"%d" % total, end)
            return total

        return await self._write(unit, now)

    async def close(self) -> None:
        """The writer and the readers belong to whoever opened them."""

    async def _write(self, unit: Callable[[sqlite3.Connection], T], now: int) -> T:
        def with_sweep(db: sqlite3.Connection) -> T:
            if now >= self._sweep_at:
                self._sweep_at = now + SWEEP_EVERY_US
                db.execute(
                    "DELETE FROM ephemeral WHERE key IN (SELECT key FROM ephemeral WHERE expires_at <= ? LIMIT ?)",
                    (now, SWEPT_AT_ONCE),
                )
            return unit(db)

        try:
            return await self._writer.run(with_sweep, brief=now < self._sweep_at)
        except sqlite3.Error as error:
            raise _unavailable(error) from error


def _get(db: sqlite3.Connection, key: str, now: int) -> tuple[bytes, int] | None:
    row: tuple[bytes, int] | None = db.execute(
        "SELECT value, expires_at FROM ephemeral WHERE key = ? AND expires_at > ?", (key, now)
    ).fetchone()
    return row


def _set(db: sqlite3.Connection, key: str, value: bytes, end: int) -> None:
    db.execute(
        "INSERT INTO ephemeral (key, value, expires_at) VALUES (?, ?, ?)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at",
        (key, value, end),
    )


def _microseconds(seconds: float) -> int:
    return max(1, round(seconds * 1_000_000))


def _unavailable(error: sqlite3.Error) -> StoreUnavailableError:
    return StoreUnavailableError(f"the ephemeral store cannot be used: {error}")
