"""The queue on PostgreSQL keeps the Queue contract, also when several processes take from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from databases import postgres_database
from livetape.adapters.sql.notices import DOORBELL
from livetape.adapters.sql.postgres.notices import Notices
from livetape.adapters.sql.queue import SqlQueue
from livetape.engine.queue import Doorbell, Queue
from livetape.testing.conformance.queue import QueueSuite

pytestmark = pytest.mark.needs("postgres")


@asynccontextmanager
async def opened(url: str, *, hidden_s: float = 15) -> AsyncIterator[SqlQueue]:
    """As a process has it: rung by the notices of all, and else silent for a long time."""
    async with postgres_database(url) as database:
        queue = SqlQueue(database, poll_s=60, hidden_s=hidden_s)
        notices = Notices(url)
        notices.hear(DOORBELL, lambda _: queue.ring(), missed=queue.ring)
        listening = asyncio.create_task(notices.run())
        await notices.ready.wait()
        try:
            yield queue
        finally:
            await queue.close()
            listening.cancel()
            await asyncio.wait([listening])


class TestPostgresQueue(QueueSuite):
    @pytest.fixture
    async def queue(self, postgres_url: str) -> AsyncIterator[Queue]:
        async with opened(postgres_url, hidden_s=1) as queue:
            yield queue


async def test_another_process_is_rung_and_need_not_look(postgres_url: str) -> None:
    async with opened(postgres_url) as mine, opened(postgres_url) as other:
        taking = asyncio.create_task(other.take(5))
        await asyncio.sleep(0.1)
        await mine.put(Doorbell("e"))
        async with asyncio.timeout(20):  # it looks once a minute
            (delivery,) = await taking
        assert delivery.doorbell == Doorbell("e")


async def test_processes_share_what_there_is_and_none_waits_for_another(postgres_url: str) -> None:
    async with opened(postgres_url) as one, opened(postgres_url) as two, opened(postgres_url) as three:
        for number in range(60):
            await one.put(Doorbell(f"e{number}"))
        found: list[str] = []

        async def work(queue: SqlQueue) -> None:
            while len(found) < 60:
                try:
                    async with asyncio.timeout(0.5):
                        taken = await queue.take(3)
                except TimeoutError:
                    continue
                found.extend(delivery.doorbell.graph_exec_id for delivery in taken)
                for delivery in taken:
                    await queue.ack(delivery)

        async with asyncio.timeout(20):
            await asyncio.gather(work(one), work(two), work(three))
        assert sorted(found) == sorted({f"e{number}" for number in range(60)})
        assert await one.depth() == 0


async def test_the_more_important_goes_first(postgres_url: str) -> None:
    async with opened(postgres_url) as queue:
        for name, priority in (("usual", 0), ("urgent", 9), ("soon", 3)):
            await queue.put(Doorbell(name, priority=priority))
        taken = await queue.take(5)
        assert [delivery.doorbell.graph_exec_id for delivery in taken] == ["urgent", "soon", "usual"]


async def test_what_a_taker_left_behind_goes_to_another_at_once(postgres_url: str) -> None:
    async with opened(postgres_url) as other:
        async with opened(postgres_url) as mine:
            await mine.put(Doorbell("e"))
            assert len(await mine.take(5)) == 1
            taking = asyncio.create_task(other.take(5))
            await asyncio.sleep(0.1)
            assert not taking.done()
        async with asyncio.timeout(5):
            assert len(await taking) == 1


async def test_takes_that_are_cancelled_hide_nothing(postgres_url: str) -> None:
    async with opened(postgres_url) as mine, opened(postgres_url) as other:
        for number in range(10):
            await mine.put(Doorbell(f"e{number}"))
            taking = asyncio.create_task(mine.take(5))
            await asyncio.sleep(number * 0.0005)
            taking.cancel()
            await asyncio.wait([taking])
            if not taking.cancelled():
                for delivery in taking.result():
                    await mine.nack(delivery)
        found: set[str] = set()
        async with asyncio.timeout(5):
            while len(found) < 10:
                found |= {delivery.doorbell.graph_exec_id for delivery in await other.take(10)}


async def test_the_bell_is_heard_again_when_the_connection_was_lost(postgres_url: str, postgres_server) -> None:
    async with opened(postgres_url) as mine, opened(postgres_url) as other:
        taking = asyncio.create_task(other.take(5))
        await asyncio.sleep(0.1)
        postgres_server.end_sessions(postgres_url.rpartition("/")[2])
        await mine.put(Doorbell("e"))
        async with asyncio.timeout(10):
            assert len(await taking) == 1
