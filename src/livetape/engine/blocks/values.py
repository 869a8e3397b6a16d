"""Blocks that hold, note or convert a single value."""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Any

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, BlockType, PinValue, Vector
from livetape.engine.coerce import convert, fits
from livetape.errors import BlockExecutionError, BlockInputError


class StoreValueInput(BlockSchema):
    input: Any
    data: Any = None


class StoreValueOutput(BlockSchema):
    output: Any


class StoreValueBlock(Block[StoreValueInput]):
    id = "1ff065e9-88e8-4358-9d82-8dc91f622ba9"
    description = "Keeps a value and passes it on as often as it is needed: `data` if it holds something, else `input`."
    categories = (BlockCategory.BASIC,)
    static_output = True
    pure = True
    Input = StoreValueInput
    Output = StoreValueOutput
    vectors = (
        Vector({"input": "trigger", "data": 4}, [("output", 4)]),
        Vector({"input": {"a": [1]}}, [("output", {"a": [1]})]),
        Vector({"input": "kept", "data": 0}, [("output", "kept")]),
        Vector({"input": None}, [("output", None)]),
        Vector({"data": 4}, raises=BlockInputError, matching="input: this field is required"),
    )

    async def run(self, data: StoreValueInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "output", data.data or data.input


class NoteInput(BlockSchema):
    text: str


class NoteOutput(BlockSchema):
    output: str


class NoteBlock(Block[NoteInput]):
    id = "cc10ff7b-7753-4ff2-9af6-9399b1a7eddc"
    description = "A note for the readers of the graph. It is not part of a run."
    categories = (BlockCategory.BASIC,)
    block_type = BlockType.NOTE
    pure = True
    Input = NoteInput
    Output = NoteOutput
    vectors = (
        Vector({"text": "remember the milk"}, [("output", "remember the milk")]),
        Vector({"text": 12}, [("output", "12")]),
        Vector({}, raises=BlockInputError, matching="text"),
    )

    async def run(self, data: NoteInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "output", data.text


class TypeOptions(StrEnum):
    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"
    LIST = "list"
    DICTIONARY = "dictionary"


_TYPES: dict[TypeOptions, type] = {
    TypeOptions.STRING: str,
    TypeOptions.NUMBER: float,
    TypeOptions.BOOLEAN: bool,
    TypeOptions.LIST: list,
    TypeOptions.DICTIONARY: dict,
}


class UniversalTypeConverterInput(BlockSchema):
    value: Any
    type: TypeOptions


class UniversalTypeConverterOutput(BlockSchema):
    value: Any


class UniversalTypeConverterBlock(Block[UniversalTypeConverterInput]):
    id = "95d1b990-ce13-4d88-9737-ba5c2070c97b"
    description = "Turns a value into text, a number, true or false, a list or a dictionary."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = UniversalTypeConverterInput
    Output = UniversalTypeConverterOutput
    vectors = (
        Vector({"value": 12, "type": "string"}, [("value", "12")]),
        Vector({"value": " 12.5 ", "type": "number"}, [("value", 12.5)]),
        Vector({"value": "no", "type": "boolean"}, [("value", False)]),
        Vector({"value": "one", "type": "list"}, [("value", ["one"])]),
        Vector({"value": '{"a": [1, 2]}', "type": "dictionary"}, [("value", {"a": [1, 2]})]),
        Vector({"value": {"a": True}, "type": "string"}, [("value", '{"a":true}')]),
        Vector({"value": "many", "type": "number"}, raises=BlockExecutionError, matching="not a number"),
        Vector({"value": [1], "type": "dictionary"}, raises=BlockExecutionError, matching="not a dictionary"),
        Vector({"value": 1, "type": "banana"}, raises=BlockInputError, matching="type"),
    )

    async def run(self, data: UniversalTypeConverterInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        wanted = _TYPES[data.type]
        value = convert(data.value, wanted)
        if not fits(value, wanted):
            raise BlockExecutionError(f"this {type(data.value).__name__} is not a {data.type}")
        yield "value", value


BLOCKS = (StoreValueBlock, NoteBlock, UniversalTypeConverterBlock)
