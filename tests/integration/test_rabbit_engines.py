"""Several engines on one PostgreSQL and one RabbitMQ: who works, who hears of a stop, and a broker that goes away."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from livetape.engine.block import Block, BlockContext, BlockSchema, PinValue
from livetape.engine.graph import Graph, Node
from livetape.events.executions import ExecutionStatus
from livetape.runtime import Engine, open_engine
from livetape.settings import EngineSettings, Settings
from rabbit import RabbitServer

pytestmark = [pytest.mark.needs("rabbitmq", "postgres"), pytest.mark.slow, pytest.mark.heavy]

BACK_S = 60.0
RENEW_S = 30.0


class Brief(Block[BlockSchema]):
    """Over at once; says where it ran."""

    id = "brief"

    class Input(BlockSchema):
        pass

    class Output(BlockSchema):
        out: Any

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, data: BlockSchema, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.runs += 1
        await asyncio.sleep(0.02)
        yield "out", 1


class Endless(Brief):
    """Runs until it is stopped."""

    id = "endless"

    async def run(self, data: BlockSchema, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.runs += 1
        await asyncio.get_running_loop().create_future()
        yield "out", 1


@asynccontextmanager
async def engines(
    broker: str, database: str, folder: Path, blocks: list[tuple[Block[Any], ...]]
) -> AsyncIterator[list[Engine]]:
    """The first one has the API and runs nothing."""
    async with AsyncExitStack() as stack:
        opened = []
        for number, extra in enumerate([blocks[0], *blocks]):
            slow = EngineSettings(lease_seconds=3 * RENEW_S, renew_seconds=RENEW_S)
            settings = Settings(data_dir=folder / str(number), database=database, queue=broker, engine=slow)
            engine = open_engine(settings, extra_blocks=extra, works=number > 0)
            opened.append(await stack.enter_async_context(engine))
        yield opened


async def start(engine: Engine, block_id: str) -> str:
    graph = await engine.graphs.create("u", Graph(name="g", nodes=[Node(id="n", block_id=block_id)]))
    return (await engine.executions.start("u", graph.id, None, {})).execution.id


async def reached(engine: Engine, execution_id: str, *wanted: ExecutionStatus) -> ExecutionStatus:
    async with asyncio.timeout(BACK_S):
        while (status := (await engine.store.get(execution_id)).status) not in wanted:
            await asyncio.sleep(0.02)
    return status


async def test_workers_share_executions_and_hear_of_stops(
    rabbit_server: RabbitServer, postgres_url: str, tmp_path: Path
) -> None:
    vhost = secrets.token_hex(4)
    rabbit_server.ctl("add_vhost", vhost)
    rabbit_server.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
    broker = f"{rabbit_server.url}{vhost}"
    first, second = Brief(), Brief()
    async with engines(broker, postgres_url, tmp_path, [(first, Endless()), (second, Endless())]) as (api, *_):
        ids = [await start(api, "brief") for _ in range(30)]
        ends = [await reached(api, execution_id, *TERMINAL) for execution_id in ids]
        assert set(ends) == {ExecutionStatus.COMPLETED}
        assert first.runs + second.runs == 30
        assert min(first.runs, second.runs) > 0
        endless = await start(api, "endless")
        await reached(api, endless, ExecutionStatus.RUNNING)
        async with asyncio.timeout(RENEW_S / 2):  # the renewal would tell, too
            await api.executions.stop("u", endless)
            while (await api.store.get(endless)).status is not ExecutionStatus.TERMINATED:
                await asyncio.sleep(0.02)


async def test_nothing_is_lost_when_the_broker_is_killed_under_load(
    own_rabbit: RabbitServer, postgres_url: str, tmp_path: Path
) -> None:
    first, second = Brief(), Brief()
    async with engines(f"{own_rabbit.url}?heartbeat=1", postgres_url, tmp_path, [(first,), (second,)]) as (api, *_):
        # Not while it makes the queues: it may leave one without a leader then.
        await reached(api, await start(api, "brief"), ExecutionStatus.COMPLETED)
        ids = [await start(api, "brief") for _ in range(10)]
        killing = asyncio.get_running_loop().run_in_executor(None, own_rabbit.kill)
        ids += [await start(api, "brief") for _ in range(20)]
        await killing
        await asyncio.get_running_loop().run_in_executor(None, own_rabbit.start)
        ends = [await reached(api, execution_id, *TERMINAL) for execution_id in ids]
        assert set(ends) == {ExecutionStatus.COMPLETED}
        assert first.runs + second.runs == 31


TERMINAL = (ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.TERMINATED)
