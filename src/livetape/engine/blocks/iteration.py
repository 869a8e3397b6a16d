"""StepThroughItemsBlock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.blocks.limits import MAX_TEXT, AnyEntries, Items, check_count
from livetape.engine.coerce import parse_json
from livetape.errors import BlockExecutionError, BlockInputError


class StepThroughItemsInput(BlockSchema):
    items: Items = Field(default_factory=list)
    items_object: AnyEntries = Field(default_factory=dict)
    items_str: Annotated[str, Field(max_length=MAX_TEXT)] = ""


class StepThroughItemsOutput(BlockSchema):
    item: Any
    key: Any


class StepThroughItemsBlock(Block[StepThroughItemsInput]):
    """The first input that holds something counts. `key` is the place in a list or the key in a dictionary."""

    id = "f66a3543-28d3-4ab5-8945-9b336371e2ce"
    description = "Goes through a list or dictionary and gives out one item after the other, each with its key."
    categories = (BlockCategory.LOGIC,)
    pure = True
    Input = StepThroughItemsInput
    Output = StepThroughItemsOutput
    vectors = (
        Vector({"items": ["a", "b"]}, [("item", "a"), ("key", 0), ("item", "b"), ("key", 1)]),
        Vector({"items_object": {"x": 1}}, [("item", 1), ("key", "x")]),
        Vector({"items_str": "[true, null]"}, [("item", True), ("key", 0), ("item", None), ("key", 1)]),
        Vector({"items_str": '{"k": [1]}'}, [("item", [1]), ("key", "k")]),
        Vector({"items": [], "items_object": {"x": 1}, "items_str": "[2]"}, [("item", 1), ("key", "x")]),
        Vector({}, []),
        Vector({"items_str": "one, two"}, raises=BlockExecutionError, matching="items_str: "),
        Vector({"items": [0] * 10_001}, raises=BlockInputError, matching="items: "),
        Vector({"items_str": f"[{'0,' * 10_000}0]"}, raises=BlockExecutionError, matching="10001 items"),
    )

    async def run(self, data: StepThroughItemsInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        items: list[Any] | dict[Any, Any] = data.items or data.items_object or _parsed(data.items_str)
        for key, item in items.items() if isinstance(items, dict) else enumerate(items):
            yield "item", item
            yield "key", key


def _parsed(text: str) -> list[Any] | dict[str, Any]:
    if not text.strip():
        return []
    items = parse_json(text)
    if not isinstance(items, list | dict):
        raise BlockExecutionError("items_str: not a list or dictionary in JSON")
    check_count(len(items), "items_str")
    return items


BLOCKS = (StepThroughItemsBlock,)
