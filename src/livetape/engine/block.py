"""The block SDK: what a block declares and what it is given when it runs.

A block is a class with typed input and output models and one generator method `run` that yields `(pin, value)`.
An `async def run` runs on the event loop of the worker; a plain `def run` runs in a thread, or in a process of its
own, so that blocking code holds up nobody. Each yielded output is followed at once: nodes downstream start while the
block still runs.
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
from livetape.engine.block_ports import Children, Memory, Reviews, Timers
from livetape.engine.block_services import ABSENT
from livetape.errors import ConfigError


class BlockType(StrEnum):
    """What a block is to a graph and to an editor (`uiType` on the wire)."""

    STANDARD = "Standard"
    INPUT = "Input"
    OUTPUT = "Output"
    NOTE = "Note"
    WEBHOOK = "Webhook"
    WEBHOOK_MANUAL = "Webhook (manual)"
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
class Retries:
    """How often a failed run is tried again, and after how long.

    Only exceptions of the classes in `on` count. The k-th pause is `base_s * 2**(k-1)` seconds, at most `cap_s`, less
    up to half of it so that many do not come back at once; an exception with a number in `retry_after` asks for at
    least so many seconds, up to `cap_s`. Outputs that a new attempt repeats are not followed twice.
    """

    on: tuple[type[Exception], ...]
    attempts: int = 3
    base_s: float = 0.5
    cap_s: float = 30.0


@dataclass(slots=True)
class Usage:
    """What a run says of itself, for its cost: the block adds to `amounts` (`tokens`, `requests`, ...)."""

    amounts: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, amount: float) -> None:
        """Count so much more of it."""
        self.amounts[name] = self.amounts.get(name, 0) + amount


@dataclass(frozen=True, slots=True)
class BlockContext:
    """What a block may know and use while it runs.

    `idempotency_key` is stable over retries and recoveries of one node execution: pass it to whatever you call.
    `files` is the only folder that a block may read or write. `sleep` waits in the engine's time, and keeps its place
    in the worker; `sleep_until` is for longer waits, which outlive the process. `children` runs other graphs, `review`
    asks people, `memory` keeps values; `transaction(unit)` runs `unit(connection)` in one database transaction with
    the record that it ran, once per node execution and place, and returns its result, JSON, again after a re-run.
    Where the engine has none of them, they refuse with a BlockExecutionError.
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
    timers: Timers | None = None
    children: Children = ABSENT
    review: Reviews = ABSENT
    memory: Memory = ABSENT
    transaction: Callable[[Callable[[Any], Any]], Awaitable[Any]] = ABSENT.transaction
    usage: Usage = field(default_factory=Usage)

    async def sleep_until(self, due: datetime) -> None:
        """Return when it is `due`. The block may be ended meanwhile and run again: see `block_ports`."""
        if self.timers is not None:
            await self.timers.sleep_until(due)
        else:
            await self.sleep(max(0.0, (due - self.clock.now()).total_seconds()))

    @property
    def idempotency_key(self) -> str:
        return self.node_exec_id


PinValue: TypeAlias = tuple[str, Any]

# A pin that no model declares: a node's own limit in seconds, in place of its block's `timeout`.
TIMEOUT_PIN = "_timeout"

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
    # The same input always gives the same outputs and nothing else happens: a result may be used again.
    pure: ClassVar[bool] = False
    # It changes nothing anywhere, though its outputs may differ (a clock, a file): a dry run may run it.
    read_only: ClassVar[bool] = False
    # What happens to a node execution that a lost worker left half done. "ask": a person decides.
    on_interrupt: ClassVar[Literal["rerun", "fail", "ask"]] = "rerun"
    # Seconds after which one attempt is ended as failed; None: only the execution's own limit holds. A node may set
    # its own in the input default `_timeout`.
    timeout: ClassVar[float | None] = None
    retries: ClassVar[Retries | None] = None
    # Where a plain `def run` runs. A process of its own can be ended at any time and cannot harm the worker; it costs
    # some tenths of a second, and has only `files`, `clock` and the ids of the context.
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    # MiB that an isolated process may take (on Linux).
    memory_limit_mb: ClassVar[int | None] = 1024
    costs: ClassVar[Sequence[BlockCost]] = ()
    vectors: ClassVar[Sequence[Vector]] = ()

    Input: ClassVar[type[BlockSchema]]
    Output: ClassVar[type[BlockSchema]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.isolation == "process" and inspect.isasyncgenfunction(cls.run):
            raise TypeError(f"{cls.__name__}: only a plain `def run` can run in a process of its own")

    def isolated(self, data: In) -> bool:
        """Whether this run goes to a process of its own. Override it where that depends on the input."""
        return self.isolation == "process"

    @abstractmethod
    def run(self, data: In, ctx: BlockContext) -> AsyncIterator[PinValue] | Iterator[PinValue]:
        """Yield outputs. Declared `async def` (on the loop) or `def` (elsewhere), in both cases a generator."""

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

    def node_input_pins(self, defaults: Mapping[str, Any]) -> frozenset[str]:
        """The pins of a node with these input defaults, where they depend on them."""
        return self.input_pins()

    def node_output_pins(self, defaults: Mapping[str, Any]) -> frozenset[str]:
        """As `node_input_pins`."""
        return self.output_pins()

    def prepare(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The pin values as they are made the input, for blocks whose pins are not all fields of it."""
        return values

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
