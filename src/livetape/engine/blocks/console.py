"""PrintToConsoleBlock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.errors import BlockInputError


class PrintToConsoleInput(BlockSchema):
    text: Any


class PrintToConsoleOutput(BlockSchema):
    output: Any
    status: str


class PrintToConsoleBlock(Block[PrintToConsoleInput]):
    """There so that graphs that have it load; nothing is printed where nobody looks: the tape shows the value."""

    id = "f3b1c1b2-4c4f-4f0d-8d2f-4c4f0d8d2f4c"
    description = "Shows a value to whoever watches the run. It is disabled: every value is shown there anyway."
    categories = (BlockCategory.BASIC,)
    disabled = True
    pure = True
    Input = PrintToConsoleInput
    Output = PrintToConsoleOutput
    vectors = (
        Vector({"text": "Hello"}, [("output", "Hello"), ("status", "printed")]),
        Vector({"text": {"a": 1}}, [("output", {"a": 1}), ("status", "printed")]),
        Vector({}, raises=BlockInputError, matching="text: this field is required"),
    )

    async def run(self, data: PrintToConsoleInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "output", data.text
        yield "status", "printed"


BLOCKS = (PrintToConsoleBlock,)
