"""What the engine does for a block beside following its outputs: long waits, other graphs, people, kept values. Pure.

A long wait takes no place in a worker. The block is ended (`Suspended` goes through it), what it waits for is kept
with its node execution, and when that has happened the block runs again from its start: a wait that is over then
answers at once. So a block that waits gives the same outputs and asks for the same waits, in the same order, each
time it is run; outputs that it repeats are not followed twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias

WaitKind: TypeAlias = Literal["timer", "child", "review"]


@dataclass(frozen=True, slots=True)
class ChildCall:
    """One execution of another graph. `graph_version` None: the active one when it starts."""

    graph_id: str
    inputs: Mapping[str, Any]
    graph_version: int | None = None
    node_input_masks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChildResult:
    """How it ended: `status` is COMPLETED, FAILED or TERMINATED; `outputs` has every value of each output, in order."""

    graph_exec_id: str
    status: str
    outputs: Mapping[str, Sequence[Any]]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ReviewRequest:
    """What a person is asked. `name` says what it is about; `editable`: the person may change `data`."""

    data: Any
    name: str
    editable: bool = True


@dataclass(frozen=True, slots=True)
class ReviewAnswer:
    """`data` as the person left it."""

    approved: bool
    data: Any
    message: str = ""


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait of one node execution, JSON all through, so that it can be kept.

    `number` counts the waits of a node execution from 0 in the order in which the block asks for them. `request` is
    the ChildCall or ReviewRequest as a dictionary; a timer has only `due`. `answer` is None while it is open, else
    the ChildResult or ReviewAnswer as a dictionary ({} for a timer); `answered_no` orders the answers of one node
    execution, from 1.
    """

    number: int
    kind: WaitKind
    request: Mapping[str, Any] = field(default_factory=dict)
    due: datetime | None = None
    answer: Mapping[str, Any] | None = None
    answered_no: int = 0


class Suspended(BaseException):
    """The block can go on when one of `waits` has its answer. Goes through every block; nobody catches it there.

    `waits` are all that are open, those that were kept before included. Not an Exception, so that a block's
    `except Exception` lets it pass.
    """

    def __init__(self, waits: Sequence[Wait]) -> None:
        self.waits = tuple(waits)
        super().__init__(f"waits for {len(self.waits)}")


class Timers(Protocol):
    async def sleep_until(self, due: datetime) -> None:
        """Return when it is `due`, and not before it. A wait of more than a few seconds outlives the process."""


class Children(Protocol):
    """Runs other graphs for a node execution. A child is stopped when its parent is."""

    async def run(self, call: ChildCall) -> ChildResult:
        """Start it and return when it has ended. However often the block is run again, it is started once."""

    def run_many(self, calls: Sequence[ChildCall], *, concurrency: int) -> AsyncIterator[tuple[int, ChildResult]]:
        """Run them all, at most `concurrency` at once; gives (place in `calls`, result) in the order of their ends."""


class Reviews(Protocol):
    async def ask(self, request: ReviewRequest) -> ReviewAnswer:
        """Ask a person and return the answer. Without safe mode it is approved at once, and `message` says so."""


class Memory(Protocol):
    """Values that outlive executions, by user and key. JSON values, at most 1 MiB each."""

    async def get(self, user_id: str, key: str) -> tuple[bool, Any]:
        """Whether there is one, and it."""

    async def set(self, user_id: str, key: str, value: Any) -> None:
        """Keep it in place of what was there."""
