"""The blocks through which values enter a graph. A value of None yields nothing: what is downstream never runs."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import date, time
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, BlockType, PinValue, Vector
from livetape.engine.blocks.files import open_below, read_below
from livetape.engine.blocks.limits import MAX_ITEMS, MAX_TEXT
from livetape.errors import BlockExecutionError, BlockInputError


class AgentInput(BlockSchema):
    name: str
    value: Any = None
    title: str | None = None
    description: str | None = None
    advanced: bool = False
    secret: bool = False


class AgentInputResult(BlockSchema):
    result: Any


InputT = TypeVar("InputT", bound=AgentInput)


class InputBlock(Block[InputT]):
    """What all input blocks share: they pass their value on, and later executions reuse it."""

    categories = (BlockCategory.INPUT, BlockCategory.BASIC)
    block_type = BlockType.INPUT
    static_output = True

    async def run(self, data: InputT, ctx: BlockContext) -> AsyncIterator[PinValue]:
        if data.value is not None:
            yield "result", _plain(data.value)


def _plain(value: Any) -> Any:
    """Dates and times in ISO form, objects as dictionaries, since values on links are JSON."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    return value.isoformat() if isinstance(value, date | time) else value


NO_VALUE: Sequence[Vector] = (
    Vector({"name": "x"}, []),
    Vector({"name": "x", "value": None}, []),
    Vector({"value": "1"}, raises=BlockInputError, matching="name: this field is required"),
)


class AgentInputBlock(InputBlock[AgentInput]):
    id = "c0a8e994-ebf1-4a9c-a4d8-89d09c86741b"
    description = "An input of the graph of any kind."
    pure = True
    Input = AgentInput
    Output = AgentInputResult
    vectors = (
        Vector({"name": "greeting", "value": "Hello"}, [("result", "Hello")]),
        Vector({"name": "flag", "value": False}, [("result", False)]),
        *NO_VALUE,
    )


class TextInput(AgentInput):
    value: str | None = None


class TextResult(BlockSchema):
    result: str


class AgentShortTextInputBlock(InputBlock[TextInput]):
    id = "7fcd3bcb-8e1b-4e69-903d-32d3d4a92158"
    description = "An input of the graph: a line of text."
    pure = True
    Input = TextInput
    Output = TextResult
    vectors = (
        Vector({"name": "city", "value": "Oxford"}, [("result", "Oxford")]),
        Vector({"name": "city", "value": 7}, [("result", "7")]),
        *NO_VALUE,
    )


class AgentLongTextInputBlock(InputBlock[TextInput]):
    id = "90a56ffb-7024-4b2b-ab50-e26c5e5ab8ba"
    description = "An input of the graph: text of several lines."
    pure = True
    Input = TextInput
    Output = TextResult
    vectors = (Vector({"name": "story", "value": "Once\nupon"}, [("result", "Once\nupon")]), *NO_VALUE)


class NumberInput(AgentInput):
    value: int | None = None


class NumberResult(BlockSchema):
    result: int


class AgentNumberInputBlock(InputBlock[NumberInput]):
    id = "96dae2bb-97a2-41c2-bd2f-13a3b5a8ea98"
    description = "An input of the graph: a whole number."
    pure = True
    Input = NumberInput
    Output = NumberResult
    vectors = (
        Vector({"name": "n", "value": "12"}, [("result", 12)]),
        Vector({"name": "n", "value": 0}, [("result", 0)]),
        Vector({"name": "n", "value": "a few"}, raises=BlockInputError, matching="value: "),
        Vector({"name": "n", "value": 1.5}, raises=BlockInputError, matching="value: "),
        *NO_VALUE,
    )


class DateInput(AgentInput):
    value: date | None = None


class DateResult(BlockSchema):
    result: date


class AgentDateInputBlock(InputBlock[DateInput]):
    id = "7e198b09-4994-47db-8b4d-952d98241817"
    description = "An input of the graph: a date (YYYY-MM-DD)."
    pure = True
    Input = DateInput
    Output = DateResult
    vectors = (
        Vector({"name": "day", "value": "1865-11-26"}, [("result", "1865-11-26")]),
        Vector({"name": "day", "value": "1865-02-30"}, raises=BlockInputError, matching="value: "),
        *NO_VALUE,
    )


class TimeInput(AgentInput):
    value: time | None = None


class TimeResult(BlockSchema):
    result: time


class AgentTimeInputBlock(InputBlock[TimeInput]):
    id = "2a1c757e-86cf-4c7e-aacf-060dc382e434"
    description = "An input of the graph: a time of day (HH:MM or HH:MM:SS)."
    pure = True
    Input = TimeInput
    Output = TimeResult
    vectors = (
        Vector({"name": "tea", "value": "18:00"}, [("result", "18:00:00")]),
        Vector({"name": "tea", "value": "25:00"}, raises=BlockInputError, matching="value: "),
        *NO_VALUE,
    )


