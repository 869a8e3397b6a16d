"""How far the relay has come, kept beside the tapes."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, select, update

from livetape.adapters.sql.database import Database
from livetape.adapters.sql.tables import tape
from livetape.events.channel import split_tape
from livetape.store.executions import Committed, TapeRelayStore

_MARK = (
    update(tape)
    .where(tape.c.name == bindparam("of"), tape.c.published < bindparam("upto"))
    .values(published=bindparam("upto"))
)


class SqlTapeRelayStore(TapeRelayStore):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def unpublished(self, *, limit: int = 1000) -> Sequence[Committed]:
        query = select(tape).where(tape.c.published < tape.c.last_number).order_by(tape.c.id).limit(limit)
        rows = await self._database.read(lambda db: db.execute(query).all())
        return [
            Committed(
                tape=row.name,
                channel=row.channel,
                epoch=row.epoch,
                graph_id=row.graph_id,
                execution_id=split_tape(row.name)[1],
                first=row.published + 1,
                events=(),
            )
            for row in rows
        ]

    async def published(self, name: str) -> int:
        query = select(tape.c.published).where(tape.c.name == name)
        return await self._database.read(lambda db: db.execute(query).scalar()) or 0

    async def mark_published(self, upto: dict[str, int]) -> None:
        def unit(db: Connection) -> None:
            db.execute(_MARK, [{"of": name, "upto": number} for name, number in upto.items()])

        if upto:
            await self._database.write(unit)
