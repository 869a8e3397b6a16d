"""What others may add to the running of nodes: moderation, reports of errors, costs. None of it by default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from livetape.engine.block import Block
from livetape.engine.runner import RunStats
from livetape.observability import ErrorReporter, NoReporter


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Which run of which node of whose execution."""

    user_id: str
    graph_id: str
    graph_exec_id: str
    node_id: str
    node_exec_id: str
    block_id: str
    block: str

    def tags(self) -> dict[str, str]:
        """All of it by name, as reports of errors have it."""
        return {
            "user_id": self.user_id,
            "graph_id": self.graph_id,
            "graph_exec_id": self.graph_exec_id,
            "node_id": self.node_id,
            "node_exec_id": self.node_exec_id,
            "block_id": self.block_id,
            "block": self.block,
        }


class Moderation(Protocol):
    """Says what may not be run or told. A reason refuses: the execution, or the node that gave the output, is FAILED
    (`moderation`). What it raises counts as a refusal: nothing passes because the judge is away."""

    async def start(self, user_id: str, graph_id: str, inputs: dict[str, Any]) -> str | None:
        """Before the first node of an execution."""

    async def output(self, who: NodeIdentity, name: str, value: Any) -> str | None:
        """Before an output is recorded and followed."""


class Costs(Protocol):
    """Takes the price of runs, in cents."""

    async def before(self, who: NodeIdentity, block: Block[Any], inputs: dict[str, Any]) -> None:
        """Before a run. A LimitError refuses it: the node is FAILED and the execution ends
        (`insufficient_credits`)."""

    async def after(self, who: NodeIdentity, block: Block[Any], inputs: dict[str, Any], stats: RunStats) -> int:
        """After a run that completed: what was taken."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """All of them."""

    moderation: Moderation | None = None
    reporter: ErrorReporter = field(default_factory=NoReporter)
    costs: Costs | None = None
