"""Blocks for tests, given to a server by `LIVETAPE_BLOCKS=chaosblocks:blocks` with this folder on PYTHONPATH."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from livetape.engine.block import Block, BlockContext, BlockSchema, PinValue
from livetape.errors import BlockExecutionError

FILE_VARIABLE = "CHAOS_SIDE_EFFECTS"


def note(kind: str, ctx: BlockContext, value: object) -> None:
    """One line in the side-effect file: a single write to a file opened for appending is never torn.

    Without the variable nothing is written: most tests only need the values.
    """
    path = os.environ.get(FILE_VARIABLE)
    if path is None:
        return
    _append(path, f"{kind} {ctx.node_exec_id} {value} {os.getpid()}\n")


def mark(what: str, ctx: BlockContext, value: int) -> None:
    """As `note`, by the idempotency key and with the time of day: two lines of one run say how long it acted."""
    path = os.environ.get(FILE_VARIABLE)
    if path is not None:
        _append(path, f"{what} {ctx.idempotency_key} {value} {os.getpid()} {time.time():.6f}\n")


def _append(path: str, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


class ChaosStreamBlock(Block["ChaosStreamBlock.Input"]):
    """Yields 0, 1, 2 … with a pause before each."""

    id = "c4a05001-0000-4000-8000-000000000001"
    description = "Streams numbers slowly (tests)."

    class Input(BlockSchema):
        count: int
        pause: float = 0.0
        start: int = 0

    class Output(BlockSchema):
        value: int

    async def run(self, data: ChaosStreamBlock.Input, ctx: BlockContext) -> AsyncIterator[PinValue]:
        note("stream", ctx, data.start)
        for n in range(data.start, data.start + data.count):
            if data.pause:
                await ctx.sleep(data.pause)
            yield "value", n


class ChaosWriteBlock(Block["ChaosWriteBlock.Input"]):
    """Writes a line outside, the only trace of a run that cannot be rolled back. Runs in a thread."""

    id = "c4a05001-0000-4000-8000-000000000002"
    description = "Leaves a line in a file (tests)."

    class Input(BlockSchema):
        value: int
        pause: float = 0.0

    class Output(BlockSchema):
        done: int

    def run(self, data: ChaosWriteBlock.Input, ctx: BlockContext) -> Iterator[PinValue]:
        note("write", ctx, data.value)
        if data.pause:
            time.sleep(data.pause)  # blocking on purpose
        yield "done", data.value


class ChaosFailBlock(Block["ChaosFailBlock.Input"]):
    """Fails when the value is below the limit, else hands the value on."""

    id = "7b0d3a52-5d6c-4e4e-9d0e-4f2f7f6a0f11"
    description = "Fails below a limit (tests)."

    class Input(BlockSchema):
        value: float
        limit: float

    class Output(BlockSchema):
        value: float

    async def run(self, data: ChaosFailBlock.Input, ctx: BlockContext) -> AsyncIterator[PinValue]:
        if data.value < data.limit:
            raise BlockExecutionError(f"{data.value:g} is below {data.limit:g}")
        yield "value", data.value


class ChaosEchoBlock(Block["ChaosEchoBlock.Input"]):
    """Hands any value on; its output is not static."""

    id = "c4a05001-0000-4000-8000-000000000003"
    description = "Hands a value on (tests)."

    class Input(BlockSchema):
        value: Any

    class Output(BlockSchema):
        value: Any

    async def run(self, data: ChaosEchoBlock.Input, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "value", data.value


class ChaosEffectInput(BlockSchema):
    value: int
    pause: float = 0.0


class ChaosEffectOutput(BlockSchema):
    done: int


class ChaosEffectBlock(Block[ChaosEffectInput]):
    """Marks its begin and its end outside; gives the next number. Runs on the loop."""

    id = "c4a05001-0000-4000-8000-000000000004"
    description = "Acts outside for a while (tests)."
    Input = ChaosEffectInput
    Output = ChaosEffectOutput

    async def run(self, data: ChaosEffectInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        mark("began", ctx, data.value)
        await ctx.sleep(data.pause)
        mark("ended", ctx, data.value)
        yield "done", data.value + 1


class ChaosStubbornBlock(Block[ChaosEffectInput]):
    """The same in a thread, in one piece: nothing can end it before its time."""

    id = "c4a05001-0000-4000-8000-000000000005"
    description = "Acts outside for a while and listens to nobody (tests)."
    Input = ChaosEffectInput
    Output = ChaosEffectOutput

    def run(self, data: ChaosEffectInput, ctx: BlockContext) -> Iterator[PinValue]:
        mark("began", ctx, data.value)
        time.sleep(data.pause)  # blocking on purpose
        mark("ended", ctx, data.value)
        yield "done", data.value + 1


class ChaosBulkBlock(Block[ChaosEffectInput]):
    """Gives a text of `value` characters."""

    id = "c4a05001-0000-4000-8000-000000000006"
    description = "Gives a long text (tests)."
    Input = ChaosEffectInput

    class Output(BlockSchema):
        text: str

    def run(self, data: ChaosEffectInput, ctx: BlockContext) -> Iterator[PinValue]:
        yield "text", "x" * data.value


def blocks() -> list[Block[Any]]:
    """What `LIVETAPE_BLOCKS` names."""
    return [
        ChaosStreamBlock(),
        ChaosWriteBlock(),
        ChaosFailBlock(),
        ChaosEchoBlock(),
        ChaosEffectBlock(),
        ChaosStubbornBlock(),
        ChaosBulkBlock(),
    ]
