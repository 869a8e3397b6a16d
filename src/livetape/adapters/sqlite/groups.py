"""ConsumerGroups on SQLite: where a group stands, and what its consumers have not acknowledged.

The tables are the event library's own, made by `create_group_schema`: the platform does not use them and its
migrations leave them alone.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from livetape.adapters.sqlite.arrivals import LOOK_EVERY_S, Arrivals
from livetape.adapters.sqlite.file import SqliteFile, microseconds
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Writer
from livetape.clock import Clock, SystemClock
from livetape.errors import NotFoundError
from livetape.events.groups import ConsumerGroups, Delivered, Pending, check_names
from livetape.events.log import MAX_READ, Entry

GROUP_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS consumer_group (
    id INTEGER NOT NULL PRIMARY KEY,
    tape VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    position INTEGER NOT NULL,
    UNIQUE (tape, name)
);
CREATE TABLE IF NOT EXISTS delivery (
    group_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    consumer VARCHAR NOT NULL,
    time BIGINT NOT NULL,
    deliveries INTEGER NOT NULL,
    PRIMARY KEY (group_id, number)
) WITHOUT ROWID;
"""

_MICROSECONDS: Final = 1_000_000
_ENTRY_COLUMNS: Final = "event.number, event_type, payload, final, event.time"


def create_group_schema(connection: sqlite3.Connection) -> None:
    """Make the tables where they are missing."""
    for statement in GROUP_SCHEMA.split(";"):
        if statement.strip():
            connection.execute(statement)


