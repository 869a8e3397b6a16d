"""Appends that are called in one turn of the loop share a transaction, and in it a look and an update for each tape."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, insert, select, text, update

from livetape.adapters.sql.database import Database
from livetape.adapters.sql.prepared import Prepared, micros
from livetape.adapters.sql.single import Single
from livetape.adapters.sql.tables import event, tape
from livetape.clock import Clock, new_epoch
from livetape.events.log import NewEvent, Position

MAX_BATCH: Final = 500

_BY_NAME: Final = select(tape).where(tape.c.name == bindparam("of"))
_LOCK_BY_NAME: Final = _BY_NAME.with_for_update()
# Key by key: with a list of them, PostgreSQL may read the whole tape, and does so while it thinks that it is short.
_KNOWN: Final = text(
    "SELECT x.key, e.number FROM unnest(CAST(:keys AS varchar[])) AS x(key), LATERAL (SELECT number FROM event"
    " WHERE tape_id = :tape AND idempotency_key = x.key LIMIT 1) AS e"
)
_INSERT_EVENTS: Final = Prepared(insert(event), [column.name for column in event.columns])

_ONE_SQL: Final = (
    "WITH a AS (UPDATE tape SET last_number = last_number + 1, final = final OR $4::boolean WHERE name = $1::varchar"
    " RETURNING id, epoch, last_number),"
    " e AS (INSERT INTO event (tape_id, number, event_type, payload, final, time)"
    " SELECT a.id, a.last_number, $2::varchar, $3::bytea, $4::boolean, $5::bigint FROM a)"
    " SELECT epoch, last_number FROM a"
)
_ONE_WITH_KEY_SQL: Final = (
    "WITH t AS (SELECT id, epoch FROM tape WHERE name = $1::varchar),"
    " k AS MATERIALIZED (SELECT e.number FROM event AS e"
    " WHERE e.tape_id = (SELECT id FROM t) AND e.idempotency_key = $6::varchar),"
    " a AS (UPDATE tape SET last_number = last_number + 1, final = tape.final OR $4::boolean FROM t"
    " WHERE tape.id = t.id AND NOT EXISTS (SELECT 1 FROM k) RETURNING tape.id, tape.last_number),"
    " e AS (INSERT INTO event (tape_id, number, event_type, payload, final, time, idempotency_key)"
    " SELECT a.id, a.last_number, $2::varchar, $3::bytea, $4::boolean, $5::bigint, $6::varchar FROM a)"
    " SELECT t.epoch, coalesce((SELECT number FROM k), (SELECT last_number FROM a)) FROM t"
)
"""An append as one statement (`single.py`). No row: there is no such tape. Of two with one key at once, one fails by
the unique index, is run again and finds the number of the other."""


def find_tape(db: Connection, name: str, *, lock: bool = False) -> Row[Any] | None:
    """Its row. `lock`: nobody else changes it before the transaction ends."""
    return db.execute(_LOCK_BY_NAME if lock else _BY_NAME, {"of": name}).one_or_none()


def insert_tape(
    db: Connection, name: str, *, owner: str | None, channel: str, graph_id: str | None, epoch: str, now: datetime
) -> None:
    """Make it, empty. Where another transaction makes it too, the unit is run again and finds it."""
    db.execute(
        insert(tape),
        {
            "name": name,
            "owner": owner,
            "graph_id": graph_id,
            "channel": channel,
            "epoch": epoch,
            "last_number": 0,
            "first_number": 1,
            "final": False,
            "created_at": now,
        },
    )


def insert_events(db: Connection, rows: Iterable[tuple[int, int, NewEvent, int | None, str | None]]) -> None:
    """`(tape id, number, event, microseconds, idempotency key)` of each."""
    _INSERT_EVENTS.run(
        db,
        [
            {
                "tape_id": tape_id,
                "number": number,
                "event_type": new.event_type,
                "payload": new.payload,
                "final": new.final,
                "time": moment,
                "idempotency_key": key,
            }
            for tape_id, number, new, moment, key in rows
        ],
    )


@dataclass(slots=True)
class _Append:
    tape: str
    event: NewEvent
    key: str | None
    done: asyncio.Future[Position]


@dataclass(slots=True)
class _Batch:
    """What becomes of one run of the unit; the next run begins with a new one."""

    positions: list[Position | None]
    rows: list[tuple[int, int, NewEvent, int | None, str | None]] = field(default_factory=list)


class Appends:
    """One batch is written at a time; what comes meanwhile is the next one. So calls keep their order."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._waiting: list[_Append] = []
        self._pump: asyncio.Task[None] | None = None

    def add(self, name: str, new: NewEvent, key: str | None) -> asyncio.Future[Position]:
        """Done after the commit. Cancelling it takes nothing back."""
        loop = asyncio.get_running_loop()
        append = _Append(name, new, key, loop.create_future())
        self._waiting.append(append)
        if self._pump is None:
            self._pump = loop.create_task(self._write_all(), name="log appends")
        return append.done

    async def finish(self) -> None:
        """Wait for what has been added."""
        if self._pump is not None:
            await asyncio.wait([self._pump])

    async def _write_all(self) -> None:
        batch: list[_Append] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                try:
                    positions = await self._commit(batch)
                except Exception as error:  # it is everybody's: nothing of the batch was written
                    for append in batch:
                        if not append.done.done():
                            append.done.set_exception(error)
                    continue
                for append, position in zip(batch, positions, strict=True):
                    if not append.done.done():
                        append.done.set_result(position)
        finally:
            self._pump = None
            # Only when the loop is being taken down is there anything left.
            for append in [*batch, *self._waiting]:
                append.done.cancel()
            self._waiting = []

    async def _commit(self, batch: Sequence[_Append]) -> list[Position]:
        now = self._clock.now()
        single = self._database.single
        if single is not None and len(batch) == 1:
            position = await _write_one(single, batch[0], now)
            if position is not None:
                return [position]
        return await self._database.write(lambda db: _write(db, batch, now), read_committed=True)