class FileInput(AgentInput):
    value: str | None = None
    base_64: bool = False


class AgentFileInputBlock(InputBlock[FileInput]):
    """A name below the data folder's `files/`. With `base_64` its content as a data URI instead."""

    id = "95ead23f-8283-4654-aef3-10c053b74a31"
    description = "An input of the graph: a file that was uploaded, by its name."
    read_only = True
    Input = FileInput
    Output = TextResult
    vectors = (
        Vector({"name": "book", "value": "a.txt"}, [("result", "a.txt")], files={"a.txt": b"hi"}),
        Vector(
            {"name": "book", "value": "a.txt", "base_64": True},
            [("result", "data:text/plain;base64,aGk=")],
            files={"a.txt": b"hi"},
        ),
        Vector({"name": "book", "value": "b.txt"}, raises=BlockExecutionError, matching="b.txt: no such file"),
        Vector({"name": "book", "value": "../a.txt"}, raises=BlockExecutionError, matching="files folder"),
        *NO_VALUE,
    )

    def run(self, data: FileInput, ctx: BlockContext) -> Iterator[PinValue]:  # type: ignore[override]  # in a thread
        if data.value is None:
            return
        if not data.base_64:
            open_below(ctx.files, data.value).close()
            yield "result", data.value
            return
        content = base64.b64encode(read_below(ctx.files, data.value, MAX_TEXT)).decode()
        kind = mimetypes.guess_type(data.value)[0] or "application/octet-stream"
        yield "result", f"data:{kind};base64,{content}"


class DropdownInput(AgentInput):
    value: str | None = None
    options: Annotated[list[Any], Field(max_length=MAX_ITEMS)] = Field(default_factory=list)


class AgentDropdownInputBlock(InputBlock[DropdownInput]):
    """Without options everything is allowed."""

    id = "655d6fdf-a334-421c-b733-520549c07cd1"
    description = "An input of the graph: one of several given options."
    pure = True
    Input = DropdownInput
    Output = TextResult
    vectors = (
        Vector({"name": "size", "value": "big", "options": ["big", "small"]}, [("result", "big")]),
        Vector({"name": "size", "value": "2", "options": [1, 2]}, [("result", "2")]),
        Vector({"name": "size", "value": "any"}, [("result", "any")]),
        Vector(
            {"name": "size", "value": "huge", "options": ["big", "small"]},
            raises=BlockExecutionError,
            matching="not one of the options",
        ),
        *NO_VALUE,
    )

    async def run(self, data: DropdownInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        if data.value is None:
            return
        if data.options and data.value not in {str(option) for option in data.options}:
            raise BlockExecutionError(f"{data.name}: the value is not one of the options")
        yield "result", data.value


class ToggleInput(AgentInput):
    value: bool = False


class ToggleResult(BlockSchema):
    result: bool


class AgentToggleInputBlock(InputBlock[ToggleInput]):
    id = "cbf36ab5-df4a-43b6-8a7f-f7ed8652116e"
    description = "An input of the graph: yes or no."
    pure = True
    Input = ToggleInput
    Output = ToggleResult
    vectors = (
        Vector({"name": "loud", "value": "yes"}, [("result", True)]),
        Vector({"name": "loud"}, [("result", False)]),
        Vector({"name": "loud", "value": "perhaps"}, raises=BlockInputError, matching="value: "),
    )


def _three_columns() -> list[str]:
    return ["Column 1", "Column 2", "Column 3"]


class TableInput(AgentInput):
    value: Annotated[list[dict[str, Any]], Field(max_length=MAX_ITEMS)] | None = None
    column_headers: Annotated[list[str], Field(max_length=MAX_ITEMS)] = Field(default_factory=_three_columns)


class TableResult(BlockSchema):
    result: list[dict[str, Any]]


class AgentTableInputBlock(InputBlock[TableInput]):
    id = "5603b273-f41e-4020-af7d-fbc9c6a8d928"
    description = "An input of the graph: a table, row by row."
    pure = True
    Input = TableInput
    Output = TableResult
    vectors = (
        Vector(
            {"name": "t", "value": [{"Column 1": "a"}, {"Column 1": "b"}]},
            [("result", [{"Column 1": "a"}, {"Column 1": "b"}])],
        ),
        Vector({"name": "t", "value": '[{"x": 1}]', "column_headers": ["x"]}, [("result", [{"x": 1}])]),
        Vector({"name": "t", "value": []}, [("result", [])]),
        Vector({"name": "t", "value": [1]}, raises=BlockInputError, matching="value: item 0"),
        *NO_VALUE,
    )


BLOCKS: Sequence[type[Block[Any]]] = (
    AgentInputBlock,
    AgentShortTextInputBlock,
    AgentLongTextInputBlock,
    AgentNumberInputBlock,
    AgentDateInputBlock,
    AgentTimeInputBlock,
    AgentFileInputBlock,
    AgentDropdownInputBlock,
    AgentToggleInputBlock,
    AgentTableInputBlock,
)
