"""Pure Python models of the few blocks that the random graphs use (ids and pins of the upstream platform)."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from reference.interpreter import BlockModel, ModelError, Pins

STORE = "1ff065e9-88e8-4358-9d82-8dc91f622ba9"
CALCULATOR = "b1ab9b19-67a6-406d-abf5-2dba76d00c79"
CONDITION = "715696a0-e1da-45c8-b209-c2fa9c3b0be6"
STEP = "f66a3543-28d3-4ab5-8945-9b336371e2ce"
COUNT = "3c9c2f42-b0c3-435f-ba35-05f7a25c772a"
INPUT = "c0a8e994-ebf1-4a9c-a4d8-89d09c86741b"
OUTPUT = "363ae599-353e-4804-937e-b2ee3cef3da4"
CREATE_DICTIONARY = "b924ddf4-de4f-4b56-9a85-358930dcbc91"
FIND_IN_DICTIONARY = "0e50422c-6dee-4145-83d6-3a5a392f65de"
# Not shipped: tests/chaos/plugin gives it to the server.
FAIL = "7b0d3a52-5d6c-4e4e-9d0e-4f2f7f6a0f11"

Out = Iterator[tuple[str, Any]]

ARITHMETIC = {"Add": operator.add, "Subtract": operator.sub, "Multiply": operator.mul}
COMPARISON = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}


def store(pins: Pins) -> Out:
    """StoreValue: `data or input`."""
    yield "output", pins.get("data") or pins["input"]


def calculate(pins: Pins) -> Out:
    yield "result", ARITHMETIC[pins["operation"]](float(pins["a"]), float(pins["b"]))


def condition(pins: Pins) -> Out:
    """yes/no value default to value1/value2."""
    value1, value2 = pins["value1"], pins["value2"]
    holds = COMPARISON[pins["operator"]](value1, value2)
    yield "result", holds
    if holds:
        yield "yes_output", value1 if pins.get("yes_value") is None else pins["yes_value"]
    else:
        yield "no_output", value2 if pins.get("no_value") is None else pins["no_value"]


def step(pins: Pins) -> Out:
    """Yields item, then key (the index for a list)."""
    for key, item in enumerate(pins["items"]):
        yield "item", item
        yield "key", key


def count(pins: Pins) -> Out:
    yield "count", len(pins["collection"])


def agent_input(pins: Pins) -> Out:
    """A None value yields nothing."""
    if pins.get("value") is not None:
        yield "result", pins["value"]


def agent_output(pins: Pins) -> Out:
    """Without `format` it yields `output` and `name`."""
    yield "output", pins["value"]
    yield "name", pins["name"]


def create_dictionary(pins: Pins) -> Out:
    yield "dictionary", dict(pins["values"])


def find_in_dictionary(pins: Pins) -> Out:
    """`missing` is the whole input."""
    if pins["key"] in pins["input"]:
        yield "output", pins["input"][pins["key"]]
    else:
        yield "missing", pins["input"]


def fail(pins: Pins) -> Out:
    """Fails when the value is below the limit, else hands the value on."""
    if pins["value"] < pins["limit"]:
        raise ModelError(f"{pins['value']:g} is below {pins['limit']:g}")
    yield "value", pins["value"]


MODELS: dict[str, BlockModel] = {
    STORE: BlockModel(store, static_output=True),
    CALCULATOR: BlockModel(calculate),
    CONDITION: BlockModel(condition),
    STEP: BlockModel(step),
    COUNT: BlockModel(count),
    INPUT: BlockModel(agent_input, static_output=True, is_input=True),
    OUTPUT: BlockModel(agent_output, static_output=True, is_output=True),
    CREATE_DICTIONARY: BlockModel(create_dictionary),
    FIND_IN_DICTIONARY: BlockModel(find_in_dictionary),
    FAIL: BlockModel(fail),
}
