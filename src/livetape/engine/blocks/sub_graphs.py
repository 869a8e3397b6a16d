"""Blocks that run other graphs: AgentExecutorBlock, and one execution for each item of a list."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, BlockType, PinValue, Vector
from livetape.engine.block_ports import ChildCall, ChildResult
from livetape.engine.pins import merge_inputs
from livetape.errors import BlockExecutionError, BlockInputError

MAX_CALLS = 1_000
MAX_AT_ONCE = 100

COMPLETED = "COMPLETED"

Masks = dict[str, dict[str, Any]]


class AgentExecutorInput(BlockSchema):
    user_id: str
    graph_id: Annotated[str, Field(min_length=1)]
    graph_version: int
    agent_name: str | None = None
    inputs: dict[str, Any] = Field(default_factory=dict)
    input_schema: dict[str, Any] = Field(default_factory=dict)
    output_schema: dict[str, Any] = Field(default_factory=dict)
    nodes_input_masks: Masks | None = None


class AgentExecutorOutput(BlockSchema):
    """The outputs are those of the other graph."""


class AgentExecutorBlock(Block[AgentExecutorInput]):
    """Values on pins that are no field of this block are inputs of the other graph; its outputs are the pins here.

    It always runs for the user whose execution this is, whatever stands in `user_id`. Its outputs come when it has
    completed; if it ends otherwise, this node fails.
    """

    id = "e189baac-8c20-45a1-94a7-55177ea42565"
    description = "Runs another graph and gives its outputs."
    categories = (BlockCategory.AGENT,)
    block_type = BlockType.AGENT
    Input = AgentExecutorInput
    Output = AgentExecutorOutput
    vectors = (
        Vector(
            {"user_id": "u", "graph_id": "double", "graph_version": 1, "inputs": {"x": 2}},
            [("result", 4)],
        ),
        Vector({"user_id": "u", "graph_id": "double", "graph_version": 1, "inputs": {"x": 5}}, [("result", 10)]),
        Vector(
            {"user_id": "u", "graph_id": "fails", "graph_version": 1},
            raises=BlockExecutionError,
            matching="the execution child-fails of the other graph ended FAILED: no luck",
        ),
        Vector({"user_id": "u", "graph_id": "", "graph_version": 1}, raises=BlockInputError, matching="graph_id: "),
        Vector({"user_id": "u", "graph_id": "x"}, raises=BlockInputError, matching="graph_version: "),
    )

    def prepare(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        own = self.Input.model_fields
        merged = merge_inputs({pin: value for pin, value in values.items() if not pin.startswith("_")})
        rest = {pin: value for pin, value in merged.items() if pin not in own}
        given = merged.get("inputs")
        inputs = {**(given if isinstance(given, dict) else {}), **rest}
        return {**{pin: value for pin, value in merged.items() if pin in own}, "inputs": inputs}

    def node_input_pins(self, defaults: Mapping[str, Any]) -> frozenset[str]:
        return self.input_pins() | _properties(defaults.get("input_schema"))

    def node_output_pins(self, defaults: Mapping[str, Any]) -> frozenset[str]:
        return self.output_pins() | _properties(defaults.get("output_schema"))

    async def run(self, data: AgentExecutorInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        call = ChildCall(data.graph_id, data.inputs, data.graph_version, data.nodes_input_masks or {})
        result = await ctx.children.run(call)
        _check(result)
        for name, values in result.outputs.items():
            for value in values:
                yield name, value


def _properties(schema: Any) -> frozenset[str]:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return frozenset(map(str, properties)) if isinstance(properties, dict) else frozenset()


def _check(result: ChildResult) -> None:
    if result.status != COMPLETED:
        because = f": {result.error}" if result.error else ""
        raise BlockExecutionError(
            f"the execution {result.graph_exec_id} of the other graph ended {result.status}{because}"
        )


class MapGraphInput(BlockSchema):
    items: Annotated[list[Any], Field(max_length=MAX_CALLS)]
    graph_id: Annotated[str, Field(min_length=1)]
    graph_version: int | None = None
    input_name: Annotated[str, Field(min_length=1)]
    inputs: dict[str, Any] = Field(default_factory=dict)
    concurrency: Annotated[int, Field(ge=1, le=MAX_AT_ONCE)] = 4
    on_error: Literal["fail", "continue"] = "fail"


class MapGraphOutput(BlockSchema):
    item: dict[str, Any]
    failed: dict[str, Any]
    results: list[dict[str, Any] | None]


class MapGraphBlock(Block[MapGraphInput]):
    """`item` comes as soon as an execution completes: `{index, item, graph_exec_id, outputs}`, where an output with
    one value is that value, one with several a list. `failed` has `error` in place of `outputs`. `results` comes last:
    the outputs in the order of the items, None where one failed. With `on_error` = `fail` the first failure ends it,
    and the executions that still run are stopped with it.
    """

    id = "fc0285e9-cb1e-4b5c-8507-300f2a6e56a1"
    description = "Runs another graph once for each item of a list, a limited number of them at once."
    categories = (BlockCategory.AGENT, BlockCategory.LOGIC)
    Input = MapGraphInput
    Output = MapGraphOutput
    vectors = (
        Vector(
            {"items": [1, 2], "graph_id": "double", "input_name": "x", "concurrency": 1},
            [
                ("item", {"index": 0, "item": 1, "graph_exec_id": "child-double", "outputs": {"result": 2}}),
                ("item", {"index": 1, "item": 2, "graph_exec_id": "child-double", "outputs": {"result": 4}}),
                ("results", [{"result": 2}, {"result": 4}]),
            ],
        ),
        Vector(
            {"items": [1], "graph_id": "fails", "input_name": "x", "on_error": "continue"},
            [
                (
                    "failed",
                    {
                        "index": 0,
                        "item": 1,
                        "graph_exec_id": "child-fails",
                        "error": "the execution child-fails of the other graph ended FAILED: no luck",
                    },
                ),
                ("results", [None]),
            ],
        ),
        Vector({"items": [], "graph_id": "double", "input_name": "x"}, [("results", [])]),
        Vector({"items": [1], "graph_id": "fails", "input_name": "x"}, raises=BlockExecutionError, matching="item 0: "),
        Vector({"items": [0] * 1001, "graph_id": "g", "input_name": "x"}, raises=BlockInputError, matching="items: "),
        Vector(
            {"items": [1], "graph_id": "g", "input_name": "x", "concurrency": 0},
            raises=BlockInputError,
            matching="concurrency: ",
        ),
    )

    async def run(self, data: MapGraphInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        calls = [
            ChildCall(data.graph_id, {**data.inputs, data.input_name: item}, data.graph_version) for item in data.items
        ]
        results: list[dict[str, Any] | None] = [None] * len(calls)
        async for place, result in ctx.children.run_many(calls, concurrency=data.concurrency):
            told = {"index": place, "item": data.items[place], "graph_exec_id": result.graph_exec_id}
            try:
                _check(result)
            except BlockExecutionError as error:
                if data.on_error == "fail":
                    raise BlockExecutionError(f"item {place}: {error}") from None
                yield "failed", {**told, "error": str(error)}
                continue
            outputs = {name: values[0] if len(values) == 1 else list(values) for name, values in result.outputs.items()}
            results[place] = outputs
            yield "item", {**told, "outputs": outputs}
        yield "results", results


BLOCKS = (AgentExecutorBlock, MapGraphBlock)
