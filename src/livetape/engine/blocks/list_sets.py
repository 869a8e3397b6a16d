"""Blocks that combine lists or take them apart. Items are the same if their JSON is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import zip_longest
from typing import Annotated, Any

from pydantic import Field
from pydantic_core import to_json

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.blocks.limits import MAX_ITEMS, Items, check_count
from livetape.errors import BlockExecutionError, BlockInputError

Lists = Annotated[list[Items], Field(max_length=MAX_ITEMS)]

MAX_DEPTH = 200
"""JSON that came over a link is not deeper."""


def _key(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="constants", serialize_unknown=True)


class FlattenListInput(BlockSchema):
    nested_list: Items
    max_depth: Annotated[int, Field(ge=-1)] = -1


class FlattenListOutput(BlockSchema):
    flattened_list: Items
    length: int
    original_depth: int
    error: str


class FlattenListBlock(Block[FlattenListInput]):
    """`max_depth` levels are taken away, all of them with -1. A list without lists has the depth 1."""

    id = "cc45bb0f-d035-4756-96a7-fe3e36254b4d"
    description = "Makes one list of a list of lists, as deep as wanted."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = FlattenListInput
    Output = FlattenListOutput
    vectors = (
        Vector(
            {"nested_list": [1, [2, [3, [4]]]]},
            [("flattened_list", [1, 2, 3, 4]), ("length", 4), ("original_depth", 4)],
        ),
        Vector(
            {"nested_list": [1, [2, [3]]], "max_depth": 1},
            [("flattened_list", [1, 2, [3]]), ("length", 3), ("original_depth", 3)],
        ),
        Vector(
            {"nested_list": [[1]], "max_depth": 0}, [("flattened_list", [[1]]), ("length", 1), ("original_depth", 2)]
        ),
        Vector({"nested_list": []}, [("flattened_list", []), ("length", 0), ("original_depth", 1)]),
        Vector({"nested_list": [], "max_depth": -2}, raises=BlockInputError, matching="max_depth: "),
        Vector({"nested_list": [[0] * 6000] * 2}, raises=BlockExecutionError, matching="at most 10000"),
        Vector({}, raises=BlockInputError, matching="nested_list: this field is required"),
    )

    async def run(self, data: FlattenListInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        depth, level = 1, data.nested_list
        flat = level if data.max_depth == 0 else None
        while any(isinstance(item, list) for item in level):
            depth += 1
            if depth > MAX_DEPTH:
                raise BlockExecutionError(f"nested_list: deeper than {MAX_DEPTH}")
            level = [inner for item in level for inner in (item if isinstance(item, list) else [item])]
            check_count(len(level), "flattened_list")
            if depth - 1 == data.max_depth:
                flat = level
        flattened = level if flat is None else flat
        yield "flattened_list", flattened
        yield "length", len(flattened)
        yield "original_depth", depth


class ListsInput(BlockSchema):
    lists: Lists


class InterleaveListsOutput(BlockSchema):
    interleaved_list: Items
    length: int
    error: str


_END = object()


class InterleaveListsBlock(Block[ListsInput]):
    id = "9f616084-1d9f-4f8e-bc00-5b9d2a75cd75"
    description = "Takes the first item of each list, then the second of each, and so on, until all lists are empty."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = ListsInput
    Output = InterleaveListsOutput
    vectors = (
        Vector({"lists": [[1, 4], [2], [3, 5, 6]]}, [("interleaved_list", [1, 2, 3, 4, 5, 6]), ("length", 6)]),
        Vector({"lists": [[], [None, "a"]]}, [("interleaved_list", [None, "a"]), ("length", 2)]),
        Vector({"lists": []}, [("interleaved_list", []), ("length", 0)]),
        Vector({"lists": [[0] * 6000] * 2}, raises=BlockExecutionError, matching="12000 items"),
        Vector({"lists": [None]}, raises=BlockInputError, matching="lists: item 0"),
    )

    async def run(self, data: ListsInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        check_count(sum(map(len, data.lists)), "interleaved_list")
        items = [item for row in zip_longest(*data.lists, fillvalue=_END) for item in row if item is not _END]
        yield "interleaved_list", items
        yield "length", len(items)


class ZipListsInput(BlockSchema):
    lists: Lists
    pad_to_longest: bool = False
    fill_value: Any = None


class ZipListsOutput(BlockSchema):
    zipped_list: list[list[Any]]
    length: int
    error: str


class ZipListsBlock(Block[ZipListsInput]):
    id = "0d0e684f-5cb9-4c4b-b8d1-47a0860e0c07"
    description = "Makes a list of rows: the first items of all lists, the second ones, and so on."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = ZipListsInput
    Output = ZipListsOutput
    vectors = (
        Vector({"lists": [[1, 2, 3], ["a", "b"]]}, [("zipped_list", [[1, "a"], [2, "b"]]), ("length", 2)]),
        Vector(
            {"lists": [[1, 2], ["a"]], "pad_to_longest": True, "fill_value": "-"},
            [("zipped_list", [[1, "a"], [2, "-"]]), ("length", 2)],
        ),
        Vector({"lists": [[1], []]}, [("zipped_list", []), ("length", 0)]),
        Vector({"lists": []}, [("zipped_list", []), ("length", 0)]),
        Vector({"lists": [[0] * 6000] * 2}, raises=BlockExecutionError, matching="12000 items"),
        Vector({"lists": ["a"], "pad_to_longest": "perhaps"}, raises=BlockInputError, matching="pad_to_longest: "),
    )

    async def run(self, data: ZipListsInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        lengths = [len(items) for items in data.lists] or [0]
        rows = max(lengths) if data.pad_to_longest else min(lengths)
        check_count(rows * len(data.lists), "zipped_list")
        filled = (
            zip_longest(*data.lists, fillvalue=data.fill_value)
            if data.pad_to_longest
            else zip(*data.lists, strict=False)
        )
        zipped = [list(row) for row in filled]
        yield "zipped_list", zipped
        yield "length", len(zipped)


class ListDifferenceInput(BlockSchema):
    list_a: Items
    list_b: Items
    symmetric: bool = False


class ListDifferenceOutput(BlockSchema):
    difference: Items
    length: int
    error: str


class ListDifferenceBlock(Block[ListDifferenceInput]):
    id = "05309873-9d61-447e-96b5-b804e2511829"
    description = "The items of list A that are not in list B; if symmetric, those of B that are not in A after them."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = ListDifferenceInput
    Output = ListDifferenceOutput
    vectors = (
        Vector({"list_a": [1, 2, 2, 3], "list_b": [3]}, [("difference", [1, 2, 2]), ("length", 3)]),
        Vector({"list_a": [1, 2], "list_b": [2, 4], "symmetric": True}, [("difference", [1, 4]), ("length", 2)]),
        Vector({"list_a": [{"a": 1}, 1, "1"], "list_b": [{"a": 1}, "1"]}, [("difference", [1]), ("length", 1)]),
        Vector({"list_a": [], "list_b": []}, [("difference", []), ("length", 0)]),
        Vector({"list_a": []}, raises=BlockInputError, matching="list_b: this field is required"),
    )

    async def run(self, data: ListDifferenceInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        in_a, in_b = set(map(_key, data.list_a)), set(map(_key, data.list_b))
        found = [item for item in data.list_a if _key(item) not in in_b]
        if data.symmetric:
            found += [item for item in data.list_b if _key(item) not in in_a]
        check_count(len(found), "difference")
        yield "difference", found
        yield "length", len(found)


class ListIntersectionInput(BlockSchema):
    list_a: Items
    list_b: Items


class ListIntersectionOutput(BlockSchema):
    intersection: Items
    length: int
    error: str


class ListIntersectionBlock(Block[ListIntersectionInput]):
    """Each item once, in the order of list A."""

    id = "b6eb08b6-dbe3-411b-b9b4-2508cb311a1f"
    description = "The items that are in both lists."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = ListIntersectionInput
    Output = ListIntersectionOutput
    vectors = (
        Vector({"list_a": [3, 1, 2, 3], "list_b": [2, 3]}, [("intersection", [3, 2]), ("length", 2)]),
        Vector({"list_a": [{"a": [1]}], "list_b": [{"a": [1]}, 1]}, [("intersection", [{"a": [1]}]), ("length", 1)]),
        Vector({"list_a": [1], "list_b": ["1"]}, [("intersection", []), ("length", 0)]),
        Vector({"list_b": []}, raises=BlockInputError, matching="list_a: this field is required"),
    )

    async def run(self, data: ListIntersectionInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        in_b = set(map(_key, data.list_b))
        found = list({key: item for item in data.list_a if (key := _key(item)) in in_b}.values())
        yield "intersection", found
        yield "length", len(found)


BLOCKS = (FlattenListBlock, InterleaveListsBlock, ZipListsBlock, ListDifferenceBlock, ListIntersectionBlock)
