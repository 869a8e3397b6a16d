"""AgentOutputBlock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, BlockType, PinValue, Vector
from livetape.engine.templates import render
from livetape.errors import BlockExecutionError, BlockInputError

# How much of the value an error text shows.
MAX_SHOWN = 1000


class AgentOutputInput(BlockSchema):
    value: Any = None
    name: str
    title: str | None = None
    description: str | None = None
    format: str = ""
    escape_html: bool = False
    advanced: bool = False
    secret: bool = False


class AgentOutputOutput(BlockSchema):
    output: Any
    name: Any


class AgentOutputBlock(Block[AgentOutputInput]):
    """With `format`, a template in which the value goes by the output's name; an error becomes the output's text.

    A broken template must not lose the result of a long run, so the text shows the value too.
    """

    id = "363ae599-353e-4804-937e-b2ee3cef3da4"
    description = "A result of the graph, under a name. A template can bring it into form."
    categories = (BlockCategory.OUTPUT, BlockCategory.BASIC)
    block_type = BlockType.OUTPUT
    static_output = True
    pure = True
    Input = AgentOutputInput
    Output = AgentOutputOutput
    vectors = (
        Vector({"value": [1, 2], "name": "sum"}, [("output", [1, 2]), ("name", "sum")]),
        Vector({"name": "empty"}, [("output", None), ("name", "empty")]),
        Vector({"value": "Ann", "name": "who", "format": "Hello {{ who }}!"}, [("output", "Hello Ann!")]),
        Vector(
            {"value": "<b>", "name": "x", "format": "<i>{{ x }}</i>", "escape_html": True},
            [("output", "<i>&lt;b&gt;</i>")],
        ),
        Vector(
            {"value": 5, "name": "x", "format": "{{ x.y.z }}"},
            [("output", "Error: template: 'int object' has no attribute 'y', 5")],
        ),
        Vector({"value": 1}, raises=BlockInputError, matching="name: this field is required"),
    )

    def run(self, data: AgentOutputInput, ctx: BlockContext) -> Iterator[PinValue]:
        if not data.format:
            yield "output", data.value
            yield "name", data.name
            return
        try:
            text = render(data.format, {data.name: data.value}, escape_html=data.escape_html)
        except BlockExecutionError as error:
            text = f"Error: {error}, {str(data.value)[:MAX_SHOWN]}"
        yield "output", text


BLOCKS = (AgentOutputBlock,)
