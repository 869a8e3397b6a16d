"""Relays of several processes on one PostgreSQL: in order per tape, nothing left behind, nobody fights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import pytest

from databases import postgres_database
from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.adapters.sql.log import SqlEventLog
from livetape.adapters.sql.postgres.database import PostgresDatabase, PostgresOptions
from livetape.adapters.sql.relay import SqlTapeRelayStore
from livetape.engine.outlets import Outlet
from livetape.engine.relay import Relay
from livetape.events.log import NewEvent
from livetape.observability import NoMetrics
from livetape.store.executions import Committed, NewExecution, Step

pytestmark = pytest.mark.needs("postgres")

Processes = Callable[[int], Awaitable[list[PostgresDatabase]]]


@pytest.fixture
async def processes(postgres_url: str) -> AsyncIterator[Processes]:
    """Database objects with connections of their own, as several processes have them."""
    async with AsyncExitStack() as stack:

        async def opened(number: int) -> list[PostgresDatabase]:
            options = PostgresOptions(patience_s=0.5)
            return [
                await stack.enter_async_context(postgres_database(postgres_url, options=options)) for _ in range(number)
            ]

        yield opened


class Recording(Outlet):
    """Remembers what was sent by whom. `gate` holds everything back while it is clear."""

    waits_for_leftovers = False

    def __init__(self, sent: list[tuple[str, int]]) -> None:
        self.sent = sent
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, committed: Committed, first: int, events: Sequence[NewEvent]) -> int:
        await self.gate.wait()
        self.sent.extend((committed.tape, n) for n in range(first, first + len(events)))
        return len(events)


class Process:
    """What one process has of the engine, as far as the relay is concerned."""

    def __init__(self, database: PostgresDatabase, name: str) -> None:
        self.sent: list[tuple[str, int]] = []
        self.outlet = Recording(self.sent)
        self.relay = Relay(
            self.outlet,
            log=SqlEventLog(database),
            store=SqlTapeRelayStore(database, owner=name, overdue_s=0.5),
            metrics=NoMetrics(),
            shared=True,
        )
        self.store = SqlExecutionStore(database, on_commit=self.relay.offer, ring=lambda: None)
        self.running: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        self.running = asyncio.create_task(self.relay.run())
        await self.relay.ready.wait()

    async def end(self) -> None:
        assert self.running is not None
        self.running.cancel()
        await asyncio.wait([self.running])


def in_order(sent: Sequence[tuple[str, int]], tape: str, upto: int) -> bool:
    """Every number is there, and none came before its predecessor had come once."""
    highest = 0
    for _, n in [one for one in sent if one[0] == tape]:
        if n > highest + 1:
            return False
        highest = max(highest, n)
    return highest == upto


async def test_processes_relay_the_same_tapes_in_order(processes: Processes) -> None:
    one, other = [Process(database, f"p{n}") for n, database in enumerate(await processes(2))]
    await one.begin()
    await other.begin()
    try:
        names = [f"e{n}" for n in range(5)]
        for name in names:
            await one.store.start(NewExecution(name, "u", "g", 1, b"{}", datetime.now(UTC), "epoch"))
            row = await other.store.claim(name, owner="w", lease_seconds=60)
            assert row is not None
            await other.store.commit(Step(name, row.lease_no, events=[NewEvent("node_output_event", b"{}")]), row)
            await one.store.request_cancel(name, user_id="u")
        async with asyncio.timeout(10):
            while not all(in_order(one.sent + other.sent, f"execution_events:{name}", 4) for name in names):
                await asyncio.sleep(0.05)
        for process in (one, other):
            for name in names:
                mine = [n for tape, n in process.sent if tape == f"execution_events:{name}"]
                assert mine == sorted(mine)
    finally:
        await one.end()
        await other.end()


@pytest.mark.slow
async def test_what_a_dead_process_left_is_sent_by_one_other(processes: Processes) -> None:
    dead, *others = [Process(database, f"p{n}") for n, database in enumerate(await processes(4))]
    dead.outlet.gate.clear()
    await dead.begin()
    for process in others:
        await process.begin()
    try:
        names = [f"e{n}" for n in range(20)]
        for name in names:
            await dead.store.start(NewExecution(name, "u", "g", 1, b"{}", datetime.now(UTC), "epoch"))
        await dead.end()
        expected = sorted((f"execution_events:{name}", 1) for name in names)
        async with asyncio.timeout(15):
            while sorted(one for process in others for one in process.sent) != expected:
                await asyncio.sleep(0.05)
        await asyncio.sleep(1.5)
        assert sorted(one for process in others for one in process.sent) == expected, "none was sent twice"
        assert sum(bool(process.sent) for process in others) == 1, "they did not fight for it"
    finally:
        for process in others:
            await process.end()


@pytest.mark.slow
async def test_what_a_dead_process_added_to_a_known_tape_is_sent(processes: Processes) -> None:
    dead, other = [Process(database, f"p{n}") for n, database in enumerate(await processes(2))]
    await other.begin()
    try:
        await other.store.start(NewExecution("e", "u", "g", 1, b"{}", datetime.now(UTC), "epoch"))
        assert await dead.store.claim("e", owner="w", lease_seconds=60) is not None  # its relay never ran
        async with asyncio.timeout(15):
            while not in_order(other.sent, "execution_events:e", 2):
                await asyncio.sleep(0.05)
    finally:
        await other.end()
