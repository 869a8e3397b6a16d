"""The EventLog on SQLite. Stdlib only: the event library's durable default.

The tables `tape` and `event` are also written by the platform's store, in the transactions that change the state of
an execution; there the migrations make them (`adapters/sql/tables.py`), and a test holds both definitions alike.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Final

from livetape.adapters.sqlite.appender import Appender, Call
from livetape.adapters.sqlite.arrivals import Arrivals
from livetape.adapters.sqlite.file import SqliteFile, microseconds, microseconds_of
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Writer
from livetape.clock import Clock, SystemClock, new_epoch
from livetape.errors import NotFoundError, PositionLostError, TapeHoleError
from livetape.events.log import MAX_READ, Entry, EventLog, NewEvent, Position, PutResult, Tape

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS tape (
    id INTEGER NOT NULL PRIMARY KEY,
    name VARCHAR NOT NULL UNIQUE,
    owner VARCHAR,
    graph_id VARCHAR,
    channel VARCHAR NOT NULL,
    epoch VARCHAR NOT NULL,
    last_number INTEGER NOT NULL,
    first_number INTEGER NOT NULL,
    final BOOLEAN NOT NULL,
    fence INTEGER,
    published INTEGER,
    created_at BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS tape_unpublished ON tape (id) WHERE published < last_number;
CREATE TABLE IF NOT EXISTS event (
    tape_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    event_type VARCHAR NOT NULL,
    payload BLOB NOT NULL,
    final BOOLEAN NOT NULL,
    time BIGINT NOT NULL,
    idempotency_key VARCHAR,
    PRIMARY KEY (tape_id, number)
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS event_idempotency
    ON event (tape_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
"""

_TAPE_COLUMNS: Final = "id, name, owner, graph_id, channel, epoch, last_number, first_number, final"


def create_schema(connection: sqlite3.Connection) -> None:
    """Make the tables where they are missing. For uses of the log without the platform's migrations."""
    for statement in SCHEMA.split(";"):
        if statement.strip():
            connection.execute(statement)


class SqliteEventLog(EventLog):
    """Tapes in a SQLite file, written through the process's one writer. `arrivals` is rung after each append."""

    def __init__(
        self, writer: Writer, readers: Readers, *, clock: Clock | None = None, arrivals: Arrivals | None = None
    ) -> None:
        self._file = SqliteFile(writer, readers)
        self._clock = clock or SystemClock()
        self._arrivals = arrivals or Arrivals()
        self.appender = Appender(self._file, self._clock, self._arrivals)

    async def create(
        self,
        tape: str,
        *,
        owner: str | None,
        channel: str,
        graph_id: str | None = None,
        epoch: str | None = None,
    ) -> Tape:
        now = microseconds(self._clock)

        def unit(db: sqlite3.Connection) -> Tape:
            _insert_tape(db, tape, owner, channel, graph_id, epoch or new_epoch(), now)
            if owner is not None:
                db.execute(
                    "UPDATE tape SET owner = ?, channel = ?, graph_id = ? WHERE name = ? AND owner IS NULL",
                    (owner, channel, graph_id, tape),
                )
            return _tape(_require(db, tape))

        return await self._file.write(unit)

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        done = asyncio.get_running_loop().create_future()
        return (await self.appender.add(Call(tape, "", event, done, idempotency_key))).position

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        now = microseconds(self._clock)

        def unit(db: sqlite3.Connection) -> PutResult:
            row = _find(db, tape)
            if row is None:
                raise NotFoundError(f"there is no tape {tape}", tape=tape)
            tape_id, epoch, last = row[0], row[5], row[6]
            if epoch != position.epoch:
                raise PositionLostError("the tape has another epoch", tape=tape, epoch=epoch)
            if position.offset <= last:
                return "duplicate"
            if position.offset != last + 1:
                raise TapeHoleError("an earlier event is missing", tape=tape, missing_from=last + 1)
            db.execute(
                "UPDATE tape SET last_number = ?, final = final OR ? WHERE id = ?",
                (position.offset, event.final, tape_id),
            )
            _insert_event(db, tape_id, position.offset, event, now if event.at_us is None else event.at_us, None)
            return "stored"

        result = await self._file.write(unit)
        self._arrivals.ring(tape)
        return result

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        count = max(0, min(limit, MAX_READ))

        def read(db: sqlite3.Connection) -> list[Entry]:
            row = db.execute("SELECT id, epoch FROM tape WHERE name = ?", (tape,)).fetchone()
            if epoch is not None and (row is None or row[1] != epoch):
                raise PositionLostError("the tape has another epoch", tape=tape, epoch=row and row[1])
            if row is None:
                return []
            rows = db.execute(
                "SELECT number, event_type, payload, final, time FROM event"
                " WHERE tape_id = ? AND number > ? ORDER BY number LIMIT ?",
                (row[0], after, count),
            )
            return [
                Entry(number, event_type, payload, final == 1, time)
                for number, event_type, payload, final, time in rows
            ]

        return await self._file.read(read)

    async def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        after = ""
        while names := await self._file.read(_tape_names(prefix, after)):
            for name in names:
                yield name
            after = names[-1]

    async def describe(self, tape: str) -> Tape | None:
        row = await self._file.read(lambda db: _find(db, tape))
        return None if row is None else _tape(row)

    async def offset_at(self, tape: str, time: datetime) -> int:
        moment = microseconds_of(time)

        def read(db: sqlite3.Connection) -> int:
            row = db.execute("SELECT id, first_number, last_number FROM tape WHERE name = ?", (tape,)).fetchone()
            if row is None:
                return 0
            # Times rise with the numbers, as far as the clock does: found by halving, without an index of times.
            tape_id, first, high = row
            low = first - 1
            while low < high:
                middle = (low + high + 1) // 2
                found = db.execute(
                    "SELECT time FROM event WHERE tape_id = ? AND number = ?", (tape_id, middle)
                ).fetchone()
                if found is not None and found[0] > moment:
                    high = middle - 1
                else:
                    low = middle
            return int(low) if low >= first else 0

        return await self._file.read(read)

    async def trim(self, tape: str, *, keep_after: int) -> int:
        def unit(db: sqlite3.Connection) -> int:
            row = _find(db, tape)
            if row is None:
                return 0
            upto = min(keep_after, row[6])
            gone = db.execute("DELETE FROM event WHERE tape_id = ? AND number <= ?", (row[0], upto)).rowcount
            db.execute("UPDATE tape SET first_number = max(first_number, ?) WHERE id = ?", (upto + 1, row[0]))
            return gone

        return await self._file.write(unit)

    async def close(self) -> None:
        """The writer and the readers belong to whoever opened them."""
        await self.appender.finish()


