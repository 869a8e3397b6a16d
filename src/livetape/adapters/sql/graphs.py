"""Graphs in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from sqlalchemy import Connection, Integer, Row, bindparam, delete, func, insert, literal_column, select, update
from sqlalchemy.exc import IntegrityError

from livetape.adapters.sql.database import Database
from livetape.adapters.sql.prepared import Prepared
from livetape.adapters.sql.single import moment_of
from livetape.adapters.sql.tables import graph, tape
from livetape.clock import new_epoch
from livetape.errors import ConflictError, NotFoundError
from livetape.events.channel import execution_pattern, graph_tape
from livetape.store.graphs import GraphRow, GraphStore

_COLUMNS: Final = [column.name for column in graph.columns]
_VERSION: Final = bindparam("version", type_=Integer)
_GET: Final = Prepared(
    select(graph)
    .where(graph.c.id == bindparam("of"), graph.c.user_id == bindparam("whose"))
    .where(_VERSION.is_(None) | (graph.c.version == _VERSION))
    .order_by(graph.c.is_active.desc(), graph.c.version.desc())
    .limit(literal_column("1"))
)
_GET_SQL: Final = (
    f"SELECT {', '.join(_COLUMNS)} FROM graph WHERE id = $1::varchar AND user_id = $2::varchar"  # noqa: S608 - our names
    " AND ($3::int IS NULL OR version = $3::int) ORDER BY is_active DESC, version DESC LIMIT 1"
)


class SqlGraphStore(GraphStore):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, row: GraphRow) -> None:
        def unit(db: Connection) -> None:
            try:
                db.execute(insert(graph), _values(row))
            except IntegrityError as error:
                raise ConflictError(f"there is a graph {row.id} already") from error
            db.execute(
                insert(tape),
                {
                    "name": graph_tape(row.id),
                    "owner": row.user_id,
                    "graph_id": row.id,
                    "channel": execution_pattern(row.user_id, row.id),
                    "epoch": new_epoch(),
                    "last_number": 0,
                    "first_number": 1,
                    "final": False,
                    "created_at": row.created_at,
                },
            )

        await self._database.write(unit)

    async def add_version(self, row: GraphRow) -> GraphRow:
        def unit(db: Connection) -> GraphRow:
            newest = db.execute(
                select(func.max(graph.c.version)).where(graph.c.id == row.id, graph.c.user_id == row.user_id)
            ).scalar()
            if newest is None:
                raise NotFoundError(f"Graph #{row.id} not found.")
            stored = replace(row, version=newest + 1)
            if row.is_active:
                db.execute(update(graph).where(graph.c.id == row.id).values(is_active=False))
            db.execute(insert(graph), _values(stored))
            return stored

        return await self._database.write(unit)

    async def get(self, user_id: str, graph_id: str, version: int | None = None) -> GraphRow:
        single = self._database.single
        if single is None:
            asked = {"of": graph_id, "whose": user_id, "version": version}
            rows = await self._database.read(lambda db: _GET.all(db, asked))
        else:
            rows = await single.fetch(_GET_SQL, [graph_id, user_id, version], reads=True)
        if not rows:
            which = "" if version is None else f" version {version}"
            raise NotFoundError(f"Graph #{graph_id}{which} not found.")
        found = dict(zip(_COLUMNS, rows[0], strict=True))
        return GraphRow(**found | {"is_active": bool(found["is_active"]), "created_at": moment_of(found["created_at"])})

    async def list(self, user_id: str, *, limit: int = 250) -> Sequence[GraphRow]:
        query = (
            select(graph)
            .where(graph.c.user_id == user_id, graph.c.is_active)
            .order_by(graph.c.created_at.desc(), graph.c.id)
            .limit(limit)
        )
        return [_row(row) for row in await self._database.read(lambda db: db.execute(query).all())]

    async def versions(self, user_id: str, graph_id: str) -> Sequence[GraphRow]:
        query = select(graph).where(graph.c.id == graph_id, graph.c.user_id == user_id).order_by(graph.c.version.desc())
        rows = await self._database.read(lambda db: db.execute(query).all())
        if not rows:
            raise NotFoundError(f"Graph #{graph_id} not found.")
        return [_row(row) for row in rows]

    async def set_active(self, user_id: str, graph_id: str, version: int) -> None:
        def unit(db: Connection) -> None:
            mine = (graph.c.id == graph_id) & (graph.c.user_id == user_id)
            chosen = db.execute(update(graph).where(mine, graph.c.version == version).values(is_active=True))
            if not chosen.rowcount:
                raise NotFoundError(f"Graph #{graph_id} version {version} not found.")
            db.execute(update(graph).where(mine, graph.c.version != version).values(is_active=False))

        await self._database.write(unit)

    async def delete(self, user_id: str, graph_id: str) -> int:
        def unit(db: Connection) -> int:
            gone = db.execute(delete(graph).where(graph.c.id == graph_id, graph.c.user_id == user_id)).rowcount
            if not gone:
                raise NotFoundError(f"Graph #{graph_id} not found.")
            return gone

        return await self._database.write(unit)

    async def count(self) -> int:
        query = select(func.count(func.distinct(graph.c.id)))
        return await self._database.read(lambda db: db.execute(query).scalar_one())


def _values(row: GraphRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in GraphRow.__dataclass_fields__}


def _row(row: Row[tuple[object, ...]]) -> GraphRow:
    return GraphRow(**row._mapping)
