"""StreamTextBlock, livetape's own: many outputs, one after the other."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import Annotated, Literal

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.errors import BlockInputError

ChunkBy = Literal["paragraph", "line", "sentence", "word", "chars"]

_JOINED_BY: dict[ChunkBy, str] = {"paragraph": "\n\n", "line": "\n", "sentence": " ", "word": " ", "chars": ""}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class StreamTextInput(BlockSchema):
    text: str
    chunk_by: ChunkBy = "paragraph"
    chunk_size: Annotated[int, Field(ge=1, le=100_000)] = 1
    interval_ms: Annotated[int, Field(ge=0, le=60_000)] = 0
    limit: Annotated[int, Field(ge=0)] | None = None


class StreamTextOutput(BlockSchema):
    chunk: str
    index: int
    count: int


class StreamTextBlock(Block[StreamTextInput]):
    """`chunk` and `index` (from 0) alternate, `count` comes last. The same text always gives the same chunks.

    Paragraphs are separated by blank lines and lose outer blanks; lines stay as they are; the blanks inside a sentence
    become single spaces. `interval_ms` is the wait between two chunks; without one, others still get their turn.
    """

    id = "6a1d5b5e-63f8-4f0e-9d0c-5c2f7be0a9f1"
    description = "Gives a text out bit by bit: by paragraph, line, sentence, word or number of characters."
    categories = (BlockCategory.TEXT,)
    read_only = True
    Input = StreamTextInput
    Output = StreamTextOutput
    vectors = (
        Vector(
            {"text": "  One\ntwo.\n\n \n\nThree.\n"},
            [("chunk", "One\ntwo."), ("index", 0), ("chunk", "Three."), ("index", 1), ("count", 2)],
        ),
        Vector(
            {"text": "a\r\n\r\nb\n", "chunk_by": "line", "interval_ms": 5},
            [("chunk", "a"), ("index", 0), ("chunk", ""), ("index", 1), ("chunk", "b"), ("index", 2), ("count", 3)],
        ),
        Vector(
            {"text": "Is it\nlate? Yes! Very.", "chunk_by": "sentence", "limit": 2},
            [("chunk", "Is it late?"), ("index", 0), ("chunk", "Yes!"), ("index", 1), ("count", 2)],
        ),
        Vector(
            {"text": " the White  Rabbit", "chunk_by": "word", "chunk_size": 2},
            [("chunk", "the White"), ("index", 0), ("chunk", "Rabbit"), ("index", 1), ("count", 2)],
        ),
        Vector(
            {"text": "abcde", "chunk_by": "chars", "chunk_size": 3},
            [("chunk", "abc"), ("index", 0), ("chunk", "de"), ("index", 1), ("count", 2)],
        ),
        Vector({"text": "\n \n"}, [("count", 0)]),
        Vector({"text": "a", "limit": 0}, [("count", 0)]),
        Vector({"text": "a", "interval_ms": 60_001}, raises=BlockInputError, matching="interval_ms: "),
        Vector({"text": "a", "chunk_size": 0}, raises=BlockInputError, matching="chunk_size: "),
        Vector({"text": "a", "chunk_by": "page"}, raises=BlockInputError, matching="chunk_by: "),
    )

    async def run(self, data: StreamTextInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        units = _units(data.text.replace("\r\n", "\n"), data.chunk_by)
        chunks = _chunks(units, data.chunk_size, _JOINED_BY[data.chunk_by])
        count = 0
        for chunk in islice(chunks, data.limit):
            if count:
                await ctx.sleep(data.interval_ms / 1000)
            yield "chunk", chunk
            yield "index", count
            count += 1
        yield "count", count


def _units(text: str, chunk_by: ChunkBy) -> Iterable[str]:
    if chunk_by == "paragraph":
        return _paragraphs(text)
    if chunk_by == "line":
        return text.removesuffix("\n").split("\n") if text else ()
    if chunk_by == "sentence":
        sentences = (" ".join(sentence.split()) for sentence in _SENTENCE_END.split(text))
        return (sentence for sentence in sentences if sentence)
    return text.split() if chunk_by == "word" else text


def _paragraphs(text: str) -> Iterator[str]:
    lines: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines).strip()
            lines = []


def _chunks(units: Iterable[str], size: int, joined_by: str) -> Iterator[str]:
    source = iter(units)
    while group := list(islice(source, size)):
        yield joined_by.join(group)


BLOCKS = (StreamTextBlock,)
