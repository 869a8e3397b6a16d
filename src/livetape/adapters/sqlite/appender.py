"""Appends that are called in one turn of the loop share a commit, and within it a look and an update for each tape.

An append of its own costs a savepoint, two looks and an update; a hundred at once cost little more than their rows
(decision 0013).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from livetape.adapters.sqlite.arrivals import Arrivals
from livetape.adapters.sqlite.file import SqliteFile, microseconds
from livetape.clock import Clock, new_epoch
from livetape.errors import BusError, ClosedError, NotFoundError
from livetape.events.bus import Bus
from livetape.events.codec import durable_message
from livetape.events.log import NewEvent, Position
from livetape.events.recorder import AS_RECORDED, Live, Recorded

BRIEF_BYTES: Final = 64 * 1024
BRIEF_EVENTS: Final = 128
"""What is more is written in the thread: the loop goes on meanwhile."""

MAX_BATCH: Final = 1000


@dataclass(slots=True)
class Call:
    """One append. With a bus it is pushed there on `channel`, after the commit."""

    tape: str
    channel: str
    event: NewEvent
    done: asyncio.Future[Recorded]
    key: str | None = None
    owner: str | None = None
    any_owner: bool = False
    live: Live = AS_RECORDED
    bus: Bus | None = None
    # what the commit says
    position: Position | None = None
    repeated: bool = False


@dataclass(slots=True)
class _Tape:
    """A tape, as a batch sees it."""

    id: int
    owner: str | None
    epoch: str
    last: int
    final: bool = False
    rows: list[tuple[object, ...]] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=dict)


class Appender:
    """One batch is written at a time; what comes meanwhile is the next one. So calls keep their order."""

    def __init__(self, file: SqliteFile, clock: Clock, arrivals: Arrivals) -> None:
        self._file = file
        self._clock = clock
        self._arrivals = arrivals
        self._waiting: list[Call] = []
        self._pump: asyncio.Task[None] | None = None

    def add(self, call: Call) -> asyncio.Future[Recorded]:
        """The future has what became of it, after the commit and the push. Cancelling it takes nothing back."""
        self._waiting.append(call)
        if self._pump is None:
            # A task begins after everybody of this turn has come.
            self._pump = asyncio.get_running_loop().create_task(self._write_all())
        return call.done

    async def finish(self) -> None:
        """Wait for what has been added."""
        if self._pump is not None:
            await asyncio.wait([self._pump])

    async def _write_all(self) -> None:
        batch: list[Call] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                try:
                    await self._commit(batch)
                except Exception as error:  # it is everybody's: nothing of the batch was written
                    for call in batch:
                        if not call.done.done():
                            call.done.set_exception(error)
                    continue
                for call in batch:
                    if call.position is None:
                        if not call.done.done():
                            call.done.set_exception(NotFoundError(f"there is no tape {call.tape}", tape=call.tape))
                        continue
                    receivers = None
                    if not call.repeated:
                        self._arrivals.ring(call.tape)
                        if call.bus is not None:
                            try:
                                receivers = await call.bus.publish(call.channel, _message(call, call.position))
                            except (BusError, ClosedError):
                                pass  # it is on the tape: whoever listens again finds it there
                            except Exception as error:  # a fault of the bus is this caller's alone
                                if not call.done.done():
                                    call.done.set_exception(error)
                    if not call.done.done():
                        call.done.set_result(
                            Recorded(call.position, f"{call.position.offset}-0", receivers, call.repeated)
                        )
        finally:
            self._pump = None
            # Only when the loop is being taken down is there anything left.
            for call in [*batch, *self._waiting]:
                call.done.cancel()
            self._waiting = []

    async def _commit(self, batch: Sequence[Call]) -> None:
        now = microseconds(self._clock)
        size = sum([len(call.event.payload) for call in batch])
        brief = size <= BRIEF_BYTES and len(batch) <= BRIEF_EVENTS

        def unit(db: sqlite3.Connection) -> None:
            _write(db, batch, now)

        if not brief or not self._file.write_now(unit):
            await self._file.write(unit)


def _message(call: Call, position: Position) -> bytes:
    live = call.live
    return durable_message(
        call.event.payload if live.payload is None else live.payload,
        position.offset,
        position.epoch,
        final=call.event.final,
        lossy=live.lossy,
        traceparent=live.traceparent,
    )


def _write(db: sqlite3.Connection, batch: Sequence[Call], now: int) -> None:
    """The whole batch, in order, in the transaction that the caller began."""
    tapes: dict[str, _Tape] = {}
    for call in batch:
        tape = tapes.get(call.tape)
        if tape is None or (call.owner is not None and tape.owner is None):
            tape = tapes[call.tape] = _claimed(db, call, now, tape)
        _number(db, tape, call, now)
    grown = [tape for tape in tapes.values() if tape.rows]
    db.executemany(
        "UPDATE tape SET last_number = ?, final = final OR ? WHERE id = ?",
        [(tape.last, tape.final, tape.id) for tape in grown],
    )
    db.executemany(
        "INSERT INTO event (tape_id, number, event_type, payload, final, time, idempotency_key)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [row for tape in grown for row in tape.rows],
    )


def _claimed(db: sqlite3.Connection, call: Call, now: int, known: _Tape | None) -> _Tape:
    """The tape of a call, made and owned if it was not."""
    select = "SELECT id, owner, epoch, last_number FROM tape WHERE name = ?"
    if known is None:
        row = db.execute(select, (call.tape,)).fetchone()
        if row is None:
            db.execute(
                "INSERT INTO tape (name, owner, channel, epoch, last_number, first_number, final, created_at)"
                " VALUES (?, ?, ?, ?, 0, 1, 0, ?)",
                (call.tape, call.owner, call.channel, new_epoch(), now),
            )
            row = db.execute(select, (call.tape,)).fetchone()
        known = _Tape(*row)
    if call.owner is not None and known.owner is None:
        db.execute("UPDATE tape SET owner = ?, channel = ? WHERE id = ?", (call.owner, call.channel, known.id))
        known.owner = call.owner
    return known


def _number(db: sqlite3.Connection, tape: _Tape, call: Call, now: int) -> None:
    if call.owner is not None and tape.owner != call.owner and not call.any_owner:
        return
    key = call.key
    if key is not None:
        before = tape.keys.get(key)
        if before is None:
            row = db.execute(
                "SELECT number FROM event WHERE tape_id = ? AND idempotency_key = ?", (tape.id, key)
            ).fetchone()
            before = None if row is None else row[0]
        if before is not None:
            call.position, call.repeated = Position(tape.epoch, before), True
            return
    tape.last += 1
    if key is not None:
        tape.keys[key] = tape.last
    event = call.event
    if event.final:
        tape.final = True
    tape.rows.append((tape.id, tape.last, event.event_type, event.payload, event.final, now, key))
    call.position = Position(tape.epoch, tape.last)
