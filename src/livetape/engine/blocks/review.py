"""HumanInTheLoopBlock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, BlockType, PinValue, Vector
from livetape.engine.block_ports import ReviewRequest
from livetape.errors import BlockInputError


class HumanInTheLoopInput(BlockSchema):
    data: Any
    name: Annotated[str, Field(max_length=500)]
    editable: bool = True


class HumanInTheLoopOutput(BlockSchema):
    approved_data: Any
    rejected_data: Any
    review_message: str = ""


class HumanInTheLoopBlock(Block[HumanInTheLoopInput]):
    """The execution waits in REVIEW without a worker. `review_message` comes only if the person wrote one."""

    id = "8b2a7b3c-6e9d-4a5f-8c1b-2e3f4a5b6c7d"
    description = "Shows data to a person and goes on when they have approved or rejected it."
    categories = (BlockCategory.BASIC,)
    block_type = BlockType.HUMAN_IN_THE_LOOP
    Input = HumanInTheLoopInput
    Output = HumanInTheLoopOutput
    vectors = (
        Vector({"data": {"to": "all"}, "name": "letter"}, [("approved_data", {"to": "all"})]),
        Vector(
            {"data": "no", "name": "refuse", "editable": False},
            [("rejected_data", "no"), ("review_message", "not like this")],
        ),
        Vector({"data": 1}, raises=BlockInputError, matching="name: this field is required"),
        Vector({"data": 1, "name": "x" * 501}, raises=BlockInputError, matching="name: "),
    )

    async def run(self, data: HumanInTheLoopInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        answer = await ctx.review.ask(ReviewRequest(data.data, data.name, data.editable))
        yield "approved_data" if answer.approved else "rejected_data", answer.data
        if answer.message:
            yield "review_message", answer.message


BLOCKS = (HumanInTheLoopBlock,)
