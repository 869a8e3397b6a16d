r"""Blocks that write text with escape sequences (`\n`, `\u00e9`) and read such text."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.blocks.limits import MAX_TEXT
from livetape.errors import BlockExecutionError, BlockInputError

Text = Annotated[str, Field(max_length=MAX_TEXT)]

_ESCAPE = re.compile(
    r"\\(?:([\\'\"abfnrtv])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{1,3}))|\\(.?)", re.DOTALL
)
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


class TextInput(BlockSchema):
    text: Text


class TextEncoderOutput(BlockSchema):
    encoded_text: str
    error: str


class TextEncoderBlock(Block[TextInput]):
    id = "5185f32e-4b65-4ecf-8fbb-873f003f09d6"
    description = "Writes line ends, special characters and all that is not ASCII as escape sequences."
    categories = (BlockCategory.TEXT,)
    pure = True
    Input = TextInput
    Output = TextEncoderOutput
    vectors = (
        Vector({"text": 'Hello\nWorld!\n"quoted"'}, [("encoded_text", 'Hello\\nWorld!\\n"quoted"')]),
        Vector({"text": "é\t\\ 😀"}, [("encoded_text", "\\xe9\\t\\\\ \\U0001f600")]),
        Vector({"text": ""}, [("encoded_text", "")]),
        Vector({"text": "x" * (MAX_TEXT + 1)}, raises=BlockInputError, matching="text: "),
    )

    async def run(self, data: TextInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "encoded_text", data.text.encode("unicode_escape").decode("ascii")


class TextDecoderOutput(BlockSchema):
    decoded_text: str


class TextDecoderBlock(Block[TextInput]):
    """Characters that are no escape sequence stay as they are, also those outside ASCII."""

    id = "2570e8fe-8447-43ed-84c7-70d657923231"
    description = "Reads escape sequences such as \\n and \\u00e9, and gives the text that they stand for."
    categories = (BlockCategory.TEXT,)
    pure = True
    Input = TextInput
    Output = TextDecoderOutput
    vectors = (
        Vector({"text": 'Hello\\nWorld!\\n\\"quoted\\"'}, [("decoded_text", 'Hello\nWorld!\n"quoted"')]),
        Vector({"text": "\\xe9é\\u00e9\\101\\\\n \\U0001f600"}, [("decoded_text", "ééé" + "A\\n 😀")]),
        Vector({"text": "plain"}, [("decoded_text", "plain")]),
        Vector({"text": "\\xZZ"}, raises=BlockExecutionError, matching="\\x is no escape sequence"),
        Vector({"text": "\\U00110000"}, raises=BlockExecutionError, matching="is no character"),
        Vector({"text": "the end\\"}, raises=BlockExecutionError, matching="ends in a backslash"),
        Vector({}, raises=BlockInputError, matching="text: this field is required"),
    )

    async def run(self, data: TextInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "decoded_text", _ESCAPE.sub(_meaning, data.text)


def _meaning(match: re.Match[str]) -> str:
    simple, two, four, eight, octal, wrong = match.groups()
    if simple is not None:
        return _SIMPLE.get(simple, simple)
    if octal is not None:
        return chr(int(octal, 8))
    digits = two or four or eight
    if digits is None:
        if not wrong:
            raise BlockExecutionError("text: ends in a backslash")
        raise BlockExecutionError(f"text: \\{wrong} is no escape sequence".replace("\n", " "))
    try:
        return chr(int(digits, 16))
    except (ValueError, OverflowError):
        raise BlockExecutionError(f"text: {match.group()} is no character") from None


BLOCKS = (TextEncoderBlock, TextDecoderBlock)
