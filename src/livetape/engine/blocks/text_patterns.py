"""Blocks that look for regular expressions in text.

A pattern can take longer than anybody waits, and nothing stops it within a process. So only small work is done in
the worker; the rest goes to a process of its own, which is killed at the time limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field
from pydantic_core import to_json

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.blocks.limits import MAX_ITEMS, MAX_TEXT, check_size
from livetape.engine.output_values import as_json
from livetape.errors import BlockExecutionError, BlockInputError

MAX_PATTERN = 1_000
QUICK_STEPS = 1_000_000

Pattern = Annotated[str, Field(max_length=MAX_PATTERN)]

_UNBOUNDED = re.compile(r"[*+]|\{\d*,\d*\}|\{\d{3,}\}")


def is_quick(pattern: str, text: Any) -> bool:
    """Whether looking for it surely takes some milliseconds: by how often what repeats can be tried. Too careful.

    With k repeats, each can end anywhere, and the whole can begin anywhere: n^(k+1) tries in n characters at most;
    repeats within groups that repeat, and references back, have no such bound.
    """
    if not isinstance(text, str | int | float | bool | None):
        return False
    if re.search(r"\)\s*[*+{?]|\\[1-9]|\(\?", pattern):
        return False
    length = len(text) if isinstance(text, str) else 32
    repeats = len(_UNBOUNDED.findall(pattern)) + pattern.count("?") + pattern.count("|")
    tries: int = (length + 1) ** min(repeats + 1, 10)
    return tries * (len(pattern) + 1) <= QUICK_STEPS


def compiled(pattern: str, *, case_sensitive: bool, dot_all: bool) -> re.Pattern[str]:
    """The pattern with its flags, refused with what is wrong in it."""
    try:
        return re.compile(pattern, (0 if case_sensitive else re.IGNORECASE) | (re.DOTALL if dot_all else 0))
    except (re.error, RecursionError, OverflowError) as error:
        said = error.msg if isinstance(error, re.error) else "too complicated"
        raise BlockExecutionError(f"not a regular expression: {said}") from None


def as_text(value: Any) -> str:
    """Text as it is, everything else as JSON."""
    text = value if isinstance(value, str) else to_json(as_json(value)).decode()
    check_size(len(text), "text")
    return text


class MatchTextPatternInput(BlockSchema):
    text: Any
    match: Pattern
    data: Any
    case_sensitive: bool = True
    dot_all: bool = True


class MatchTextPatternOutput(BlockSchema):
    positive: Any
    negative: Any


class MatchTextPatternBlock(Block[MatchTextPatternInput]):
    """Gives `data`, or the text where `data` holds nothing."""

    id = "3060088f-6ed9-4928-9ba7-9c92823a7ccd"
    description = "Passes data on, one way if a regular expression is found in the text, and another way if not."
    categories = (BlockCategory.TEXT,)
    pure = True
    timeout = 10.0
    Input = MatchTextPatternInput
    Output = MatchTextPatternOutput
    vectors = (
        Vector({"text": "ABC", "match": "ab", "data": "X", "case_sensitive": False}, [("positive", "X")]),
        Vector({"text": "ABC", "match": "ab", "data": "Y"}, [("negative", "Y")]),
        Vector({"text": "Hello World!", "match": ".orld.+", "data": None}, [("positive", "Hello World!")]),
        Vector({"text": "a\nb", "match": "a.b", "data": 1, "dot_all": False}, [("negative", 1)]),
        Vector({"text": {"a": 1}, "match": '"a":1', "data": 2}, [("positive", 2)]),
        Vector({"text": "x", "match": "(", "data": 1}, raises=BlockExecutionError, matching="not a regular expression"),
        Vector({"text": "x", "match": "x" * 1001, "data": 1}, raises=BlockInputError, matching="match: "),
        Vector({"text": "x" * (MAX_TEXT + 1), "match": "y", "data": 1}, raises=BlockExecutionError, matching="text: "),
    )

    def isolated(self, data: MatchTextPatternInput) -> bool:
        return not is_quick(data.match, data.text)

    def run(self, data: MatchTextPatternInput, ctx: BlockContext) -> Iterator[PinValue]:
        pattern = compiled(data.match, case_sensitive=data.case_sensitive, dot_all=data.dot_all)
        found = pattern.search(as_text(data.text)) is not None
        yield "positive" if found else "negative", data.data or data.text


class ExtractTextInformationInput(BlockSchema):
    text: Any
    pattern: Pattern
    group: Annotated[int, Field(ge=0)] = 0
    case_sensitive: bool = True
    dot_all: bool = True
    find_all: bool = False


class ExtractTextInformationOutput(BlockSchema):
    positive: str
    negative: str
    matched_results: list[str]
    matched_count: int


class ExtractTextInformationBlock(Block[ExtractTextInformationInput]):
    """`positive` once for each finding, or `negative` with the text; then the list and its length.

    A group that the pattern does not have, or that took no part in a finding, finds nothing.
    """

    id = "3146e4fe-2cdd-4f29-bd12-0c9d5bb4deb0"
    description = "Takes out of a text what a regular expression finds."
    categories = (BlockCategory.TEXT,)
    pure = True
    timeout = 10.0
    Input = ExtractTextInformationInput
    Output = ExtractTextInformationOutput
    vectors = (
        Vector(
            {"text": "Hello, World!", "pattern": "Hello, (.+)", "group": 1},
            [("positive", "World!"), ("matched_results", ["World!"]), ("matched_count", 1)],
        ),
        Vector(
            {"text": "Hello, World!", "pattern": "Hello, (.+)", "group": 2},
            [("negative", "Hello, World!"), ("matched_results", []), ("matched_count", 0)],
        ),
        Vector(
            {"text": "a1 b2", "pattern": "([a-z])\\d", "group": 1, "find_all": True},
            [("positive", "a"), ("positive", "b"), ("matched_results", ["a", "b"]), ("matched_count", 2)],
        ),
        Vector(
            {"text": [1, "x"], "pattern": "X", "case_sensitive": False},
            [("positive", "x"), ("matched_results", ["x"]), ("matched_count", 1)],
        ),
        Vector({"text": "a" * 10_001, "pattern": "a", "find_all": True}, raises=BlockExecutionError, matching="10000"),
        Vector({"text": "x", "pattern": "[a"}, raises=BlockExecutionError, matching="not a regular expression"),
        Vector({"text": "x", "pattern": "x", "group": -1}, raises=BlockInputError, matching="group: "),
    )

    def isolated(self, data: ExtractTextInformationInput) -> bool:
        return not is_quick(data.pattern, data.text)

    def run(self, data: ExtractTextInformationInput, ctx: BlockContext) -> Iterator[PinValue]:
        pattern = compiled(data.pattern, case_sensitive=data.case_sensitive, dot_all=data.dot_all)
        text = as_text(data.text)
        found: list[str] = []
        for match in pattern.finditer(text) if data.group <= pattern.groups else ():
            part = match.group(data.group)
            if part is None:
                continue
            if len(found) >= MAX_ITEMS:
                raise BlockExecutionError(f"matched_results: more than {MAX_ITEMS} findings")
            found.append(part)
            if not data.find_all:
                break
        for part in found:
            yield "positive", part
        if not found:
            yield "negative", data.text
        yield "matched_results", found
        yield "matched_count", len(found)


BLOCKS = (MatchTextPatternBlock, ExtractTextInformationBlock)
