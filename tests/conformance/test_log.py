"""The logs of SQLite and PostgreSQL keep the EventLog contract, and the suite notices every log that does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from databases import postgres_database, sqlite_database
from livetape.adapters.sql.log import SqlEventLog
from livetape.adapters.sqlite.log import SqliteEventLog, create_schema
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Writer
from livetape.events.log import EventLog
from livetape.testing.broken_log import BROKEN_LOGS
from livetape.testing.conformance.log import DurableEventLogSuite, EventLogSuite, Reopen
from livetape.testing.conformance.runner import cases, run_suite
from livetape.testing.fakes import FakeLog


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[EventLog]:
    writer, readers = Writer(path), Readers(path)
    writer.open()
    try:
        await writer.run(create_schema)
        yield SqliteEventLog(writer, readers)
    finally:
        readers.close()
        writer.close()


class TestSqliteLog(DurableEventLogSuite):
    @pytest.fixture
    async def log(self, tmp_path: Path) -> AsyncIterator[EventLog]:
        async with opened(tmp_path / "log.db") as log:
            yield log

    @pytest.fixture
    async def reopen_log(self, tmp_path: Path) -> AsyncIterator[Reopen]:
        # A second process on the file while the first never got to close it.
        async with opened(tmp_path / "log.db") as again:

            async def reopen() -> EventLog:
                return again

            yield reopen


class TestSqlLogOnSqlite(EventLogSuite):
    @pytest.fixture
    async def log(self, tmp_path: Path) -> AsyncIterator[EventLog]:
        async with sqlite_database(tmp_path / "log.db") as database:
            yield SqlEventLog(database)


@pytest.mark.needs("postgres")
class TestPostgresLog(DurableEventLogSuite):
    @pytest.fixture
    async def log(self, postgres_url: str) -> AsyncIterator[EventLog]:
        async with on_postgres(postgres_url) as log:
            yield log

    @pytest.fixture
    async def reopen_log(self, postgres_url: str) -> AsyncIterator[Reopen]:
        # A second process while the first never got to close it.
        async with on_postgres(postgres_url) as again:

            async def reopen() -> EventLog:
                return again

            yield reopen


@asynccontextmanager
async def on_postgres(url: str) -> AsyncIterator[EventLog]:
    async with postgres_database(url) as database:
        yield SqlEventLog(database)


@asynccontextmanager
async def made(make: Callable[[], EventLog]) -> AsyncIterator[EventLog]:
    yield make()


@pytest.mark.parametrize(("make", "case"), BROKEN_LOGS.items(), ids=lambda value: getattr(value, "__name__", "in"))
async def test_a_broken_log_fails(make: Callable[[], EventLog], case: str) -> None:
    failures = await run_suite(EventLogSuite, lambda: made(make), only=[case])
    assert [failure.case for failure in failures] == [case]


async def test_the_broken_logs_are_broken_in_nothing_else() -> None:
    assert await run_suite(EventLogSuite, lambda: made(FakeLog)) == []


async def test_every_case_is_failed_by_some_broken_log() -> None:
    unproven = set(cases(EventLogSuite)) - set(BROKEN_LOGS.values())
    for make in BROKEN_LOGS:
        if unproven:
            found = await run_suite(EventLogSuite, lambda make=make: made(make), only=sorted(unproven))
            unproven -= {failure.case for failure in found}
    assert unproven == set()
