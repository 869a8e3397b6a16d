"""The block SDK: what a block declares and what it is given when it runs.

A block is a class with typed input and output models and one generator method `run` that yields `(pin, value)`.
An `async def run` runs on the event loop of the worker; a plain `def run` runs in a thread, so that blocking code
holds up nobody. Each yielded output is followed at once: nodes downstream start while the block still runs.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

from livetape.clock import Clock
from livetape.errors import ConfigError


class BlockType(StrEnum):
    """What a block is to a graph and to an editor (`uiType` on the wire)."""

    STANDARD = "Standard"
    INPUT = "Input"
    OUTPUT = "Output"
    NOTE = "Note"
    WEBHOOK = "Webhook"
    AGENT = "Agent"
    AI = "AI"
    HUMAN_IN_THE_LOOP = "Human In The Loop"


class BlockCategory(StrEnum):
    """Where an editor shows a block. The value is the description on the wire, the name the category."""

    AI = "Block that leverages AI to perform a task."
    TEXT = "Block that processes text data."
    SEARCH = "Block that searches or extracts information."
    BASIC = "Block that performs basic operations."
    INPUT = "Block that interacts with input of the graph."
    OUTPUT = "Block that interacts with output of the graph."
    LOGIC = "Programming logic"
    COMMUNICATION = "Block that interacts with communication platforms."
    DEVELOPER_TOOLS = "Developer tools such as GitHub blocks."
    DATA = "Block that interacts with structured data."
    AGENT = "Block that interacts with other agents."
    SAFETY = "Block that provides AI safety mechanisms"
    PRODUCTIVITY = "Block that helps with productivity"
    MULTIMEDIA = "Block that interacts with multimedia content"


class BlockSchema(BaseModel):
    """Base of a block's input and output models. Unknown pins are ignored; values are coerced to the field types."""

    # Validators are built when a block first runs: building all of them would be a tenth of the start.
    model_config = ConfigDict(extra="ignore", defer_build=True)


@dataclass(frozen=True, slots=True)
class BlockCost:
    """What one run of a block costs, in cents, when the input matches `cost_filter`."""

    cost_amount: int
    cost_filter: Mapping[str, Any] = field(default_factory=dict)
    cost_type: Literal["run", "second", "byte"] = "run"


@dataclass(frozen=True, slots=True)
class BlockContext:
    """What a block may know and use while it runs.

    `idempotency_key` is stable over retries and recoveries of one node execution: pass it to whatever you call.
    `files` is the only folder that a block may read or write. `sleep` waits in the engine's time.
    """

    user_id: str
    graph_id: str
    graph_version: int
    graph_exec_id: str
    node_id: str
    node_exec_id: str
    files: Path
    clock: Clock
    sleep: Callable[[float], Awaitable[None]]

    @property
    def idempotency_key(self) -> str:
        return self.node_exec_id


PinValue: TypeAlias = tuple[str, Any]

