"""On PostgreSQL steps, starts, claims and doorbells are one statement: they leave the same rows as units of several."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select, text

from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.adapters.sql.migrate import migrate
from livetape.adapters.sql.postgres.database import PostgresDatabase
from livetape.adapters.sql.queue import SqlQueue
from livetape.adapters.sql.single import Single
from livetape.adapters.sql.single_steps import MOST_CHANGED
from livetape.adapters.sql.tables import doorbell, event, execution, node_execution, node_output, tape
from livetape.errors import LeaseLostError
from livetape.events.executions import ExecutionStatus
from livetape.events.log import NewEvent
from livetape.store.executions import Committed, ExecutionChange, ExecutionRow, NewExecution, NodeOutput, NodeRow, Step
from postgres_server import PostgresServer

pytestmark = pytest.mark.needs("postgres")

NOW = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
TABLES = (tape, event, execution, node_execution, node_output, doorbell)


class Standing:
    """A clock that stands."""

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 0.0


class InUnits(PostgresDatabase):
    """Knows no statements that stand for a transaction."""

    @property
    def single(self) -> Single | None:
        return None


def node(seq: int, status: ExecutionStatus, inputs: bytes = b"{}", **more: Any) -> NodeRow:
    return NodeRow(f"n{seq}", seq, f"node{seq}", "block", status, None, inputs, None, NOW, NOW, None, None, **more)


def told(words: str, *, final: bool = False) -> NewEvent:
    return NewEvent("graph_execution_update" if final else "node_execution_update", words.encode(), final)


def steps() -> list[Step]:
    running, done = ExecutionStatus.RUNNING, ExecutionStatus.COMPLETED
    first = Step("e1", 1, created=[node(1, running), node(2, ExecutionStatus.INCOMPLETE)], events=[told("a")])
    grown = node(2, ExecutionStatus.QUEUED, b'{"x":"\xc3\xa9"}')
    second = Step(
        "e1",
        1,
        progressed=True,
        created=[node(3, running, stats=b'{"cost":1}')],
        filled=[grown],
        touched=[node(1, done), grown],
        outputs=[NodeOutput(1, 0, "o", b"1"), NodeOutput(1, 1, "o", b"null")],
        events=[told("b"), told("c"), told("d")],
    )
    change = ExecutionChange(done, None, b'{"cost":7}', ended_at=NOW, cost=7)
    last = Step("e1", 1, touched=[node(2, done), node(3, done)], change=change, events=[told("e", final=True)])
    return [first, second, Step("e1", 1, filled=[node(2, ExecutionStatus.QUEUED, b'{"y":2}')]), last]


async def left(database: PostgresDatabase) -> tuple[dict[str, Any], list[Committed], int]:
    """Everything that a life of two executions leaves in the tables, what was told of it, and how often it rang."""
    committed: list[Committed] = []
    rung: list[None] = []
    store = SqlExecutionStore(database, on_commit=committed.append, ring=lambda: rung.append(None), clock=Standing())
    queue = SqlQueue(database, clock=Standing())
    await database.locked_write("migrations", migrate)
    for name in ("e1", "e2"):
        row, replayed = await store.start(NewExecution(name, "u", "g", 1, b"{}", NOW, "epoch", queue_seconds=5.0))
        assert not replayed
        assert row == await store.get(name)
    await database.write(lambda db: db.execute(text("UPDATE execution SET held = 'user' WHERE id = 'e2'")))
    first, second = await queue.take(5)
    await queue.ack(first)
    await queue.nack(second, delay_s=3)
    row = await store.claim("e1", owner="w", lease_seconds=15)
    assert row == await store.get("e1")
    assert row is not None
    assert await store.claim("e1", owner="x", lease_seconds=15) is None
    for step in steps():
        with pytest.raises(LeaseLostError):
            await store.commit(Step("e1", 2, events=[told("late")]), row)
        await store.commit(step, row)
    with pytest.raises(LeaseLostError):
        await store.commit(steps()[-1], row)
    await queue.close()

    def dump(db: Connection) -> dict[str, Any]:
        return {table.name: sorted((tuple(row) for row in db.execute(select(table))), key=repr) for table in TABLES}

    return await database.read(dump), committed, len(rung)


async def test_one_statement_leaves_what_a_unit_leaves(postgres_server: PostgresServer) -> None:
    seen = []
    for kind in (PostgresDatabase, InUnits):
        database = kind(postgres_server.new_database(), clock=Standing())
        try:
            seen.append(await left(database))
        finally:
            await database.close()
    assert seen[0] == seen[1]
    rows, _, rang = seen[0]
    assert [len(rows[table.name]) for table in TABLES] == [2, 8, 2, 3, 2, 2]
    assert rang == 3, "two starts, and the end let the one go that a limit kept back"


def many(count: int) -> list[Step]:
    """So many node executions, then all of them change at once."""
    done = [node(seq, ExecutionStatus.COMPLETED) for seq in range(1, count + 1)]
    created = [node(seq, ExecutionStatus.RUNNING) for seq in range(1, count + 1)]
    return [Step("e", 1, created=created, events=[told("a")]), Step("e", 1, touched=done, events=[told("b")])]


@pytest.mark.parametrize("count", [MOST_CHANGED, MOST_CHANGED + 1])
async def test_a_step_may_change_any_number_of_node_executions(postgres_server: PostgresServer, count: int) -> None:
    database = PostgresDatabase(postgres_server.new_database())
    try:
        store, row = await claimed(database)
        for step in many(count):
            await store.commit(step, row)
        assert {node.status for node in await store.nodes("e")} == {ExecutionStatus.COMPLETED}
        assert len(await store.nodes("e")) == count
    finally:
        await database.close()


async def claimed(database: PostgresDatabase) -> tuple[SqlExecutionStore, ExecutionRow]:
    """The store with one execution, `e`, that runs under its first lease."""
    await database.locked_write("migrations", migrate)
    store = SqlExecutionStore(database, on_commit=lambda _: None, ring=lambda: None)
    await store.start(NewExecution("e", "u", "g", 1, b"{}", datetime.now(UTC), "epoch"))
    row = await store.claim("e", owner="w", lease_seconds=3600)
    assert row is not None
    return store, row


async def read_in_all(server: PostgresServer, url: str) -> int:
    """Rows and index entries that were read in a database since it was made. Waits for the end of its sessions, which
    tell then."""
    name = url.rpartition("/")[2]
    while server.sql(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'") != "0":
        await asyncio.sleep(0.01)
    indexes = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes"
    tables = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables"
    return int(server.sql(indexes, database=name)) + int(server.sql(tables, database=name))


async def rows_read(server: PostgresServer, *, behind: int) -> int:
    """How many rows and index entries the server reads for a hundred steps of an execution that has so many behind it.

    Its connections have made their plans before the tables had any rows, as those of a young database have.
    """
    url = server.new_database()
    database = PostgresDatabase(url)
    try:
        store, row = await claimed(database)
        seq = 1
        await store.commit(Step("e", 1, created=[node(seq, ExecutionStatus.RUNNING)], events=[told("a")]), row)

        async def go_on() -> None:
            nonlocal seq
            filled = node(seq, ExecutionStatus.COMPLETED)
            following = node(seq + 1, ExecutionStatus.RUNNING)
            outputs = [NodeOutput(seq, 0, "o", b"1")]
            step = Step("e", 1, created=[following], touched=[filled], filled=[filled], outputs=outputs)
            step.events = [told("b"), told("c")]
            step.progressed = True
            await store.commit(step, row)
            seq += 1

        await go_on()
        if behind:
            past = [node(seq + n, ExecutionStatus.COMPLETED) for n in range(1, behind + 1)]
            outputs = [NodeOutput(one.seq, 0, "o", b"1") for one in past]
            await store.commit(Step("e", 1, created=past, outputs=outputs, events=[told("p")] * behind), row)
            seq += behind
            await store.commit(Step("e", 1, created=[node(seq + 1, ExecutionStatus.RUNNING)], events=[told("q")]), row)
            seq += 1
        for _ in range(100):
            await go_on()
    finally:
        await database.close()
    return await read_in_all(server, url)


async def test_a_step_reads_no_more_when_the_execution_is_long(postgres_server: PostgresServer) -> None:
    short = await rows_read(postgres_server, behind=0)
    long = await rows_read(postgres_server, behind=3000)
    assert long < 1.3 * short, f"{short} rows were read for 100 steps, {long} with 3,000 node executions before them"


async def rows_read_by_lives(server: PostgresServer, *, before: int) -> int:
    """What the server reads for thirty executions of a user that has had so many."""
    url = server.new_database()
    database = PostgresDatabase(url)
    store = SqlExecutionStore(database, on_commit=lambda _: None, ring=lambda: None)
    queue = SqlQueue(database)

    async def live(name: str) -> None:
        await store.start(NewExecution(name, "u", "g", 1, b"{}", datetime.now(UTC), "epoch", queue_seconds=60.0))
        (delivery,) = await queue.take(5)
        row = await store.claim(name, owner="w", lease_seconds=3600)
        assert row is not None
        await queue.ack(delivery)
        await store.commit(Step(name, 1, created=[node(1, ExecutionStatus.RUNNING)], events=[told("a")]), row)
        done = ExecutionChange(ExecutionStatus.COMPLETED, None, b"{}", ended_at=NOW)
        touched = [node(1, ExecutionStatus.COMPLETED)]
        await store.commit(Step(name, 1, touched=touched, change=done, events=[told("e", final=True)]), row)

    try:
        await database.locked_write("migrations", migrate)
        await live("first")
        columns = ", ".join(column.name for column in execution.columns if column.name != "id")
        copies = (
            f"INSERT INTO execution (id, {columns}) SELECT 'x' || n, {columns}"
            f" FROM execution, generate_series(1, {before}) AS n"
        )
        await database.write(lambda db: db.execute(text(copies)))
        for number in range(30):
            await live(f"e{number}")
        await queue.close()
    finally:
        await database.close()
    return await read_in_all(server, url)


async def test_an_execution_reads_no_more_when_its_user_has_had_many(postgres_server: PostgresServer) -> None:
    few, many = [await rows_read_by_lives(postgres_server, before=before) for before in (10, 3000)]
    assert many < 1.3 * few, f"{few} rows were read for 30 executions, {many} with 3,000 before them"


async def test_a_claim_that_others_were_faster_than_is_refused(postgres_server: PostgresServer) -> None:
    database = PostgresDatabase(postgres_server.new_database())
    try:
        await database.locked_write("migrations", migrate)
        store = SqlExecutionStore(database, on_commit=lambda _: None, ring=lambda: None)
        for number in range(10):
            name = f"e{number}"
            await store.start(NewExecution(name, "u", "g", 1, b"{}", datetime.now(UTC), "epoch"))
            claims: list[ExecutionRow | None] = await asyncio.gather(
                *(store.claim(name, owner=f"w{n}", lease_seconds=15) for n in range(6))
            )
            (mine,) = [row for row in claims if row is not None]
            assert mine == await store.get(name)
            assert mine.lease_until is not None
            assert mine.lease_until - datetime.now(UTC) < timedelta(seconds=16)
    finally:
        await database.close()
