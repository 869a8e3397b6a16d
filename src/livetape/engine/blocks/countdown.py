"""CountdownTimerBlock."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Annotated, Any

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.errors import BlockInputError

MAX_SECONDS = 365 * 24 * 3600
MAX_REPEAT = 10_000


class CountdownTimerInput(BlockSchema):
    input_message: Any = "timer finished"
    seconds: int | str = 0
    minutes: int | str = 0
    hours: int | str = 0
    days: int | str = 0
    repeat: Annotated[int, Field(ge=0, le=MAX_REPEAT)] = 1


class CountdownTimerOutput(BlockSchema):
    output_message: Any


class CountdownTimerBlock(Block[CountdownTimerInput]):
    id = "d67a9c52-5e4e-11e2-bcfd-0800200c9a71"
    description = "Waits and then passes on a message; again and again if it is to repeat."
    categories = (BlockCategory.TEXT,)
    read_only = True
    Input = CountdownTimerInput
    Output = CountdownTimerOutput
    vectors = (
        Vector({"seconds": 1}, [("output_message", "timer finished")]),
        Vector({"minutes": "0.5", "input_message": {"a": 1}, "repeat": 2}, [("output_message", {"a": 1})] * 2),
        Vector({"repeat": 0}, []),
        Vector({"seconds": "soon"}, raises=BlockInputError, matching="seconds: not a number"),
        Vector({"seconds": -1}, raises=BlockInputError, matching="seconds: "),
        Vector({"days": 400}, raises=BlockInputError, matching="at most 365 days"),
        Vector({"repeat": 10_001}, raises=BlockInputError, matching="repeat: "),
    )

    async def run(self, data: CountdownTimerInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        seconds = (
            _number("seconds", data.seconds)
            + _number("minutes", data.minutes) * 60
            + _number("hours", data.hours) * 3600
            + _number("days", data.days) * 86_400
        )
        if seconds > MAX_SECONDS:
            raise BlockInputError("a countdown takes at most 365 days")
        for _ in range(data.repeat):
            # A wait of nothing still lets others run.
            await ctx.sleep_until(ctx.clock.now() + timedelta(seconds=seconds))
            yield "output_message", data.input_message


def _number(pin: str, value: int | str) -> float:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise BlockInputError(f"{pin}: not a number") from None
    if not math.isfinite(number) or number < 0:
        raise BlockInputError(f"{pin}: must be 0 or more")
    return number


BLOCKS = (CountdownTimerBlock,)
