"""How long the database takes is kept, on SQLite and PostgreSQL, by what is done there."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from livetape.adapters.sql.database import Database, SqliteDatabase
from livetape.adapters.sql.postgres.database import PostgresDatabase
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Writer
from livetape.errors import StoreError
from livetape.observability import NoMetrics


class Kept(NoMetrics):
    """Every duration by its operation."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        assert name == "database_query_duration_seconds"
        assert set(labels) == {"operation"}
        assert 0 < seconds < 60
        self.seen[labels["operation"]] += 1


def one(db: Connection) -> int:
    found: int = db.execute(text("SELECT 1")).scalar_one()
    return found


def wrong(db: Connection) -> None:
    db.execute(text("SELECT 1 FROM nowhere"))


async def used(database: Database) -> None:
    """Each way in once, and one that fails."""
    assert await database.read(one) == 1
    assert await database.write(one) == 1
    assert await database.locked_write("k", one) == 1
    assert await asyncio.to_thread(database.write_now, one) == 1
    with pytest.raises(StoreError):
        await database.write(wrong)


async def test_sqlite(tmp_path: Path) -> None:
    kept, path = Kept(), tmp_path / "a.db"
    writer, readers = Writer(path), Readers(path)
    writer.open()
    try:
        await used(SqliteDatabase(writer, readers, metrics=kept))
    finally:
        readers.close()
        writer.close()
    assert kept.seen == {"read": 1, "write": 2, "locked": 1, "urgent": 1}


@pytest.mark.needs("postgres")
async def test_postgres(postgres_url: str) -> None:
    kept = Kept()
    database = PostgresDatabase(postgres_url, metrics=kept)
    try:
        await used(database)
        assert await database.single.fetch("SELECT 1", [], reads=True)
    finally:
        await database.close()
    assert kept.seen == {"read": 1, "write": 2, "locked": 1, "urgent": 1, "single": 1}
