"""The SQL queue keeps the Queue contract, and the suite notices every queue that does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from livetape.adapters.sql.database import SqliteDatabase
from livetape.adapters.sql.migrate import migrate
from livetape.adapters.sql.queue import SqlQueue
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Writer
from livetape.engine.queue import Doorbell, Queue
from livetape.testing.broken_queue import BROKEN_QUEUES, SoftQueue
from livetape.testing.conformance.queue import QueueSuite
from livetape.testing.conformance.runner import cases, run_suite


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Queue]:
    writer, readers = Writer(path), Readers(path)
    writer.open()
    try:
        database = SqliteDatabase(writer, readers)
        await database.write(migrate)
        yield SqlQueue(database, hidden_s=1)
    finally:
        readers.close()
        writer.close()


class TestSqlQueue(QueueSuite):
    @pytest.fixture
    async def queue(self, tmp_path: Path) -> AsyncIterator[Queue]:
        async with opened(tmp_path / "queue.db") as queue:
            yield queue


async def test_doorbells_outlive_the_process(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db") as queue:
        await queue.put(Doorbell("e"))
    async with opened(tmp_path / "queue.db") as queue:
        assert [delivery.doorbell for delivery in await queue.take(5)] == [Doorbell("e")]


@asynccontextmanager
async def made(make: Callable[[], Queue]) -> AsyncIterator[Queue]:
    yield make()


@pytest.mark.parametrize(("make", "case"), BROKEN_QUEUES.items(), ids=lambda value: getattr(value, "__name__", "in"))
async def test_a_broken_queue_fails(make: Callable[[], Queue], case: str) -> None:
    failures = await run_suite(QueueSuite, lambda: made(make), only=[case], timeout_s=2, patience_s=0.5)
    assert [failure.case for failure in failures] == [case]


@pytest.mark.slow
async def test_the_broken_queues_are_broken_in_nothing_else() -> None:
    assert await run_suite(QueueSuite, lambda: made(SoftQueue)) == []


def test_every_case_is_failed_by_some_broken_queue() -> None:
    assert set(cases(QueueSuite)) == set(BROKEN_QUEUES.values())
