"""CalculatorBlock."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from enum import StrEnum

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.errors import BlockInputError


class Operation(StrEnum):
    ADD = "Add"
    SUBTRACT = "Subtract"
    MULTIPLY = "Multiply"
    DIVIDE = "Divide"
    POWER = "Power"


class CalculatorInput(BlockSchema):
    operation: Operation
    a: float
    b: float
    round_result: bool = False


class CalculatorOutput(BlockSchema):
    result: float


class CalculatorBlock(Block[CalculatorInput]):
    """Dividing by zero gives infinity, whatever else has no real result gives not-a-number.

    JSON has neither: in events and stored values they stand as null.
    """

    id = "b1ab9b19-67a6-406d-abf5-2dba76d00c79"
    description = "Adds, subtracts, multiplies or divides two numbers, or raises one to the power of the other."
    categories = (BlockCategory.LOGIC,)
    pure = True
    Input = CalculatorInput
    Output = CalculatorOutput
    vectors = (
        Vector({"operation": "Add", "a": 4, "b": 5}, [("result", 9.0)]),
        Vector({"operation": "Multiply", "a": "2.5", "b": "4"}, [("result", 10.0)]),
        Vector({"operation": "Divide", "a": 10, "b": 4, "round_result": True}, [("result", 2.0)]),
        Vector({"operation": "Divide", "a": -1, "b": 0}, [("result", math.inf)]),
        Vector({"operation": "Divide", "a": 1, "b": 0, "round_result": True}, [("result", math.inf)]),
        Vector({"operation": "Power", "a": -8, "b": 0.5}, [("result", math.nan)]),
        Vector({"operation": "Power", "a": 10, "b": 1e9}, [("result", math.nan)]),
        Vector({"operation": "Root", "a": 1, "b": 2}, raises=BlockInputError, matching="operation"),
        Vector({"operation": "Add", "a": "many", "b": 2}, raises=BlockInputError, matching="a: "),
    )

    async def run(self, data: CalculatorInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        result = _calculate(data.operation, data.a, data.b)
        if data.round_result and math.isfinite(result):
            result = float(round(result))
        yield "result", result


def _calculate(operation: Operation, a: float, b: float) -> float:
    try:
        match operation:
            case Operation.ADD:
                return a + b
            case Operation.SUBTRACT:
                return a - b
            case Operation.MULTIPLY:
                return a * b
            case Operation.DIVIDE:
                return a / b
            case Operation.POWER:
                # Floats only, so this is quick whatever the exponent; a root of a negative number is complex.
                result = a**b
                return result if isinstance(result, float) else math.nan
    except ZeroDivisionError:
        return math.inf
    except ArithmeticError:
        return math.nan


BLOCKS = (CalculatorBlock,)
