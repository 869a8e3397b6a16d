"""Runs the examples that a block carries: for the tests of those who write blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from livetape.engine.block import VECTOR_TIME, Block, BlockContext, PinValue, Vector
from livetape.engine.coerce import coerce_input


class VectorClock:
    """Stands still at VECTOR_TIME."""

    def now(self) -> datetime:
        return VECTOR_TIME

    def monotonic(self) -> float:
        return 0.0


async def outputs_of(block: Block[Any], pins: Mapping[str, Any], files: Path, **services: Any) -> list[PinValue]:
    """What one run gives, at VECTOR_TIME, without waiting. `services` are further fields of the BlockContext.

    Raises:
        BlockInputError: the pins do not fit.
        Exception: whatever the block raises.
    """

    async def no_time(_: float) -> None:
        await asyncio.sleep(0)

    fields = {
        "user_id": "u", "graph_id": "g", "graph_version": 1, "graph_exec_id": "e", "node_id": "n", "node_exec_id": "ne",
        "files": files, "clock": VectorClock(), "sleep": no_time,
    }  # fmt: skip
    run = block.run(coerce_input(block.Input, block.prepare(pins)), BlockContext(**{**fields, **services}))
    if block.is_async:
        return [output async for output in cast("AsyncIterator[PinValue]", run)]
    return list(cast("Iterator[PinValue]", run))


async def check_vector(block: Block[Any], vector: Vector, files: Path, **services: Any) -> None:
    """Run one example in the folder `files`.

    Raises:
        AssertionError: the block does something else; the message has both.
    """
    for name, content in vector.files.items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(content)
    told = f"{block.name}, {dict(vector.input)}"
    try:
        got = await outputs_of(block, vector.input, files, **services)
    except Exception as error:
        if vector.raises is None or not isinstance(error, vector.raises):
            raise
        if vector.matching not in str(error):
            raise AssertionError(f"{told}: says {str(error)!r}, not {vector.matching!r}") from error
        return
    if vector.raises is not None:
        raise AssertionError(f"{told}: gives {got}, {vector.raises.__name__} is expected")
    if list(vector.outputs) != got:
        raise AssertionError(f"{told}: gives {got}, expected is {list(vector.outputs)}")


async def check_vectors(block: Block[Any], files: Path, **services: Any) -> int:
    """Run all examples of a block, each in a folder of its own below `files`; returns how many there are."""
    for number, vector in enumerate(block.vectors):
        folder = files / f"{block.name}-{number}"
        folder.mkdir(parents=True)
        await check_vector(block, vector, folder, **services)
    return len(block.vectors)
