"""Blocks that choose one of two ways."""

from __future__ import annotations

import math
import operator
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from typing import Any

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.coerce import convert
from livetape.errors import BlockExecutionError, BlockInputError


class ComparisonOperator(StrEnum):
    EQUAL = "=="
    NOT_EQUAL = "!="
    GREATER = ">"
    LESS = "<"
    GREATER_OR_EQUAL = ">="
    LESS_OR_EQUAL = "<="


_COMPARISONS: dict[ComparisonOperator, Callable[[Any, Any], Any]] = {
    ComparisonOperator.EQUAL: operator.eq,
    ComparisonOperator.NOT_EQUAL: operator.ne,
    ComparisonOperator.GREATER: operator.gt,
    ComparisonOperator.LESS: operator.lt,
    ComparisonOperator.GREATER_OR_EQUAL: operator.ge,
    ComparisonOperator.LESS_OR_EQUAL: operator.le,
}


class BranchOutput(BlockSchema):
    result: bool
    yes_output: Any
    no_output: Any


class ConditionInput(BlockSchema):
    value1: Any
    operator: ComparisonOperator
    value2: Any
    yes_value: Any = None
    no_value: Any = None


class ConditionBlock(Block[ConditionInput]):
    """Text is compared without outer blanks, and as a number if it is one."""

    id = "715696a0-e1da-45c8-b209-c2fa9c3b0be6"
    description = (
        "Compares two values and gives its output on one of two pins."
        " Without a yes value the first value is passed on, without a no value the second."
    )
    categories = (BlockCategory.LOGIC,)
    pure = True
    Input = ConditionInput
    Output = BranchOutput
    vectors = (
        Vector(
            {"value1": 10, "operator": ">", "value2": 5, "yes_value": "more", "no_value": "less"},
            [("result", True), ("yes_output", "more")],
        ),
        Vector(
            {"value1": "1", "operator": "==", "value2": 2, "no_value": "differs"},
            [("result", False), ("no_output", "differs")],
        ),
        Vector({"value1": " 10 ", "operator": ">", "value2": "9"}, [("result", True), ("yes_output", 10.0)]),
        Vector({"value1": "b ", "operator": "<=", "value2": " a"}, [("result", False), ("no_output", "a")]),
        Vector({"value1": [1], "operator": "==", "value2": [1]}, [("result", True), ("yes_output", [1])]),
        Vector({"value1": "nan", "operator": "==", "value2": "nan"}, [("result", True), ("yes_output", "nan")]),
        Vector({"value1": "ten", "operator": ">", "value2": 9}, raises=BlockExecutionError, matching="cannot compare"),
        Vector({"value1": 1, "operator": "=~", "value2": 2}, raises=BlockInputError, matching="operator"),
    )

    async def run(self, data: ConditionInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        first, second = _comparable(data.value1), _comparable(data.value2)
        try:
            result = bool(_COMPARISONS[data.operator](first, second))
        except TypeError:
            raise BlockExecutionError(
                f"cannot compare a {type(first).__name__} with a {type(second).__name__} by {data.operator.value}"
            ) from None
        yield "result", result
        if result:
            yield "yes_output", first if data.yes_value is None else data.yes_value
        else:
            yield "no_output", second if data.no_value is None else data.no_value


def _comparable(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        number = float(text)
    except ValueError:
        return text
    # "nan" and "infinity" are words, and "1_000" is a name.
    return number if math.isfinite(number) and "_" not in text else text


class IfInputMatchesInput(BlockSchema):
    input: Any
    value: Any
    yes_value: Any = None
    no_value: Any = None


class IfInputMatchesBlock(Block[IfInputMatchesInput]):
    """`value` is first seen as the type of `input`, so that `5` matches `"5"`."""

    id = "6dbbc4b3-ca6c-42b6-b508-da52d23e13f2"
    description = (
        "Says whether the input equals a value and gives its output on one of two pins."
        " The input itself is passed on where no yes or no value is set."
    )
    categories = (BlockCategory.LOGIC,)
    pure = True
    Input = IfInputMatchesInput
    Output = BranchOutput
    vectors = (
        Vector(
            {"input": 10, "value": 10, "yes_value": "same", "no_value": "other"},
            [("result", True), ("yes_output", "same")],
        ),
        Vector({"input": 10, "value": "10"}, [("result", True), ("yes_output", 10)]),
        Vector({"input": "true", "value": True}, [("result", True), ("yes_output", "true")]),
        Vector({"input": {"a": 1}, "value": '{"a": 1}'}, [("result", True), ("yes_output", {"a": 1})]),
        Vector({"input": "a", "value": "b", "no_value": "no"}, [("result", False), ("no_output", "no")]),
        Vector({"input": None, "value": 0}, [("result", False), ("no_output", None)]),
        Vector({"input": 1}, raises=BlockInputError, matching="value: this field is required"),
    )

    async def run(self, data: IfInputMatchesInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        value = data.value
        if type(value) is not type(data.input) and data.input is not None:
            value = convert(value, type(data.input))
        if data.input == value:
            yield "result", True
            yield "yes_output", data.input if data.yes_value is None else data.yes_value
        else:
            yield "result", False
            yield "no_output", data.input if data.no_value is None else data.no_value


BLOCKS = (ConditionBlock, IfInputMatchesBlock)
