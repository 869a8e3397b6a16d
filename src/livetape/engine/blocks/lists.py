"""Blocks for lists. None changes the one it is given; places may be counted from the end, as -1."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from pydantic import Field
from pydantic_core import to_json

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.blocks.limits import MAX_ITEMS, Items, check_count
from livetape.errors import BlockExecutionError, BlockInputError

# There is no tokenizer here: four characters of an item's JSON count as one token.
CHARACTERS_PER_TOKEN = 4


def _none() -> list[Any]:
    # Classes below have a field that is called `list`.
    return []


def _place(items: list[Any], index: int) -> int:
    if not -len(items) <= index < len(items):
        raise BlockExecutionError(f"index: {index} is outside of the list, it has {len(items)} items")
    return index


class CreateListInput(BlockSchema):
    values: Items
    max_size: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class CreateListOutput(BlockSchema):
    list: Items


class CreateListBlock(Block[CreateListInput]):
    """A limit cuts the values into several lists, one output each. A token is taken to be four characters of JSON."""

    id = "a912d5c7-6e00-4542-b2a9-8034136930e4"
    description = "Makes a list of values; several smaller ones if a size is set."
    categories = (BlockCategory.DATA,)
    pure = True
    Input = CreateListInput
    Output = CreateListOutput
    vectors = (
        Vector({"values": [1, "b", None]}, [("list", [1, "b", None])]),
        Vector({"values_$_1": "b"}, [("list", [None, "b"])]),
        Vector({"values": [1, 2, 3], "max_size": 2}, [("list", [1, 2]), ("list", [3])]),
        Vector(
            {"values": ["aaaaaa", "bbbbbb", "c"], "max_tokens": 3}, [("list", ["aaaaaa"]), ("list", ["bbbbbb", "c"])]
        ),
        Vector({"values": []}, [("list", [])]),
        Vector({"values": [1], "max_size": 0}, raises=BlockInputError, matching="max_size: "),
        Vector({"values": [0] * 10_001}, raises=BlockInputError, matching="values: "),
    )

    async def run(self, data: CreateListInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        for part in _portions(data.values, data.max_size, data.max_tokens):
            yield "list", part


def _portions(values: list[Any], max_size: int | None, max_tokens: int | None) -> Iterator[list[Any]]:
    part: list[Any] = []
    used = 0
    for value in values:
        tokens = -(-len(_json(value)) // CHARACTERS_PER_TOKEN) if max_tokens else 0
        full = max_size is not None and len(part) >= max_size
        if part and (full or (max_tokens is not None and used + tokens > max_tokens)):
            yield part
            part, used = [], 0
        part.append(value)
        used += tokens
    if part or not values:
        yield part


def _json(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="constants", serialize_unknown=True)


class AddToListInput(BlockSchema):
    list: Items = Field(default_factory=_none)
    entry: Any = None
    entries: Items = Field(default_factory=_none)
    position: int | None = None


class UpdatedList(BlockSchema):
    updated_list: Items


class AddToListBlock(Block[AddToListInput]):
    id = "aeb08fc1-2fc1-4141-bc8e-f758f183a822"
    description = (
        "Adds one entry, or several, to a list, at the end or at a position. Without a list it makes a new one."
    )
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = AddToListInput
    Output = UpdatedList
    vectors = (
        Vector({"list": [1, 2], "entry": 3}, [("updated_list", [1, 2, 3])]),
        Vector({"entry": 0}, [("updated_list", [0])]),
        Vector({"list": [1, 4], "entries": [2], "entry": 3, "position": 1}, [("updated_list", [1, 2, 3, 4])]),
        Vector({"list": [1, 2], "entry": "x", "position": -1}, [("updated_list", [1, "x", 2])]),
        Vector({"list": [1]}, [("updated_list", [1])]),
        Vector({"list": [0] * 10_000, "entry": 1}, raises=BlockExecutionError, matching="10001 items"),
        Vector({"position": "end"}, raises=BlockInputError, matching="position: "),
    )

    async def run(self, data: AddToListInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        added = [*data.entries, *([] if data.entry is None else [data.entry])]
        check_count(len(data.list) + len(added), "updated_list")
        position = len(data.list) if data.position is None else data.position
        yield "updated_list", [*data.list[:position], *added, *data.list[position:]]


class FindInListInput(BlockSchema):
    list: Items
    value: Any


class FindInListOutput(BlockSchema):
    index: int
    found: bool
    not_found_value: Any


class FindInListBlock(Block[FindInListInput]):
    id = "5e2c6d0a-1e37-489f-b1d0-8e1812b23333"
    description = "Finds the first place of a value in a list."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = FindInListInput
    Output = FindInListOutput
    vectors = (
        Vector({"list": ["a", "b", "b"], "value": "b"}, [("index", 1), ("found", True)]),
        Vector({"list": [{"a": 1}], "value": {"a": 1}}, [("index", 0), ("found", True)]),
        Vector({"list": [1, 2], "value": 3}, [("found", False), ("not_found_value", 3)]),
        Vector({"list": [], "value": None}, [("found", False), ("not_found_value", None)]),
    )

    async def run(self, data: FindInListInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        try:
            index = data.list.index(data.value)
        except ValueError:
            yield "found", False
            yield "not_found_value", data.value
        else:
            yield "index", index
            yield "found", True


class GetListItemInput(BlockSchema):
    list: Items
    index: int


class GetListItemOutput(BlockSchema):
    item: Any


class GetListItemBlock(Block[GetListItemInput]):
    id = "262ca24c-1025-43cf-a578-534e23234e97"
    description = "Takes one item from its place in a list."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = GetListItemInput
    Output = GetListItemOutput
    vectors = (
        Vector({"list": ["a", "b"], "index": 1}, [("item", "b")]),
        Vector({"list": ["a", "b"], "index": "-1"}, [("item", "b")]),
        Vector({"list": ["a"], "index": 1}, raises=BlockExecutionError, matching="index: 1 is outside"),
        Vector({"list": [], "index": 0}, raises=BlockExecutionError, matching="it has 0 items"),
    )

    async def run(self, data: GetListItemInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "item", data.list[_place(data.list, data.index)]


class RemoveFromListInput(BlockSchema):
    list: Items
    value: Any = None
    index: int | None = None
    return_item: bool = False


class RemoveFromListOutput(BlockSchema):
    updated_list: Items
    removed_item: Any


class RemoveFromListBlock(Block[RemoveFromListInput]):
    id = "d93c5a93-ac7e-41c1-ae5c-ef67e6e9b826"
    description = "Takes one item out of a list: the one at a place, or the first that equals a value."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = RemoveFromListInput
    Output = RemoveFromListOutput
    vectors = (
        Vector({"list": [1, 2, 1], "value": 1}, [("updated_list", [2, 1])]),
        Vector({"list": [1, 2], "index": -1, "return_item": True}, [("updated_list", [1]), ("removed_item", 2)]),
        Vector({"list": [1, 2], "value": 1, "index": 1}, [("updated_list", [1])]),
        Vector({"list": [1], "value": 2}, raises=BlockExecutionError, matching="not in the list"),
        Vector({"list": [1], "index": 3}, raises=BlockExecutionError, matching="index: 3 is outside"),
        Vector({"list": [1]}, raises=BlockExecutionError, matching="value or index"),
    )

    async def run(self, data: RemoveFromListInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        updated = data.list.copy()
        if data.index is not None:
            index = _place(updated, data.index)
        elif data.value is None:
            raise BlockExecutionError("value or index must be given")
        elif data.value in updated:
            index = updated.index(data.value)
        else:
            raise BlockExecutionError("value: not in the list")
        removed = updated.pop(index)
        yield "updated_list", updated
        if data.return_item:
            yield "removed_item", removed


class ReplaceListItemInput(BlockSchema):
    list: Items
    index: int
    value: Any


class ReplaceListItemOutput(BlockSchema):
    updated_list: Items
    old_item: Any


class ReplaceListItemBlock(Block[ReplaceListItemInput]):
    id = "fbf62922-bea1-4a3d-8bac-23587f810b38"
    description = "Puts a new value in the place of an item of a list."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = ReplaceListItemInput
    Output = ReplaceListItemOutput
    vectors = (
        Vector({"list": [1, 2], "index": 0, "value": 9}, [("updated_list", [9, 2]), ("old_item", 1)]),
        Vector({"list": [1, 2], "index": -1, "value": None}, [("updated_list", [1, None]), ("old_item", 2)]),
        Vector({"list": [], "index": 0, "value": 9}, raises=BlockExecutionError, matching="index: 0 is outside"),
    )

    async def run(self, data: ReplaceListItemInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        index = _place(data.list, data.index)
        updated = data.list.copy()
        updated[index] = data.value
        yield "updated_list", updated
        yield "old_item", data.list[index]


class ListIsEmptyInput(BlockSchema):
    list: list[Any]


class IsEmptyOutput(BlockSchema):
    is_empty: bool


class ListIsEmptyBlock(Block[ListIsEmptyInput]):
    id = "896ed73b-27d0-41be-813c-c1c1dc856c03"
    description = "Says whether a list has no items."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = ListIsEmptyInput
    Output = IsEmptyOutput
    vectors = (
        Vector({"list": []}, [("is_empty", True)]),
        Vector({"list": [None]}, [("is_empty", False)]),
        Vector({}, raises=BlockInputError, matching="list: this field is required"),
    )

    async def run(self, data: ListIsEmptyInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "is_empty", not data.list


class ReverseListOrderInput(BlockSchema):
    input_list: Items


class ReverseListOrderOutput(BlockSchema):
    reversed_list: Items


class ReverseListOrderBlock(Block[ReverseListOrderInput]):
    id = "422cb708-3109-4277-bfe3-bc2ae5812777"
    description = "Turns the order of a list round."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = ReverseListOrderInput
    Output = ReverseListOrderOutput
    vectors = (
        Vector({"input_list": [1, "b", None]}, [("reversed_list", [None, "b", 1])]),
        Vector({"input_list": []}, [("reversed_list", [])]),
        Vector({"input_list": None}, raises=BlockInputError, matching="input_list: "),
    )

    async def run(self, data: ReverseListOrderInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "reversed_list", data.input_list[::-1]


class ConcatenateListsInput(BlockSchema):
    lists: Annotated[list[Items], Field(max_length=MAX_ITEMS)]
    deduplicate: bool = False
    remove_none: bool = False


class ConcatenateListsOutput(BlockSchema):
    concatenated_list: Items
    length: int
    error: str


class ConcatenateListsBlock(Block[ConcatenateListsInput]):
    """Items are the same if their JSON is."""

    id = "3cf9298b-5817-4141-9d80-7c2cc5199c8e"
    description = "Puts several lists one behind the other, if wanted without repeated or empty items."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = ConcatenateListsInput
    Output = ConcatenateListsOutput
    vectors = (
        Vector({"lists": [[1, 2], [], [3]]}, [("concatenated_list", [1, 2, 3]), ("length", 3)]),
        Vector(
            {"lists": [[1, "1", None], [{"a": 1}, 1, {"a": 1}]], "deduplicate": True, "remove_none": True},
            [("concatenated_list", [1, "1", {"a": 1}]), ("length", 3)],
        ),
        Vector({"lists_$_0": [1], "lists_$_1": [2]}, [("concatenated_list", [1, 2]), ("length", 2)]),
        Vector({"lists": []}, [("concatenated_list", []), ("length", 0)]),
        Vector({"lists": [[0] * 6000] * 2}, raises=BlockExecutionError, matching="12000 items"),
        Vector({"lists": [None]}, raises=BlockInputError, matching="lists: item 0"),
    )

    async def run(self, data: ConcatenateListsInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        check_count(sum(map(len, data.lists)), "concatenated_list")
        items = [item for part in data.lists for item in part if not (data.remove_none and item is None)]
        if data.deduplicate:
            items = list({_json(item): item for item in items}.values())
        yield "concatenated_list", items
        yield "length", len(items)


BLOCKS = (
    CreateListBlock,
    AddToListBlock,
    FindInListBlock,
    GetListItemBlock,
    RemoveFromListBlock,
    ReplaceListItemBlock,
    ListIsEmptyBlock,
    ReverseListOrderBlock,
    ConcatenateListsBlock,
)