VECTOR_TIME = datetime(2025, 1, 2, 22, 4, 5, 678_901, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Vector:
    """One example that a block carries: the input pins and the exact outputs, in order.

    It runs at VECTOR_TIME, and waiting takes no time. `raises` names an error class and `matching` a part of its text,
    for inputs that must be refused. `files` are written to the block's folder first. A value of `ANY` in `outputs`
    matches everything.
    """

    input: Mapping[str, Any]
    outputs: Sequence[PinValue] = ()
    raises: type[Exception] | None = None
    matching: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


class _Any:
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "ANY"


ANY: Any = _Any()


def inlined_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a model with its definitions put where they are used (a wire fact of the seed).

    A model that contains itself keeps its definitions: there is no end to putting those in.
    """
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    try:
        inlined: dict[str, Any] = _inlined(schema, definitions, ())
    except RecursionError:
        return {**schema, "$defs": definitions}
    return inlined


def _inlined(part: Any, definitions: Mapping[str, Any], inside: tuple[str, ...]) -> Any:
    if isinstance(part, list):
        return [_inlined(item, definitions, inside) for item in part]
    if not isinstance(part, dict):
        return part
    name = str(part.get("$ref", "")).removeprefix("#/$defs/")
    if name in inside:
        raise RecursionError
    if name in definitions:
        beside = {key: value for key, value in part.items() if key != "$ref"}
        return {**_inlined(definitions[name], definitions, (*inside, name)), **_inlined(beside, definitions, inside)}
    # A discriminator's mapping points at definitions; a property of that name is a schema and has none.
    return {
        key: _inlined(value, definitions, inside)
        for key, value in part.items()
        if not (key == "discriminator" and isinstance(value, dict) and "mapping" in value)
    }


In = TypeVar("In", bound=BlockSchema)


class Block(ABC, Generic[In]):
    """A reusable step of a graph. One instance serves all its runs: keep nothing on `self`.

    Raise `BlockExecutionError` (or any ValueError) for a failure that the graph's author should see; the message
    becomes the value of the `error` pin. Other exceptions are unexpected failures and are treated alike, but logged.
    """

    id: ClassVar[str]
    description: ClassVar[str] = ""
    categories: ClassVar[Sequence[BlockCategory]] = ()
    block_type: ClassVar[BlockType] = BlockType.STANDARD
    # The last value of a static output is kept and reused by later executions of the node downstream.
    static_output: ClassVar[bool] = False
    disabled: ClassVar[bool] = False
    # What happens to a node execution that a lost worker left half done.
    on_interrupt: ClassVar[Literal["rerun", "fail"]] = "rerun"
    # Seconds after which one run is ended as failed; None: only the execution's own limit holds.
    timeout: ClassVar[float | None] = None
    costs: ClassVar[Sequence[BlockCost]] = ()
    vectors: ClassVar[Sequence[Vector]] = ()

    Input: ClassVar[type[BlockSchema]]
    Output: ClassVar[type[BlockSchema]]

    @abstractmethod
    def run(self, data: In, ctx: BlockContext) -> AsyncIterator[PinValue] | Iterator[PinValue]:
        """Yield outputs. Declared `async def` (on the loop) or `def` (in a thread), in both cases a generator."""

    @property
    def name(self) -> str:
        """The class name, which is the block's name on the wire."""
        return type(self).__name__

    @property
    def is_async(self) -> bool:
        return inspect.isasyncgenfunction(self.run)

    def input_pins(self) -> frozenset[str]:
        return frozenset(self.Input.model_fields)

    def output_pins(self) -> frozenset[str]:
        """Every block also has `error`."""
        return frozenset(self.Output.model_fields) | {"error"}

    def required_pins(self) -> frozenset[str]:
        return frozenset(name for name, info in self.Input.model_fields.items() if info.is_required())

    def describe(self) -> dict[str, Any]:
        """The block as the API lists it (keys of the seed)."""
        return {
            "id": self.id,
            "name": self.name,
            "inputSchema": inlined_schema(self.Input),
            "outputSchema": inlined_schema(self.Output),
            "description": self.description,
            "categories": [{"category": c.name, "description": c.value} for c in self.categories],
            "contributors": [],
            "staticOutput": self.static_output,
            "uiType": self.block_type.value,
            "costs": [
                {"cost_amount": c.cost_amount, "cost_filter": dict(c.cost_filter), "cost_type": c.cost_type}
                for c in self.costs
            ],
        }


class BlockRegistry:
    """The blocks that this process can run, by id. Built once and passed on."""

    def __init__(self, blocks: Iterable[Block[Any]]) -> None:
        self._blocks: dict[str, Block[Any]] = {}
        for block in blocks:
            other = self._blocks.setdefault(block.id, block)
            if other is not block:
                raise ConfigError(f"two blocks have the id {block.id}: {other.name} and {block.name}")

    def get(self, block_id: str) -> Block[Any] | None:
        return self._blocks.get(block_id)

    def __iter__(self) -> Iterator[Block[Any]]:
        return iter(self._blocks.values())

    def __len__(self) -> int:
        return len(self._blocks)
