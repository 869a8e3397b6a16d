"""GenericWebhookTriggerBlock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, BlockType, PinValue, Vector
from livetape.engine.blocks.limits import MAX_ITEMS
from livetape.errors import BlockInputError


class GenericWebhookTriggerInput(BlockSchema):
    payload: Annotated[dict[str, Any], Field(max_length=MAX_ITEMS)] = Field(default_factory=dict)
    constants: Annotated[dict[str, Any], Field(max_length=MAX_ITEMS)] = Field(default_factory=dict)


class GenericWebhookTriggerOutput(BlockSchema):
    payload: dict[str, Any]
    constants: dict[str, Any]


class GenericWebhookTriggerBlock(Block[GenericWebhookTriggerInput]):
    """A starting node. Whoever takes the HTTP request starts the graph with an input mask for this node:
    `{node_id: {"payload": <the JSON object of the request's body>}}`; a body that is JSON but no object comes as
    `{"value": ...}`. Without a mask `payload` is what the graph says, which serves for trying it out.
    """

    id = "8fa8c167-2002-47ce-aba8-97572fc5d387"
    description = "Starts the graph when its address is called, and gives what was sent, and fixed values beside it."
    categories = (BlockCategory.INPUT,)
    block_type = BlockType.WEBHOOK_MANUAL
    pure = True
    Input = GenericWebhookTriggerInput
    Output = GenericWebhookTriggerOutput
    vectors = (
        Vector({"payload": {"a": [1]}, "constants": {"k": "v"}}, [("payload", {"a": [1]}), ("constants", {"k": "v"})]),
        Vector({"payload": '{"a": 1}'}, [("payload", {"a": 1})]),
        Vector({}, [("payload", {})]),
        Vector({"payload": [1]}, raises=BlockInputError, matching="payload: "),
    )

    async def run(self, data: GenericWebhookTriggerInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "payload", data.payload
        if data.constants:
            yield "constants", data.constants


BLOCKS = (GenericWebhookTriggerBlock,)
