"""The EventLog in the platform's database, beside the state of executions: for databases that processes share.

On SQLite `adapters/sqlite/log.py` does the same on the same tables, faster, without SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from sqlalchemy import BigInteger, Connection, Row, delete, func, select, type_coerce, update

from livetape.adapters.sql.appends import Appends, find_tape, insert_events, insert_tape
from livetape.adapters.sql.database import Database
from livetape.adapters.sql.prepared import micros
from livetape.adapters.sql.tables import event as events
from livetape.adapters.sql.tables import tape as tapes
from livetape.clock import Clock, SystemClock, new_epoch
from livetape.errors import (
    LogError,
    LogUnavailableError,
    NotFoundError,
    PositionLostError,
    StoreError,
    StoreUnavailableError,
    TapeHoleError,
)
from livetape.events.log import MAX_READ, Entry, EventLog, NewEvent, Position, PutResult, Tape

T = TypeVar("T")

NAMES_AT_ONCE: Final = 500

_TIME: Final = type_coerce(events.c.time, BigInteger)
"""As it is kept, in microseconds."""


class SqlEventLog(EventLog):
    """Any number of processes may append to a tape at once: each number is allotted under the lock of its row."""

    def __init__(self, database: Database, *, clock: Clock | None = None) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        self._appends = Appends(database, self._clock)

    async def create(
        self,
        tape: str,
        *,
        owner: str | None,
        channel: str,
        graph_id: str | None = None,
        epoch: str | None = None,
    ) -> Tape:
        born, now = epoch or new_epoch(), self._clock.now()

        def unit(db: Connection) -> Tape:
            row = find_tape(db, tape, lock=True)
            if row is None:
                insert_tape(db, tape, owner=owner, channel=channel, graph_id=graph_id, epoch=born, now=now)
            elif owner is not None and row.owner is None:
                claimed = {"owner": owner, "channel": channel, "graph_id": graph_id}
                db.execute(update(tapes).where(tapes.c.id == row.id).values(claimed))
            else:
                return _tape(row)
            return _tape(_require(find_tape(db, tape)))

        return await self._write(unit)

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        with _LOG_ERRORS:
            return await self._appends.add(tape, event, idempotency_key)

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        moment = micros(self._clock.now()) if event.at_us is None else event.at_us

        def unit(db: Connection) -> PutResult:
            row = find_tape(db, tape, lock=True)
            if row is None:
                raise NotFoundError(f"there is no tape {tape}", tape=tape)
            if row.epoch != position.epoch:
                raise PositionLostError("the tape has another epoch", tape=tape, epoch=row.epoch)
            if position.offset <= row.last_number:
                return "duplicate"
            if position.offset != row.last_number + 1:
                raise TapeHoleError("an earlier event is missing", tape=tape, missing_from=row.last_number + 1)
            grown = {"last_number": position.offset, "final": row.final or event.final}
            db.execute(update(tapes).where(tapes.c.id == row.id).values(grown))
            insert_events(db, [(row.id, position.offset, event, moment, None)])
            return "stored"

        return await self._write(unit)

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        count = max(0, min(limit, MAX_READ))

        def unit(db: Connection) -> list[Entry]:
            row = find_tape(db, tape)
            if epoch is not None and (row is None or row.epoch != epoch):
                raise PositionLostError("the tape has another epoch", tape=tape, epoch=row and row.epoch)
            if row is None:
                return []
            columns = (events.c.number, events.c.event_type, events.c.payload, events.c.final, _TIME)
            found = select(*columns).where(events.c.tape_id == row.id, events.c.number > after)
            return [Entry(*entry) for entry in db.execute(found.order_by(events.c.number).limit(count))]

        return await self._read(unit)

    async def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        after = ""
        while names := await self._read(_names_after(after, prefix)):
            for name in names:
                yield name
            after = names[-1]

    async def describe(self, tape: str) -> Tape | None:
        row = await self._read(lambda db: find_tape(db, tape))
        return None if row is None else _tape(row)

    async def offset_at(self, tape: str, time: datetime) -> int:
        def unit(db: Connection) -> int:
            row = find_tape(db, tape)
            if row is None:
                return 0
            # Times rise with the numbers, as far as the clock does: found by halving, without an index of times.
            low, high = row.first_number - 1, row.last_number
            while low < high:
                middle = (low + high + 1) // 2
                this = (events.c.tape_id == row.id) & (events.c.number == middle)
                found = db.execute(select(events.c.time).where(this)).scalar()
                if found is not None and found > time:
                    high = middle - 1
                else:
                    low = middle
            return int(low) if low >= row.first_number else 0

        return await self._read(unit)

    async def trim(self, tape: str, *, keep_after: int) -> int:
        def unit(db: Connection) -> int:
            row = find_tape(db, tape, lock=True)
            if row is None:
                return 0
            upto = min(keep_after, row.last_number)
            gone = db.execute(delete(events).where(events.c.tape_id == row.id, events.c.number <= upto)).rowcount
            first = {"first_number": max(row.first_number, upto + 1)}
            db.execute(update(tapes).where(tapes.c.id == row.id).values(first))
            return gone

        return await self._write(unit)

    async def close(self) -> None:
        """The database belongs to whoever opened it."""
        await self._appends.finish()

    async def _write(self, unit: Callable[[Connection], T]) -> T:
        with _LOG_ERRORS:
            return await self._database.write(unit, read_committed=True)

    async def _read(self, unit: Callable[[Connection], T]) -> T:
        with _LOG_ERRORS:
            return await self._database.read(unit)


class _LogErrors:
    """Errors of the database as those of the log."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StoreUnavailableError):
            raise LogUnavailableError(f"the event log cannot be used: {error}") from error
        if type(error) is StoreError:
            raise LogError(f"the event log failed: {error}") from error


_LOG_ERRORS: Final = _LogErrors()


def _names_after(after: str, prefix: str) -> Callable[[Connection], Sequence[str]]:
    named = (tapes.c.name > after) & (func.substr(tapes.c.name, 1, len(prefix)) == prefix)
    query = select(tapes.c.name).where(named).order_by(tapes.c.name).limit(NAMES_AT_ONCE)
    return lambda db: db.execute(query).scalars().all()


def _require(row: Row[Any] | None) -> Row[Any]:
    assert row is not None
    return row


def _tape(row: Row[Any]) -> Tape:
    return Tape(
        name=row.name,
        owner=row.owner,
        graph_id=row.graph_id,
        channel=row.channel,
        epoch=row.epoch,
        offset=row.last_number,
        first_offset=row.first_number,
        final=row.final,
    )
