"""DelayBlock."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.errors import BlockExecutionError, BlockInputError

MAX_SECONDS = 366 * 86_400


class DelayInput(BlockSchema):
    value: Any = None
    seconds: float = 0
    until: datetime | None = None


class DelayOutput(BlockSchema):
    value: Any


class DelayBlock(Block[DelayInput]):
    """Waits `seconds`, or until a moment (without a time zone it is UTC; one that has passed does not wait).

    A wait of more than some seconds takes no place in a worker and outlives every process: when it is over, the next
    worker goes on.
    """

    id = "2219d078-831b-4245-aaf9-66e7a85d4faf"
    description = "Holds a value back for a time, or until a moment, and then passes it on."
    categories = (BlockCategory.BASIC, BlockCategory.LOGIC)
    read_only = True
    Input = DelayInput
    Output = DelayOutput
    vectors = (
        Vector({"value": {"a": 1}, "seconds": 86_400}, [("value", {"a": 1})]),
        Vector({"value": 1, "until": "2030-01-01T00:00:00+02:00"}, raises=BlockExecutionError, matching="366 days"),
        Vector({"value": 1, "until": "2025-01-03T00:00:00"}, [("value", 1)]),
        Vector({"value": 1, "until": "1999-01-01T00:00:00Z"}, [("value", 1)]),
        Vector({}, [("value", None)]),
        Vector(
            {"seconds": 1, "until": "2025-01-03"}, raises=BlockExecutionError, matching="seconds or until, not both"
        ),
        Vector({"seconds": -1}, raises=BlockExecutionError, matching="seconds: "),
        Vector({"seconds": "nan"}, raises=BlockExecutionError, matching="seconds: "),
        Vector({"until": "soon"}, raises=BlockInputError, matching="until: "),
    )

    async def run(self, data: DelayInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        await ctx.sleep_until(_due(data, ctx.clock.now()))
        yield "value", data.value


def _due(data: DelayInput, now: datetime) -> datetime:
    if data.until is not None and data.seconds:
        raise BlockExecutionError("seconds or until, not both")
    if not math.isfinite(data.seconds) or data.seconds < 0:
        raise BlockExecutionError("seconds: must be 0 or more")
    try:
        if data.until is None:
            due = now + timedelta(seconds=data.seconds)
        else:
            due = (data.until if data.until.tzinfo else data.until.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        due = None
    if due is None or (due - now).total_seconds() > MAX_SECONDS:
        raise BlockExecutionError("a delay takes at most 366 days")
    return due


BLOCKS = (DelayBlock,)
