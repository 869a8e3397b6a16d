"""The executor with a store that answers at once: what it does when everything happens within one turn of the loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from livetape.clock import SystemClock
from livetape.engine.block import Block, BlockContext, BlockRegistry, BlockSchema, PinValue
from livetape.engine.executor import Executor, ExecutorOptions
from livetape.engine.graph import Graph, Node
from livetape.engine.graph_plan import GraphPlan
from livetape.events.executions import ExecutionStatus
from livetape.observability import NoMetrics
from livetape.store.executions import ExecutionRow, ExecutionStore, Step


class Endless(Block[BlockSchema]):
    """Runs until it is cancelled."""

    id = "endless"

    class Input(BlockSchema):
        pass

    class Output(BlockSchema):
        out: Any

    async def run(self, data: BlockSchema, ctx: BlockContext) -> AsyncIterator[PinValue]:
        await asyncio.get_running_loop().create_future()
        yield "out", None


class InstantStore:
    """Keeps steps and never suspends its caller. The first commit asks for the stop."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.executor: Executor | None = None

    async def nodes(self, execution_id: str) -> tuple[()]:
        return ()

    async def commit(self, step: Step, row: ExecutionRow) -> None:
        self.steps.append(step)
        if len(self.steps) == 1:
            assert self.executor is not None
            self.executor.cancel()


async def test_stop_does_not_wait_for_a_node_that_has_not_had_its_first_turn() -> None:
    store, clock, ids = InstantStore(), SystemClock(), itertools.count(1)
    blocks = BlockRegistry([Endless()])
    now = clock.now()
    row = ExecutionRow(
        id="run", user_id="alice", graph_id="g", graph_version=1, status=ExecutionStatus.RUNNING, status_reason=None,
        inputs=b"{}", stats=b"{}", created_at=now, started_at=now, ended_at=None, cancel_requested=False,
        lease_owner="here", lease_no=1, lease_until=None, recoveries=0, tape_id=1, epoch="e",
    )  # fmt: skip
    with ThreadPoolExecutor(1) as threads:
        executor = store.executor = Executor(
            row,
            GraphPlan(Graph(name="g", nodes=[Node(id="n", block_id="endless")]), blocks),
            store=cast("ExecutionStore", store),
            blocks=blocks,
            threads=threads,
            clock=clock,
            new_id=lambda: f"id{next(ids)}",
            metrics=NoMetrics(),
            options=ExecutorOptions(cancel_grace_s=3600),
        )
        async with asyncio.timeout(60):
            await executor.run()
    assert b'"TERMINATED"' in b"".join(event.payload for event in store.steps[-1].events)
