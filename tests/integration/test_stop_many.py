"""Many executions are stopped at once, by a process that runs none of them: nobody waits for a lease renewal."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from livetape.engine.block import Block, BlockContext, BlockSchema, PinValue
from livetape.engine.graph import Graph, Node
from livetape.events.executions import ExecutionStatus
from livetape.runtime import open_engine
from livetape.settings import Settings
from rabbit import RabbitServer

pytestmark = [pytest.mark.needs("rabbitmq", "postgres"), pytest.mark.slow, pytest.mark.heavy]

COUNT = 20
RUNNING = 10
RENEW_S = 60.0
"""Far longer than anybody here waits."""

PATIENCE_S = 20.0


class Endless(Block[BlockSchema]):
    """Runs until it is stopped."""

    id = "endless"

    class Input(BlockSchema):
        pass

    class Output(BlockSchema):
        out: Any

    async def run(self, data: BlockSchema, ctx: BlockContext) -> AsyncIterator[PinValue]:
        await asyncio.get_running_loop().create_future()
        yield "out", 1


@pytest.mark.parametrize("queue", ["rabbitmq", "postgres"])
async def test_a_stop_of_many_waits_for_no_renewal(
    rabbit_server: RabbitServer, postgres_url: str, tmp_path: Path, queue: str
) -> None:
    broker = None
    if queue == "rabbitmq":
        vhost = secrets.token_hex(4)
        rabbit_server.ctl("add_vhost", vhost)
        rabbit_server.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
        broker = f"{rabbit_server.url}{vhost}"
    limits = {"concurrency": RUNNING, "lease_seconds": 3 * RENEW_S, "renew_seconds": RENEW_S}
    async with AsyncExitStack() as stack:
        engines = []
        for number, works in enumerate((False, True)):
            settings = Settings(data_dir=tmp_path / str(number), database=postgres_url, queue=broker, engine=limits)
            engine = open_engine(settings, extra_blocks=(Endless(),), works=works)
            engines.append(await stack.enter_async_context(engine))
        api = engines[0]
        graph = await api.graphs.create("u", Graph(name="g", nodes=[Node(id="n", block_id="endless")]))
        ids = [(await api.executions.start("u", graph.id, None, {})).execution.id for _ in range(COUNT)]
        async with asyncio.timeout(PATIENCE_S):
            while (await api.store.counts()).get(ExecutionStatus.RUNNING) != RUNNING:
                await asyncio.sleep(0.02)
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(api.executions.stop_graph_execution("u", one, PATIENCE_S) for one in ids))
        assert time.monotonic() - began < PATIENCE_S
        assert await api.store.counts() == {ExecutionStatus.TERMINATED: COUNT}
        reasons = {(await api.store.get(one)).status_reason for one in ids}
        assert reasons == {"cancelled_by_user"}