async def _write_one(single: Single, append: _Append, now: datetime) -> Position | None:
    """None: the tape has to be made first."""
    new = append.event
    arguments = [append.tape, new.event_type, new.payload, new.final, micros(now)]
    if append.key is None:
        rows = await single.fetch(_ONE_SQL, arguments)
    else:
        rows = await single.fetch(_ONE_WITH_KEY_SQL, [*arguments, append.key])
    if not rows or rows[0][1] is None:  # it was just taken away
        return None
    return Position(rows[0][0], rows[0][1])


def _write(db: Connection, appends: Sequence[_Append], now: datetime) -> list[Position]:
    by_tape: dict[str, list[int]] = {}
    for place, append in enumerate(appends):
        by_tape.setdefault(append.tape, []).append(place)
    batch = _Batch([None] * len(appends))
    for name in sorted(by_tape):  # everybody locks tapes in this order
        _number(db, name, [(place, appends[place]) for place in by_tape[name]], now, batch)
    if batch.rows:
        insert_events(db, batch.rows)
    assert all(position is not None for position in batch.positions)
    return [position for position in batch.positions if position is not None]


def _number(db: Connection, name: str, appends: Sequence[tuple[int, _Append]], now: datetime, batch: _Batch) -> None:
    """Allot the next numbers of one tape, under its lock."""
    row = find_tape(db, name, lock=True)
    if row is None:
        insert_tape(db, name, owner=None, channel="", graph_id=None, epoch=new_epoch(), now=now)
        row = find_tape(db, name)
        assert row is not None
    keys = [append.key for _, append in appends if append.key is not None]
    known = _known(db, row.id, keys) if keys and row.last_number else {}
    last, final, moment = row.last_number, False, micros(now)
    for place, append in appends:
        number = None if append.key is None else known.get(append.key)
        if number is None:
            last += 1
            number = last
            final = final or append.event.final
            batch.rows.append((row.id, number, append.event, moment, append.key))
            if append.key is not None:
                known[append.key] = number
        batch.positions[place] = Position(row.epoch, number)
    if last != row.last_number:
        grown = {"last_number": last, "final": row.final or final}
        db.execute(update(tape).where(tape.c.id == row.id).values(grown))


def _known(db: Connection, tape_id: int, keys: Sequence[str]) -> dict[str, int]:
    if db.dialect.name == "postgresql":
        return {row.key: row.number for row in db.execute(_KNOWN, {"tape": tape_id, "keys": list(keys)})}
    columns = (event.c.idempotency_key, event.c.number)
    query = select(*columns).where(event.c.tape_id == tape_id, event.c.idempotency_key.in_(keys))
    return {row.idempotency_key: row.number for row in db.execute(query)}
