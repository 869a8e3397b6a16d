"""PostgreSQL that has no room, takes no writes, or is away for long, under an engine that works: said, and survived."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from integration.test_postgres_faults import chain, completed, engine_on
from livetape.clock import SystemClock
from livetape.engine.block import Block, BlockContext, BlockSchema, PinValue
from livetape.engine.graph import Graph, Node
from livetape.errors import CommitUnknownError, StoreUnavailableError
from livetape.events.executions import ExecutionStatus
from livetape.runtime import open_engine
from livetape.runtime.database import open_ports
from livetape.settings import EngineSettings, Settings
from postgres_server import USER, PostgresServer
from small_disk import small_disk

pytestmark = [pytest.mark.needs("postgres"), pytest.mark.slow, pytest.mark.heavy]


class Ticks(Block["Ticks.Input"]):
    """Gives numbers slowly, each with some weight."""

    id = "ticks"

    class Input(BlockSchema):
        count: int

    class Output(BlockSchema):
        out: str

    async def run(self, data: Ticks.Input, ctx: BlockContext) -> AsyncIterator[PinValue]:
        for number in range(data.count):
            await ctx.sleep(0.05)
            yield "out", f"{number} {'x' * 200}"


async def test_a_full_disk_is_said_and_what_ran_goes_on_when_there_is_room(
    tmp_path: Path, own_postgres: PostgresServer
) -> None:
    with small_disk(own_postgres.folder / "small", 24) as disk:
        place = disk.folder / "tablespace"
        place.mkdir()
        shutil.chown(place, USER, USER)
        own_postgres.sql(f"CREATE TABLESPACE small LOCATION '{place}'")
        own_postgres.sql("CREATE DATABASE tight TABLESPACE small")
        quick = EngineSettings(lease_seconds=3, renew_seconds=1, sweep_seconds=0.5, cancel_grace_seconds=1)
        settings = Settings(data_dir=tmp_path, database=own_postgres.url("tight"), engine=quick)
        async with open_engine(settings, extra_blocks=(Ticks(),)) as engine:
            slow = Graph(name="slow", nodes=[Node(id="n", block_id="ticks", input_default={"count": 100})])
            graph = await engine.graphs.create("u", slow)
            other = await engine.graphs.create("u", chain(3))
            running = (await engine.executions.start("u", graph.id, None, {})).execution.id
            await asyncio.sleep(1)
            disk.fill()
            accepted, refused = [], 0
            async with asyncio.timeout(60):
                while not refused:
                    try:
                        big = {"x": "y" * 8000}
                        accepted.append((await engine.executions.start("u", other.id, None, big)).execution.id)
                    except StoreUnavailableError:
                        refused += 1
            assert not engine.failed.done(), "the engine waits for room"
            await asyncio.sleep(2)
            disk.empty()
            for execution_id in [running, *accepted]:
                await completed(engine, execution_id)
            counts = await engine.store.counts()
            assert set(counts) == {ExecutionStatus.COMPLETED}


async def test_a_server_that_takes_no_writes_holds_executions_up_and_loses_none(
    tmp_path: Path, own_postgres: PostgresServer
) -> None:
    url = own_postgres.new_database()
    name = url.rpartition("/")[2]
    async with engine_on(tmp_path, url) as engine:
        graph = await engine.graphs.create("u", chain(60))
        started = [(await engine.executions.start("u", graph.id, None, {})).execution.id for _ in range(4)]
        own_postgres.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        own_postgres.end_sessions(name)
        with pytest.raises(StoreUnavailableError, match="read-only"):
            await engine.executions.start("u", graph.id, None, {})
        assert (await engine.executions.get("u", started[0])).execution.id == started[0], "it can be looked at"
        await asyncio.sleep(4)
        own_postgres.sql(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        for execution_id in started:
            assert await completed(engine, execution_id) > 60
        assert not engine.failed.done()


async def test_the_time_of_a_renewal_follows_the_lease(tmp_path: Path, own_postgres: PostgresServer) -> None:
    """A renewal that hangs must leave time for another before the lease is over."""
    brief = EngineSettings(lease_seconds=6, renew_seconds=2)
    settings = Settings(data_dir=tmp_path, database=own_postgres.url(), engine=brief)
    async with AsyncExitStack() as stack:
        database = (await open_ports(stack, settings, SystemClock())).database
        await asyncio.to_thread(database.write_now, database.now)
        own_postgres.pause()
        try:
            begun = time.monotonic()
            with pytest.raises(CommitUnknownError):
                await asyncio.to_thread(database.write_now, database.now)
            assert time.monotonic() - begun < 4  # it takes 1.6 s; the lease is over after 6
        finally:
            own_postgres.resume()


async def test_processes_with_folders_of_their_own_are_warned(
    tmp_path: Path, own_postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    def of(name: str, blobs: str | None = None) -> Settings:
        return Settings(data_dir=tmp_path / name, database=own_postgres.url(), blobs=blobs)

    async with AsyncExitStack() as stack:
        for settings in (of("a"), of("a"), of("b", f"file://{tmp_path}/a/blobs")):
            await stack.enter_async_context(open_engine(settings))
        assert "LIVETAPE_BLOBS" not in caplog.text
        await stack.enter_async_context(open_engine(of("c")))
        assert "LIVETAPE_BLOBS" in caplog.text
