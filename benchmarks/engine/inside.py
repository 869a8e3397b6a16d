"""Measures the engine from within one process, without HTTP: inside.py SCENARIO '{"arguments": …}'. Prints JSON.

A process of its own for each measurement: what one leaves behind (plans, connections, garbage) is not in the next.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from livetape.engine.block import Block, BlockContext, BlockSchema, PinValue
from livetape.engine.graph import Graph, Link, Node
from livetape.events.bus import BusMessage
from livetape.runtime import Engine, open_engine
from livetape.settings import Settings

PURE = "0be0c401-0000-4000-8000-000000000001"
EFFECT = "0be0c401-0000-4000-8000-000000000002"
MANY = "0be0c401-0000-4000-8000-000000000003"
COUNT = "0be0c401-0000-4000-8000-000000000004"
USER = "bench"
STARTERS = 16


class PureBlock(Block["PureBlock.Input"]):
    """Does nothing, and says that it may be done twice."""

    id = PURE
    pure = True

    class Input(BlockSchema):
        value: int

    class Output(BlockSchema):
        value: int

    async def run(self, data: PureBlock.Input, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "value", data.value


class EffectBlock(Block["EffectBlock.Input"]):
    """Does nothing, but for all the engine knows it may have called somebody. Notes when it began."""

    id = EFFECT

    class Input(BlockSchema):
        value: int

    class Output(BlockSchema):
        value: int

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}

    async def run(self, data: EffectBlock.Input, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.begun.setdefault(ctx.graph_exec_id, time.perf_counter())
        yield "value", data.value


class ManyBlock(Block["ManyBlock.Input"]):
    """Gives so many outputs."""

    id = MANY

    class Input(BlockSchema):
        count: int

    class Output(BlockSchema):
        value: int

    async def run(self, data: ManyBlock.Input, ctx: BlockContext) -> AsyncIterator[PinValue]:
        for n in range(data.count):
            yield "value", n


class CountBlock(Block["CountBlock.Input"]):
    """Counts to its limit, one run for each number. As `EffectBlock`, it may have called somebody."""

    id = COUNT

    class Input(BlockSchema):
        value: int
        limit: int

    class Output(BlockSchema):
        next: int
        done: int

    async def run(self, data: CountBlock.Input, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield ("next" if data.value < data.limit else "done"), data.value + 1


def loop(runs: int) -> Graph:
    """So many node executions, one after the other: a graph has at most 2,000 nodes."""
    return Graph(
        name=f"loop of {runs}",
        nodes=[
            Node(id="begin", block_id=EFFECT, input_default={"value": 2}),
            Node(id="count", block_id=COUNT, input_default={"limit": runs}),
        ],
        links=[
            Link(source_id="begin", sink_id="count", source_name="value", sink_name="value"),
            Link(source_id="count", sink_id="count", source_name="next", sink_name="value"),
        ],
    )


def chain(block: str, length: int) -> Graph:
    return Graph(
        name=f"chain of {length}",
        nodes=[Node(id=f"n{n}", block_id=block, input_default={} if n else {"value": 1}) for n in range(length)],
        links=[
            Link(source_id=f"n{n}", sink_id=f"n{n + 1}", source_name="value", sink_name="value")
            for n in range(length - 1)
        ],
    )


@asynccontextmanager
async def engine_on(url: str | None, concurrency: int = 10) -> AsyncIterator[tuple[Engine, EffectBlock]]:
    effect = EffectBlock()
    with tempfile.TemporaryDirectory(prefix="livetape-bench-") as folder:
        settings = Settings(data_dir=Path(folder), database=url, engine={"concurrency": concurrency})
        async with open_engine(settings, extra_blocks=(PureBlock(), effect, ManyBlock(), CountBlock())) as engine:
            yield engine, effect


@asynccontextmanager
async def ends(engine: Engine, ended: Callable[[str], None]) -> AsyncIterator[None]:
    """Call `ended` with the channel of each execution whose last event has come over the bus."""

    def heard(messages: Sequence[BusMessage]) -> None:
        for message in messages:
            if b'"final":true' in message.data[-64:]:
                ended(message.channel)

    async with await engine.bus.subscribe("execution_event/*", sink=heard):
        yield


async def run_watched(engine: Engine, graph_id: str) -> float:
    """Seconds from the start to the watcher's last event."""
    last: dict[str, float] = {}
    came = asyncio.Event()

    def ended(channel: str) -> None:
        last.setdefault(channel.rpartition("/")[2], time.perf_counter())
        came.set()

    async with ends(engine, ended):
        began = time.perf_counter()
        execution = (await engine.executions.start(USER, graph_id, None, {})).execution.id
        async with asyncio.timeout(120):
            while execution not in last:
                came.clear()
                await came.wait()
    row = await engine.store.get(execution)
    if row.status.value != "COMPLETED":
        raise SystemExit(f"the execution ended {row.status.value}")
    return last[execution] - began


