"""Bodies of the REST interface that belong to no other layer. Names and fields are those of the seed; `stream` is ours.

`stream` is the position on the execution's tape that was read before its state: whoever subscribes from there misses
nothing and sees nothing older than the state.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from livetape.api.bodies import StreamPosition
from livetape.engine.graph import Graph
from livetape.events import executions
from livetape.events.log import Position

MAX_VERSION = 2**31 - 1


class GraphExecutionMeta(executions.GraphExecutionMeta):
    """One execution without its outputs."""

    stream: StreamPosition | None = None

    @classmethod
    def of(cls, meta: executions.GraphExecutionMeta, stream: Position | None) -> GraphExecutionMeta:
        known = {name: getattr(meta, name) for name in executions.GraphExecutionMeta.model_fields}
        return cls.model_construct(**known, stream=None if stream is None else StreamPosition.of(stream))


class GraphExecutionWithNodes(executions.GraphExecution):
    """One execution with its outputs and every node execution so far."""

    node_executions: list[executions.NodeExecutionResult] = Field(default_factory=list)
    stream: StreamPosition

    @classmethod
    def of(
        cls,
        execution: executions.GraphExecution,
        nodes: list[executions.NodeExecutionResult],
        stream: Position,
    ) -> GraphExecutionWithNodes:
        known = {name: getattr(execution, name) for name in executions.GraphExecution.model_fields}
        return cls.model_construct(**known, node_executions=nodes, stream=StreamPosition.of(stream))


class Pagination(BaseModel):
    """Where a page stands in the whole."""

    total_items: int
    total_pages: int
    current_page: int
    page_size: int


class GraphExecutionsPaginated(BaseModel):
    """A page of the executions of one graph. `stream` is the position on the graph's tape, read before the page."""

    executions: list[GraphExecutionMeta]
    pagination: Pagination
    stream: StreamPosition | None = None


class CreateGraph(BaseModel):
    """A graph to store. Its ids are replaced by new ones."""

    graph: Graph
    source: Literal["builder", "upload"] | None = None


class SetGraphActiveVersion(BaseModel):
    """The version that is used when none is named."""

    active_graph_version: Annotated[int, Field(ge=1, le=MAX_VERSION)]


class DeleteGraphResponse(BaseModel):
    """How many versions were deleted."""

    version_counts: int


class StartExecution(BaseModel):
    """What an execution starts with: `inputs` by the names of the graph's INPUT blocks.

    `nodes_input_masks` are inputs by node, in place of what the node has. Higher `priority` goes first. `dry_run`:
    nothing with effects is run.
    """

    inputs: dict[str, Any] = Field(default_factory=dict)
    credentials_inputs: dict[str, Any] = Field(default_factory=dict)
    source: Literal["builder", "library", "onboarding"] | None = None
    dry_run: bool = False
    nodes_input_masks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    priority: Annotated[int, Field(ge=0, le=9)] = 0


class BlockCost(BaseModel):
    """What one run of a block costs, in cents, when the input matches `cost_filter`."""

    cost_amount: int
    cost_filter: dict[str, Any]
    cost_type: Literal["run", "second", "byte"]


class BlockInfo(BaseModel):
    """A block that this server can run."""

    id: str
    name: str
    input_schema: dict[str, Any] = Field(alias="inputSchema")
    output_schema: dict[str, Any] = Field(alias="outputSchema")
    costs: list[BlockCost]
    description: str
    categories: list[dict[str, str]]
    contributors: list[dict[str, Any]]
    static_output: bool = Field(alias="staticOutput")
    ui_type: str = Field(alias="uiType")