def _tape_names(prefix: str, after: str) -> Callable[[sqlite3.Connection], list[str]]:
    def read(db: sqlite3.Connection) -> list[str]:
        rows = db.execute(
            "SELECT name FROM tape WHERE name > ? AND substr(name, 1, ?) = ? ORDER BY name LIMIT 500",
            (after, len(prefix), prefix),
        )
        return [name for (name,) in rows]

    return read


def _find(db: sqlite3.Connection, tape: str) -> tuple[int, str, str | None, str | None, str, str, int, int, int] | None:
    row: tuple[int, str, str | None, str | None, str, str, int, int, int] | None = db.execute(
        f"SELECT {_TAPE_COLUMNS} FROM tape WHERE name = ?",  # noqa: S608 - a constant
        (tape,),
    ).fetchone()
    return row


def _require(db: sqlite3.Connection, tape: str) -> tuple[int, str, str | None, str | None, str, str, int, int, int]:
    row = _find(db, tape)
    assert row is not None
    return row


def _insert_tape(
    db: sqlite3.Connection,
    tape: str,
    owner: str | None,
    channel: str,
    graph_id: str | None,
    epoch: str,
    now: int,
) -> None:
    db.execute(
        "INSERT INTO tape (name, owner, graph_id, channel, epoch, last_number, first_number, final, created_at)"
        " VALUES (?, ?, ?, ?, ?, 0, 1, 0, ?) ON CONFLICT (name) DO NOTHING",
        (tape, owner, graph_id, channel, epoch, now),
    )


def _insert_event(
    db: sqlite3.Connection, tape_id: int, number: int, event: NewEvent, now: int, idempotency_key: str | None
) -> None:
    db.execute(
        "INSERT INTO event (tape_id, number, event_type, payload, final, time, idempotency_key)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (tape_id, number, event.event_type, event.payload, event.final, now, idempotency_key),
    )


def _tape(row: tuple[int, str, str | None, str | None, str, str, int, int, int]) -> Tape:
    _, name, owner, graph_id, channel, epoch, last, first, final = row
    return Tape(
        name=name,
        owner=owner,
        graph_id=graph_id,
        channel=channel,
        epoch=epoch,
        offset=last,
        first_offset=first,
        final=bool(final),
    )
