"""Appends on PostgreSQL, one as one statement or several in one transaction: numbers, keys, and what they read."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from databases import postgres_database
from livetape.adapters.sql.log import SqlEventLog
from livetape.events.log import NewEvent, Position
from postgres_server import PostgresServer

pytestmark = pytest.mark.needs("postgres")


async def test_of_many_that_append_with_one_key_one_is_written(postgres_url: str) -> None:
    async with AsyncExitStack() as stack:
        logs = [SqlEventLog(await stack.enter_async_context(postgres_database(postgres_url))) for _ in range(4)]
        tape = await logs[0].create("t", owner="u", channel="c")

        async def write(number: int, log: SqlEventLog) -> list[Position]:
            """Keys that all others write too, and events of its own between them. One at a time."""
            places = []
            for n in range(25):
                places.append(await log.append("t", NewEvent("x", f"same {n}".encode()), idempotency_key=f"key {n}"))
                await log.append("t", NewEvent("x", f"own {number} {n}".encode()))
            return places

        found = await asyncio.gather(*(write(number, log) for number, log in enumerate(logs)))
        assert found[0] == found[1] == found[2] == found[3]
        entries = await logs[0].read("t")
        assert [entry.offset for entry in entries] == list(range(1, 126)), "25 with a key, 100 without"
        by_number = {entry.offset: entry.payload for entry in entries}
        assert [by_number[place.offset] for place in found[0]] == [f"same {n}".encode() for n in range(25)]
        assert {place.epoch for place in found[0]} == {tape.epoch}
        for log in logs:
            await log.close()


async def test_the_last_event_and_a_tape_that_is_not_there(postgres_url: str) -> None:
    async with postgres_database(postgres_url) as database:
        log = SqlEventLog(database)
        first = await log.append("new", NewEvent("x", b"1"), idempotency_key="k")
        assert await log.append("new", NewEvent("x", b"2", final=True)) == Position(first.epoch, 2)
        assert await log.append("new", NewEvent("x", b"again"), idempotency_key="k") == first
        described = await log.describe("new")
        assert described is not None
        assert (described.offset, described.final) == (2, True)
        assert [entry.payload for entry in await log.read("new")] == [b"1", b"2"]
        await log.close()


FILL = (
    "INSERT INTO event (tape_id, number, event_type, payload, final, time, idempotency_key)"
    " SELECT id, last_number + n, 'x', '', false, 0, 'behind ' || n FROM tape, generate_series(1, {count}) AS n"
)


async def rows_read(server: PostgresServer, *, behind: int, at_once: int) -> int:
    """What the server reads for 100 appends, so many at once, to a tape that has so many behind it. The first ones are
    planned while there were none."""
    url = server.new_database()
    name = url.rpartition("/")[2]
    async with postgres_database(url) as database:
        log = SqlEventLog(database)
        await log.append("t", NewEvent("x", b""), idempotency_key="first")
        await log.append("t", NewEvent("x", b""), idempotency_key="second")
        await log.append("t", NewEvent("x", b""))
        await database.write(lambda db: db.exec_driver_sql(FILL.format(count=behind)))
        await database.write(lambda db: db.exec_driver_sql(f"UPDATE tape SET last_number = last_number + {behind}"))
        for n in range(0, 100, at_once):
            keys = [f"key {m}" if m % 3 else None for m in range(n, n + at_once)]
            await asyncio.gather(*(log.append("t", NewEvent("x", b""), idempotency_key=key) for key in keys))
        await log.close()
    while server.sql(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'") != "0":
        await asyncio.sleep(0.01)  # a session tells what it read when it ends
    indexes = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname IN ('tape', 'event')"
    return int(server.sql(indexes, database=name))


@pytest.mark.parametrize("at_once", [1, 4])
async def test_an_append_reads_no_more_when_the_tape_is_long(postgres_server: PostgresServer, at_once: int) -> None:
    short, long = [await rows_read(postgres_server, behind=behind, at_once=at_once) for behind in (10, 2000)]
    assert long < 1.5 * short, f"{short} rows were read for 100 appends, {long} with 2,000 events before them"