async def measure_chain(url: str | None, nodes: int, times: int, block: str) -> list[float]:
    """Milliseconds for each node, a watcher connected."""
    async with engine_on(url) as (engine, _):
        graph = await engine.graphs.create(USER, chain(block, nodes))
        warm = await engine.graphs.create(USER, chain(block, 10))
        for _ in range(3):
            await run_watched(engine, warm.id)
        return [await run_watched(engine, graph.id) * 1000 / nodes for _ in range(times)]


async def measure_loop(url: str | None, runs: int, times: int) -> list[float]:
    """Milliseconds for each node execution of a loop."""
    async with engine_on(url) as (engine, _):
        warm = await engine.graphs.create(USER, loop(30))
        graph = await engine.graphs.create(USER, loop(runs))
        for _ in range(3):
            await run_watched(engine, warm.id)
        return [await run_watched(engine, graph.id) * 1000 / runs for _ in range(times)]


async def measure_outputs(url: str | None, outputs: int, times: int) -> list[float]:
    """Milliseconds for an execution of one node that gives so many outputs."""
    async with engine_on(url) as (engine, _):
        nodes = [Node(id="many", block_id=MANY, input_default={"count": outputs})]
        graph = await engine.graphs.create(USER, Graph(name="many", nodes=nodes))
        await run_watched(engine, graph.id)
        return [await run_watched(engine, graph.id) * 1000 for _ in range(times)]


async def measure_start(url: str | None, times: int) -> list[float]:
    """Milliseconds from the call of start to the first line of the first block, one after the other."""
    found = []
    async with engine_on(url) as (engine, effect):
        graph = await engine.graphs.create(USER, chain(EFFECT, 1))
        for _ in range(times + 5):
            began = time.perf_counter()
            started = await engine.executions.start(USER, graph.id, None, {})
            while started.execution.id not in effect.begun:
                await asyncio.sleep(0.0005)
            found.append((effect.begun[started.execution.id] - began) * 1000)
            await asyncio.sleep(0.005)
    return found[5:]


async def measure_throughput(url: str | None, executions: int, block: str) -> float:
    """Executions of one node from the first start to the watcher's last end, for each second."""
    async with engine_on(url, concurrency=32) as (engine, _):
        graph = await engine.graphs.create(USER, chain(block, 1))
        await many(engine, graph.id, 50)
        return executions / await many(engine, graph.id, executions)


async def many(engine: Engine, graph_id: str, count: int) -> float:
    ended: set[str] = set()
    done = asyncio.Event()

    def heard(channel: str) -> None:
        ended.add(channel)
        if len(ended) == count:
            done.set()

    numbers = iter(range(count))

    async def start_some() -> None:
        for _ in numbers:
            await engine.executions.start(USER, graph_id, None, {})

    async with ends(engine, heard):
        began = time.perf_counter()
        await asyncio.gather(*(start_some() for _ in range(STARTERS)))
        async with asyncio.timeout(120):
            await done.wait()
    return time.perf_counter() - began


SCENARIOS: dict[str, Any] = {
    "chain": measure_chain,
    "loop": measure_loop,
    "outputs": measure_outputs,
    "start": measure_start,
    "throughput": measure_throughput,
}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(SCENARIOS[sys.argv[1]](**json.loads(sys.argv[2])))))
