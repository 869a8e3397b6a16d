"""Blocks for dictionaries. None changes the one it is given."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.blocks.limits import AnyEntries, Entries, check_count
from livetape.engine.coerce import parse_json
from livetape.engine.pins import field_of
from livetape.errors import BlockExecutionError, BlockInputError

_ABSENT: Any = object()


def _key_in(dictionary: Mapping[Any, Any], key: str | int) -> Any:
    """The key as the dictionary has it, or _ABSENT: keys are text in JSON, so 1 also means "1" and the reverse."""
    if key in dictionary:
        return key
    if isinstance(key, int):
        return str(key) if str(key) in dictionary else _ABSENT
    number = _index(key)
    return number if number is not None and number in dictionary else _ABSENT


def _required_key(dictionary: Mapping[Any, Any], key: str | int) -> Any:
    found = _key_in(dictionary, key)
    if found is _ABSENT:
        raise BlockExecutionError(f"key: {str(key)[:100]!r} is not in the dictionary")
    return found


def _index(key: str | int) -> int | None:
    if isinstance(key, int):
        return key
    return int(key) if key.removeprefix("-").isdecimal() and len(key) < 20 else None


class CreateDictionaryInput(BlockSchema):
    values: Entries


class CreateDictionaryOutput(BlockSchema):
    dictionary: dict[str, Any]
    error: str


class CreateDictionaryBlock(Block[CreateDictionaryInput]):
    id = "b924ddf4-de4f-4b56-9a85-358930dcbc91"
    description = "Makes a dictionary of the values that are given or linked to its keys."
    categories = (BlockCategory.DATA,)
    pure = True
    Input = CreateDictionaryInput
    Output = CreateDictionaryOutput
    vectors = (
        Vector({"values": {"a": 1}}, [("dictionary", {"a": 1})]),
        Vector({"values_#_a": 1, "values_#_b_#_c": [2]}, [("dictionary", {"a": 1, "b": {"c": [2]}})]),
        Vector({"values": {}}, [("dictionary", {})]),
        Vector({"values": [1]}, raises=BlockInputError, matching="values: "),
    )

    async def run(self, data: CreateDictionaryInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "dictionary", data.values


class AddToDictionaryInput(BlockSchema):
    dictionary: AnyEntries = Field(default_factory=dict)
    key: str = ""
    value: Any = None
    entries: AnyEntries = Field(default_factory=dict)


class UpdatedDictionary(BlockSchema):
    updated_dictionary: dict[Any, Any]


class AddToDictionaryBlock(Block[AddToDictionaryInput]):
    id = "31d1064e-7446-4693-a7d4-65e5ca1180d1"
    description = "Adds one entry, or several, to a dictionary. Without a dictionary it makes a new one."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = AddToDictionaryInput
    Output = UpdatedDictionary
    vectors = (
        Vector({"dictionary": {"a": 1}, "key": "b", "value": 2}, [("updated_dictionary", {"a": 1, "b": 2})]),
        Vector({"key": "a", "value": False}, [("updated_dictionary", {"a": False})]),
        Vector({"dictionary": {"a": 1}, "entries": {"a": 2, "c": 3}}, [("updated_dictionary", {"a": 2, "c": 3})]),
        Vector({"dictionary": {"a": 1}, "key": "b"}, [("updated_dictionary", {"a": 1})]),
        Vector({"dictionary": "a"}, raises=BlockInputError, matching="dictionary: "),
        Vector(
            {"dictionary": {str(n): n for n in range(10_000)}, "key": "one more", "value": 1},
            raises=BlockExecutionError,
            matching="10001 items",
        ),
    )

    async def run(self, data: AddToDictionaryInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        updated = dict(data.dictionary)
        if data.key and data.value is not None:
            updated[data.key] = data.value
        updated.update(data.entries)
        check_count(len(updated), "updated_dictionary")
        yield "updated_dictionary", updated


class FindInDictionaryInput(BlockSchema):
    input: Any
    key: str | int


class FindInDictionaryOutput(BlockSchema):
    output: Any
    missing: Any


class FindInDictionaryBlock(Block[FindInDictionaryInput]):
    """`key` is a key of a dictionary, a place in a list, or a field of an object; text is read as JSON first.

    On a list, a key that is not a place gathers the values which the items have under it.
    """

    id = "0e50422c-6dee-4145-83d6-3a5a392f65de"
    description = "Looks something up by its key or place. What is not found goes to the pin for missing values."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = FindInDictionaryInput
    Output = FindInDictionaryOutput
    vectors = (
        Vector({"input": {"a": 1, "b": 2}, "key": "b"}, [("output", 2)]),
        Vector({"input": {"a": None}, "key": "a"}, [("output", None)]),
        Vector({"input": {"1": "one"}, "key": 1}, [("output", "one")]),
        Vector({"input": ["x", "y"], "key": 1}, [("output", "y")]),
        Vector({"input": ["x", "y"], "key": "0"}, [("output", "x")]),
        Vector({"input": [{"n": 1}, {"m": 2}, {"n": 3}], "key": "n"}, [("output", [1, 3])]),
        Vector({"input": '{"a": [5]}', "key": "a"}, [("output", [5])]),
        Vector({"input": {"a": 1}, "key": "z"}, [("missing", {"a": 1})]),
        Vector({"input": ["x"], "key": 7}, [("missing", ["x"])]),
        Vector({"input": "no json", "key": "a"}, [("missing", "no json")]),
        Vector({"input": {"a": 1}}, raises=BlockInputError, matching="key: this field is required"),
    )

    async def run(self, data: FindInDictionaryInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        found = _find(parse_json(data.input) if isinstance(data.input, str) else data.input, data.key)
        if found is _ABSENT:
            yield "missing", data.input
        else:
            yield "output", found


def _find(value: Any, key: str | int) -> Any:
    if isinstance(value, Mapping):
        found = _key_in(value, key)
        return found if found is _ABSENT else value[found]
    if isinstance(value, list):
        index = _index(key)
        if index is not None:
            return value[index] if -len(value) <= index < len(value) else _ABSENT
        check_count(len(value), "input")
        return [got for item in value if (got := _field(item, str(key))) is not _ABSENT] or _ABSENT
    return _field(value, str(key))


def _field(item: Any, key: str) -> Any:
    if isinstance(item, Mapping):
        return item.get(key, _ABSENT)
    found = field_of(item, key)
    return _ABSENT if found is None else found


class RemoveFromDictionaryInput(BlockSchema):
    dictionary: AnyEntries
    key: str | int
    return_value: bool = False


class RemoveFromDictionaryOutput(BlockSchema):
    updated_dictionary: dict[Any, Any]
    removed_value: Any


class RemoveFromDictionaryBlock(Block[RemoveFromDictionaryInput]):
    id = "46afe2ea-c613-43f8-95ff-6692c3ef6876"
    description = "Takes one entry out of a dictionary."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = RemoveFromDictionaryInput
    Output = RemoveFromDictionaryOutput
    vectors = (
        Vector({"dictionary": {"a": 1, "b": 2}, "key": "a"}, [("updated_dictionary", {"b": 2})]),
        Vector(
            {"dictionary": {"a": 1}, "key": "a", "return_value": True},
            [("updated_dictionary", {}), ("removed_value", 1)],
        ),
        Vector({"dictionary": {"1": "x"}, "key": 1}, [("updated_dictionary", {})]),
        Vector({"dictionary": {"a": 1}, "key": "z"}, raises=BlockExecutionError, matching="'z' is not in"),
    )

    async def run(self, data: RemoveFromDictionaryInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        updated = dict(data.dictionary)
        removed = updated.pop(_required_key(updated, data.key))
        yield "updated_dictionary", updated
        if data.return_value:
            yield "removed_value", removed


class ReplaceDictionaryValueInput(BlockSchema):
    dictionary: AnyEntries
    key: str | int
    value: Any


class ReplaceDictionaryValueOutput(BlockSchema):
    updated_dictionary: dict[Any, Any]
    old_value: Any


class ReplaceDictionaryValueBlock(Block[ReplaceDictionaryValueInput]):
    id = "27e31876-18b6-44f3-ab97-f6226d8b3889"
    description = "Puts a new value in the place of the one that a dictionary has under a key."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = ReplaceDictionaryValueInput
    Output = ReplaceDictionaryValueOutput
    vectors = (
        Vector(
            {"dictionary": {"a": 1, "b": 2}, "key": "a", "value": 9},
            [("updated_dictionary", {"a": 9, "b": 2}), ("old_value", 1)],
        ),
        Vector(
            {"dictionary": {"a": 1}, "key": "a", "value": None},
            [("updated_dictionary", {"a": None}), ("old_value", 1)],
        ),
        Vector({"dictionary": {}, "key": "a", "value": 1}, raises=BlockExecutionError, matching="'a' is not in"),
    )

    async def run(self, data: ReplaceDictionaryValueInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        key = _required_key(data.dictionary, data.key)
        yield "updated_dictionary", {**data.dictionary, key: data.value}
        yield "old_value", data.dictionary[key]


class DictionaryIsEmptyInput(BlockSchema):
    dictionary: dict[Any, Any]


class IsEmptyOutput(BlockSchema):
    is_empty: bool


class DictionaryIsEmptyBlock(Block[DictionaryIsEmptyInput]):
    id = "a3cf3f64-6bb9-4cc6-9900-608a0b3359b0"
    description = "Says whether a dictionary has no entries."
    categories = (BlockCategory.BASIC,)
    pure = True
    Input = DictionaryIsEmptyInput
    Output = IsEmptyOutput
    vectors = (
        Vector({"dictionary": {}}, [("is_empty", True)]),
        Vector({"dictionary": {"a": None}}, [("is_empty", False)]),
        Vector({"dictionary": 5}, raises=BlockInputError, matching="dictionary: "),
    )

    async def run(self, data: DictionaryIsEmptyInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "is_empty", not data.dictionary


BLOCKS = (
    CreateDictionaryBlock,
    AddToDictionaryBlock,
    FindInDictionaryBlock,
    RemoveFromDictionaryBlock,
    ReplaceDictionaryValueBlock,
    DictionaryIsEmptyBlock,
)