class SqliteGroups(ConsumerGroups):
    """Groups in the file of their tapes.

    Who waits is woken by what is appended through `arrivals`, and looks for what other processes append every
    0.1 seconds.
    """

    def __init__(
        self, writer: Writer, readers: Readers, *, clock: Clock | None = None, arrivals: Arrivals | None = None
    ) -> None:
        self._file = SqliteFile(writer, readers)
        self._arrivals = arrivals or Arrivals()
        self._clock = clock or SystemClock()

    async def create(self, tape: str, group: str, *, after: int = 0) -> bool:
        check_names(group)

        def unit(db: sqlite3.Connection) -> bool:
            made = db.execute(
                "INSERT INTO consumer_group (tape, name, position) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (tape, group, after),
            )
            return made.rowcount == 1

        return await self._file.write(unit)

    async def take(
        self, tape: str, group: str, consumer: str, *, limit: int = 100, wait_s: float = 0
    ) -> Sequence[Delivered]:
        check_names(group, consumer)
        count = max(0, min(limit, MAX_READ))
        until = asyncio.get_running_loop().time() + wait_s
        while True:
            arrival = self._arrivals.expect(tape)
            try:
                # A look costs no write, and most looks of those who wait find nothing.
                if await self._file.read(lambda db: _has_more(db, tape, group)):
                    delivered = await self._file.write(lambda db: self._hand_over(db, tape, group, consumer, count))
                    if delivered:
                        return delivered
                left = until - asyncio.get_running_loop().time()
                if left <= 0 or count == 0:
                    return []
                await asyncio.wait([arrival], timeout=min(left, LOOK_EVERY_S))
            finally:
                self._arrivals.forget(tape, arrival)

    async def ack(self, tape: str, group: str, *offsets: int) -> int:
        check_names(group)

        def unit(db: sqlite3.Connection) -> int:
            found = _find(db, tape, group)
            if found is None:
                return 0
            done = db.executemany(
                "DELETE FROM delivery WHERE group_id = ? AND number = ?", [(found[0], offset) for offset in offsets]
            )
            return max(0, done.rowcount)

        return await self._file.write(unit, brief=len(offsets) <= 10) if offsets else 0

    async def claim(
        self, tape: str, group: str, consumer: str, *, idle_s: float, limit: int = 100
    ) -> Sequence[Delivered]:
        check_names(group, consumer)
        count = max(0, min(limit, MAX_READ))

        def unit(db: sqlite3.Connection) -> list[Delivered]:
            group_id, _ = _require(db, tape, group)
            row = db.execute("SELECT id, first_number FROM tape WHERE name = ?", (tape,)).fetchone()
            tape_id, first = row or (0, 1)
            db.execute("DELETE FROM delivery WHERE group_id = ? AND number < ?", (group_id, first))
            now = microseconds(self._clock)
            rows = db.execute(
                f"SELECT {_ENTRY_COLUMNS}, deliveries FROM delivery"  # noqa: S608 - a constant
                " JOIN event ON event.tape_id = ? AND event.number = delivery.number"
                " WHERE group_id = ? AND delivery.time <= ? ORDER BY delivery.number LIMIT ?",
                (tape_id, group_id, now - round(idle_s * _MICROSECONDS), count),
            ).fetchall()
            db.executemany(
                "UPDATE delivery SET consumer = ?, time = ?, deliveries = deliveries + 1"
                " WHERE group_id = ? AND number = ?",
                [(consumer, now, group_id, row[0]) for row in rows],
            )
            return [Delivered(_entry(row), row[5] + 1) for row in rows]

        return await self._file.write(unit)

    async def pending(self, tape: str, group: str, *, limit: int = MAX_READ) -> Sequence[Pending]:
        check_names(group)
        now = microseconds(self._clock)

        def read(db: sqlite3.Connection) -> list[Pending]:
            rows = db.execute(
                "SELECT number, consumer, time, deliveries FROM delivery"
                " WHERE group_id = (SELECT id FROM consumer_group WHERE tape = ? AND name = ?)"
                " ORDER BY number LIMIT ?",
                (tape, group, max(0, limit)),
            )
            return [
                Pending(number, name, max(0, now - time) / _MICROSECONDS, deliveries)
                for number, name, time, deliveries in rows
            ]

        return await self._file.read(read)

    async def drop(self, tape: str, group: str) -> bool:
        check_names(group)

        def unit(db: sqlite3.Connection) -> bool:
            found = _find(db, tape, group)
            if found is None:
                return False
            db.execute("DELETE FROM delivery WHERE group_id = ?", (found[0],))
            db.execute("DELETE FROM consumer_group WHERE id = ?", (found[0],))
            return True

        return await self._file.write(unit)

    def _hand_over(self, db: sqlite3.Connection, tape: str, group: str, consumer: str, count: int) -> list[Delivered]:
        group_id, position = _require(db, tape, group)
        rows = db.execute(
            f"SELECT {_ENTRY_COLUMNS} FROM event"  # noqa: S608 - a constant
            " WHERE tape_id = (SELECT id FROM tape WHERE name = ?) AND number > ? ORDER BY number LIMIT ?",
            (tape, position, count),
        ).fetchall()
        if rows:
            now = microseconds(self._clock)
            db.executemany(
                "INSERT INTO delivery (group_id, number, consumer, time, deliveries) VALUES (?, ?, ?, ?, 1)",
                [(group_id, row[0], consumer, now) for row in rows],
            )
            db.execute("UPDATE consumer_group SET position = ? WHERE id = ?", (rows[-1][0], group_id))
        return [Delivered(_entry(row), 1) for row in rows]


def _find(db: sqlite3.Connection, tape: str, group: str) -> tuple[int, int] | None:
    row: tuple[int, int] | None = db.execute(
        "SELECT id, position FROM consumer_group WHERE tape = ? AND name = ?", (tape, group)
    ).fetchone()
    return row


def _require(db: sqlite3.Connection, tape: str, group: str) -> tuple[int, int]:
    found = _find(db, tape, group)
    if found is None:
        raise NotFoundError(f"there is no group {group} of {tape}", tape=tape, group=group)
    return found


def _has_more(db: sqlite3.Connection, tape: str, group: str) -> bool:
    _, position = _require(db, tape, group)
    row = db.execute("SELECT last_number FROM tape WHERE name = ?", (tape,)).fetchone()
    return row is not None and row[0] > position


def _entry(row: tuple[Any, ...]) -> Entry:
    number, event_type, payload, final, time = row[:5]
    return Entry(number, event_type, payload, final == 1, time)
