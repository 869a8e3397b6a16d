"""Blocks that wait, and the graphs that they stand in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from livetape.engine.block import Block, BlockContext, BlockSchema, PinValue
from livetape.engine.block_ports import ChildCall, ReviewRequest
from livetape.errors import BlockExecutionError
from stage import Stage, on_stage

OUTPUT = "363ae599-353e-4804-937e-b2ee3cef3da4"
INPUT = "c0a8e994-ebf1-4a9c-a4d8-89d09c86741b"


class AnyIn(BlockSchema):
    value: Any = None


class AnyOut(BlockSchema):
    out: Any


class Step(Block[AnyIn]):
    id = "step"
    Input, Output = AnyIn, AnyOut

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.runs += 1
        if data.value == "broken":
            raise BlockExecutionError("it is broken")
        yield "out", data.value


class Ticker(Step):
    """Gives three values, a minute apart."""

    id = "ticker"

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.runs += 1
        for number in range(3):
            yield "out", number
            await ctx.sleep_until(ctx.clock.now() + timedelta(minutes=1))


class Sub(Step):
    """Runs the graph that `value` names, with `x` as what this graph was given."""

    id = "sub"

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.runs += 1
        result = await ctx.children.run(ChildCall(data.value, {"x": 5}))
        if result.status != "COMPLETED":
            raise BlockExecutionError(f"{result.status}: {result.error}")
        for values in result.outputs.values():
            for value in values:
                yield "out", value


class Many(Step):
    """Runs a graph five times, two at once."""

    id = "many"

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.runs += 1
        calls = [ChildCall(data.value, {"x": number}) for number in range(5)]
        async for place, result in ctx.children.run_many(calls, concurrency=2):
            yield "out", [place, result.outputs["r"]]


class Fickle(Step):
    """Runs two graphs at once and fails when the first has ended."""

    id = "fickle"

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        async for _ in ctx.children.run_many([ChildCall("quick", {}), ChildCall("slow", {})], concurrency=2):
            raise BlockExecutionError("enough")
        yield "out", 1


class Ask(Step):
    id = "ask"

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.runs += 1
        answer = await ctx.review.ask(ReviewRequest(data.value, "look at this"))
        yield "out", [answer.approved, answer.data, answer.message]


class Endless(Step):
    id = "endless"

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.runs += 1
        await asyncio.get_running_loop().create_future()
        yield "out", None


def stage_on(folder: Path, **options: Any) -> Any:
    return on_stage(folder, Step(), Ticker(), Sub(), Many(), Fickle(), Ask(), Endless(), **options)


async def inner(stage: Stage, block: str = "step") -> str:
    return await stage.graph(
        "inner",
        {"i": (INPUT, {"name": "x"}), "s": block, "r": (OUTPUT, {"name": "r"})},
        "i.result>s.value",
        "s.out>r.value",
    )


async def outer(stage: Stage, block: str = "sub", value: Any = "inner") -> str:
    return await stage.graph("outer", {"a": (block, {"value": value}), "r": (OUTPUT, {"name": "r"})}, "a.out>r.value")


async def children_of(stage: Stage, execution_id: str) -> list[str]:
    rows, _ = await stage.store.list("u", limit=100)
    return sorted(row.id for row, _ in rows if row.parent_id == execution_id)


def runs(stage: Stage, block_id: str) -> int:
    block = stage.blocks.get(block_id)
    assert isinstance(block, Step)
    return block.runs
