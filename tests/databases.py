"""Databases of the platform for tests, with their tables made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from livetape.adapters.sql.database import SqliteDatabase
from livetape.adapters.sql.migrate import migrate
from livetape.adapters.sql.postgres.database import PostgresDatabase, PostgresOptions
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Writer
from livetape.clock import Clock


@asynccontextmanager
async def sqlite_database(path: Path, *, clock: Clock | None = None) -> AsyncIterator[SqliteDatabase]:
    writer, readers = Writer(path), Readers(path)
    writer.open()
    try:
        database = SqliteDatabase(writer, readers, clock=clock)
        await database.write(migrate)
        yield database
    finally:
        readers.close()
        writer.close()


@asynccontextmanager
async def postgres_database(
    url: str, *, options: PostgresOptions | None = None, clock: Clock | None = None
) -> AsyncIterator[PostgresDatabase]:
    database = PostgresDatabase(url, options=options, clock=clock)
    try:
        await database.locked_write("migrations", migrate)
        yield database
    finally:
        await database.close()
