"""How far the relay has come, kept beside the tapes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from livetape.adapters.sql.database import Database
from livetape.adapters.sql.tables import ephemeral, event, tape
from livetape.events.channel import split_tape
from livetape.store.executions import Committed, TapeRelayStore

LEASE: Final = "relay:leftovers"
LEASE_S: Final = 5.0
OVERDUE_S: Final = 3.0
MARKED_AT_ONCE: Final = 200

_MARK = (
    update(tape)
    .where(tape.c.name == bindparam("of"), tape.c.published < bindparam("upto"))
    .values(published=bindparam("upto"))
)
_UNPUBLISHED = select(tape).where(tape.c.published < tape.c.last_number).order_by(tape.c.id)
_OVERDUE = _UNPUBLISHED.join(event, (event.c.tape_id == tape.c.id) & (event.c.number == tape.c.published + 1)).where(
    event.c.time < bindparam("before", type_=event.c.time.type)
)


class SqlTapeRelayStore(TapeRelayStore):
    """`owner`: the name of this process among several on the database; None: there is no other.

    Every process sends what it has committed itself. What is overdue, because the process that wrote it is gone or
    hangs, is named to one process at a time: the one that holds the lease, an ephemeral value.
    """

    def __init__(self, database: Database, *, owner: str | None = None, overdue_s: float = OVERDUE_S) -> None:
        self._database = database
        self._owner = None if owner is None else owner.encode()
        self._overdue = timedelta(seconds=overdue_s)

    async def unpublished(self, *, limit: int = 1000) -> Sequence[Committed]:
        if self._owner is None:
            rows = await self._database.read(lambda db: db.execute(_UNPUBLISHED.limit(limit)).all())
        else:
            rows = await self._database.write(lambda db: self._overdue_tapes(db, limit))
        return [_committed(row) for row in rows]

    def _overdue_tapes(self, db: Connection, limit: int) -> Sequence[Row[Any]]:
        now = self._database.now(db)
        if not self._holds_lease(db, now):
            return []
        return db.execute(_OVERDUE.limit(limit), {"before": now - self._overdue}).all()

    def _holds_lease(self, db: Connection, now: datetime) -> bool:
        """Taken or prolonged. Of two that try at once one is run again, and sees the other's."""
        mine = {"value": self._owner, "expires_at": now + timedelta(seconds=LEASE_S)}
        row = db.execute(select(ephemeral).where(ephemeral.c.key == LEASE)).one_or_none()
        if row is None:
            db.execute(insert(ephemeral), {"key": LEASE, **mine})
        elif row.value == self._owner or row.expires_at <= now:
            db.execute(update(ephemeral).where(ephemeral.c.key == LEASE).values(mine))
        else:
            return False
        return True

    async def published(self, name: str) -> int:
        query = select(tape.c.published).where(tape.c.name == name)
        return await self._database.read(lambda db: db.execute(query).scalar()) or 0

    async def published_all(self, tapes: Collection[str]) -> dict[str, int]:
        query = select(tape.c.name, tape.c.published).where(tape.c.name.in_(sorted(tapes)))
        rows = await self._database.read(lambda db: db.execute(query).all())
        return {row.name: row.published or 0 for row in rows}

    async def mark_published(self, upto: dict[str, int]) -> None:
        # In one order for everybody, so that two processes that mark the same tapes do not block each other.
        marks = [{"of": name, "upto": number} for name, number in sorted(upto.items())]
        for begin in range(0, len(marks), MARKED_AT_ONCE):
            part = marks[begin : begin + MARKED_AT_ONCE]
            await self._database.write(_marking(part), read_committed=True)


def _marking(marks: Sequence[dict[str, object]]) -> Callable[[Connection], None]:
    def unit(db: Connection) -> None:
        db.execute(_MARK, marks)

    return unit


def _committed(row: Row[Any]) -> Committed:
    return Committed(
        tape=row.name,
        channel=row.channel,
        epoch=row.epoch,
        graph_id=row.graph_id,
        execution_id=split_tape(row.name)[1],
        first=row.published + 1,
        events=(),
    )
