"""Blocks that make and measure text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.blocks.limits import MAX_ITEMS, Entries, check_count, check_size, unescaped
from livetape.engine.templates import render
from livetape.errors import BlockExecutionError, BlockInputError


class FillTextTemplateInput(BlockSchema):
    values: Entries
    format: str
    escape_html: bool = False


class TextOutput(BlockSchema):
    output: str


class FillTextTemplateBlock(Block[FillTextTemplateInput]):
    """Jinja2 in a sandbox with limits, see `engine/templates.py`."""

    id = "db7d8f02-2f44-4c55-ab7a-eae0941f0c30"
    description = "Fills a text template with values: {{ name }} stands for the value of that name."
    categories = (BlockCategory.TEXT,)
    pure = True
    Input = FillTextTemplateInput
    Output = TextOutput
    vectors = (
        Vector(
            {"values": {"name": "Alice", "n": 3}, "format": "{{ name }} has {{ n }} cakes."},
            [("output", "Alice has 3 cakes.")],
        ),
        Vector(
            {
                "values_#_xs": [1, 2],
                "values_#_y": "!",
                "values": {},
                "format": "{% for x in xs %}{{ x }}{{ y }}{% endfor %}",
            },
            [("output", "1!2!")],
        ),
        Vector({"values": {"x": "<"}, "format": "{{ x }}", "escape_html": True}, [("output", "&lt;")]),
        Vector({"values": {}, "format": "{{ 'a' * 10**9 }}"}, raises=BlockExecutionError, matching="bigger than"),
        Vector({"values": {}, "format": "{% if %}"}, raises=BlockExecutionError, matching="line 1"),
        Vector({"format": "x"}, raises=BlockInputError, matching="values: this field is required"),
    )

    def run(self, data: FillTextTemplateInput, ctx: BlockContext) -> Iterator[PinValue]:
        yield "output", render(data.format, data.values, escape_html=data.escape_html)


class CombineTextsInput(BlockSchema):
    input: Annotated[list[str], Field(max_length=MAX_ITEMS)]
    delimiter: str = ""


class CombineTextsBlock(Block[CombineTextsInput]):
    id = "e30a4d42-7b7d-4e6a-b36e-1f9b8e3b7d85"
    description = "Puts texts together into one, with a delimiter between them."
    categories = (BlockCategory.TEXT,)
    pure = True
    Input = CombineTextsInput
    Output = TextOutput
    vectors = (
        Vector({"input": ["a", "b", 3], "delimiter": ", "}, [("output", "a, b, 3")]),
        Vector({"input_$_0": "a", "input_$_1": "b", "delimiter": "\\n"}, [("output", "a\nb")]),
        Vector({"input": []}, [("output", "")]),
        Vector({"input": "alone"}, [("output", "alone")]),
        Vector({"input": ["x"] * 3, "delimiter": "y" * 600_000}, raises=BlockExecutionError, matching="output: "),
        Vector({"input": [None]}, raises=BlockInputError, matching="input: item 0"),
    )

    async def run(self, data: CombineTextsInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        delimiter = unescaped(data.delimiter)
        check_size(sum(map(len, data.input)) + len(delimiter) * (len(data.input) - 1), "output")
        yield "output", delimiter.join(data.input)


class TextSplitInput(BlockSchema):
    text: str
    delimiter: str
    strip: bool = True


class TextSplitOutput(BlockSchema):
    texts: list[str]


class TextSplitBlock(Block[TextSplitInput]):
    id = "d5ea33c8-a575-477a-b42f-2fe3be5055ec"
    description = "Splits a text at each delimiter into a list of texts."
    categories = (BlockCategory.TEXT,)
    pure = True
    Input = TextSplitInput
    Output = TextSplitOutput
    vectors = (
        Vector({"text": "a, b ,c", "delimiter": ","}, [("texts", ["a", "b", "c"])]),
        Vector({"text": "a, b", "delimiter": ",", "strip": False}, [("texts", ["a", " b"])]),
        Vector({"text": "a\nb", "delimiter": "\\n"}, [("texts", ["a", "b"])]),
        Vector({"text": "", "delimiter": ","}, [("texts", [])]),
        Vector({"text": "," * 10_000, "delimiter": ","}, raises=BlockExecutionError, matching="10001 items"),
        Vector({"text": "abc", "delimiter": ""}, raises=BlockExecutionError, matching="delimiter"),
    )

    async def run(self, data: TextSplitInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        delimiter = unescaped(data.delimiter)
        if not delimiter:
            raise BlockExecutionError("delimiter: must not be empty")
        check_count(data.text.count(delimiter) + 1, "texts")
        texts = data.text.split(delimiter) if data.text else []
        yield "texts", [text.strip() for text in texts] if data.strip else texts


class TextReplaceInput(BlockSchema):
    text: str
    old: str
    new: str


class TextReplaceBlock(Block[TextReplaceInput]):
    id = "7e7c87ab-3469-4bcc-9abe-67705091b713"
    description = "Replaces each occurrence of one text in another by a third."
    categories = (BlockCategory.TEXT,)
    pure = True
    Input = TextReplaceInput
    Output = TextOutput
    vectors = (
        Vector({"text": "a cat, a hat", "old": "a ", "new": "the "}, [("output", "the cat, the hat")]),
        Vector({"text": "abc", "old": "x", "new": "y"}, [("output", "abc")]),
        Vector({"text": "abc", "old": "b", "new": ""}, [("output", "ac")]),
        Vector({"text": "a" * 2000, "old": "a", "new": "b" * 2000}, raises=BlockExecutionError, matching="output: "),
        Vector({"text": "abc", "old": "", "new": "y"}, raises=BlockExecutionError, matching="old"),
    )

    async def run(self, data: TextReplaceInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        if not data.old:
            raise BlockExecutionError("old: must not be empty")
        growth = data.text.count(data.old) * (len(data.new) - len(data.old))
        check_size(len(data.text) + growth, "output")
        yield "output", data.text.replace(data.old, data.new)


class CountItemsInput(BlockSchema):
    collection: Any


class CountItemsOutput(BlockSchema):
    count: int


class CountItemsBlock(Block[CountItemsInput]):
    id = "3c9c2f42-b0c3-435f-ba35-05f7a25c772a"
    description = "Counts what a list, a dictionary or a text holds."
    categories = (BlockCategory.LOGIC,)
    pure = True
    Input = CountItemsInput
    Output = CountItemsOutput
    vectors = (
        Vector({"collection": [1, 2, 3]}, [("count", 3)]),
        Vector({"collection": {"a": 1}}, [("count", 1)]),
        Vector({"collection": "four"}, [("count", 4)]),
        Vector({"collection": []}, [("count", 0)]),
        Vector({"collection": 5}, raises=BlockExecutionError, matching="cannot be counted"),
        Vector({"collection": None}, raises=BlockExecutionError, matching="cannot be counted"),
    )

    async def run(self, data: CountItemsInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        if not isinstance(data.collection, str | list | tuple | dict | set):
            raise BlockExecutionError(f"collection: a {type(data.collection).__name__} cannot be counted")
        yield "count", len(data.collection)


class WordCharacterCountInput(BlockSchema):
    text: str


class WordCharacterCountOutput(BlockSchema):
    word_count: int
    character_count: int
    error: str


class WordCharacterCountBlock(Block[WordCharacterCountInput]):
    id = "ab2a782d-22cf-4587-8a70-55b59b3f9f90"
    description = "Counts the words and the characters of a text."
    categories = (BlockCategory.TEXT,)
    pure = True
    Input = WordCharacterCountInput
    Output = WordCharacterCountOutput
    vectors = (
        Vector({"text": "Down the  Rabbit-Hole\n"}, [("word_count", 3), ("character_count", 22)]),
        Vector({"text": ""}, [("word_count", 0), ("character_count", 0)]),
        Vector({"text": 1234}, [("word_count", 1), ("character_count", 4)]),
        Vector({}, raises=BlockInputError, matching="text"),
    )

    async def run(self, data: WordCharacterCountInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "word_count", len(data.text.split())
        yield "character_count", len(data.text)


BLOCKS = (
    FillTextTemplateBlock,
    CombineTextsBlock,
    TextSplitBlock,
    TextReplaceBlock,
    CountItemsBlock,
    WordCharacterCountBlock,
)
