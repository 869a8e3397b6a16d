"""Bodies of the REST interface that belong to no other layer. Names and fields are those of the seed; `stream` is ours.

`stream` is the position on the execution's tape that was read before its state: whoever subscribes from there misses
nothing and sees nothing older than the state.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from livetape.engine.graph import Graph
from livetape.events import executions
from livetape.events.log import Position
from livetape.events.recorder import Recorded

MAX_VERSION = 2**31 - 1

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _without_control_characters(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("control characters are not allowed here")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_without_control_characters)]
"""An id or a name in a path or a body: 1 to 200 characters, none of them a control character."""

IdempotencyKey = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[\x20-\x7e]+$")]
"""1 to 255 printable ASCII characters."""


class ErrorItem(BaseModel):
    """One fault of a request: where it is and what is wrong.

    `location` is the part of the request (body, query, path, header), or `graph` or `server`; `pointer` is a JSON
    pointer into it.
    """

    location: str
    pointer: str
    detail: str
    code: str


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 and above."""

    message: str
    detail: str | list[Any] | dict[str, Any]
    hint: str
    type: str
    title: str
    status: int
    instance: str
    code: str
    errors: list[ErrorItem]


class StreamPosition(BaseModel):
    """A place on a tape: after the event with this offset."""

    epoch: str
    offset: int

    @classmethod
    def of(cls, position: Position) -> StreamPosition:
        return cls(epoch=position.epoch, offset=position.offset)


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
    """What an execution starts with: `inputs` by the names of the graph's INPUT blocks."""

    inputs: dict[str, Any] = Field(default_factory=dict)
    credentials_inputs: dict[str, Any] = Field(default_factory=dict)
    source: Literal["builder", "library", "onboarding"] | None = None
    dry_run: bool = False


class PublishJobEvent(BaseModel):
    """One event for the tape of a job. `timestamp` is ISO 8601; the server's time when it is left out."""

    event_type: Name
    data: Any = None
    timestamp: Annotated[str, Field(max_length=64), AfterValidator(_without_control_characters)] | None = None
    idempotency_key: IdempotencyKey | None = None


class JobPosition(BaseModel):
    """Where a published event stands on the tape of its job.

    `mixed`: somebody else writes to the tape too; its offsets are strings, JSON numbers do not carry them exactly.
    """

    epoch: str
    offset: int | str
    mixed: Literal[True] | None = None

    @classmethod
    def of(cls, recorded: Recorded) -> JobPosition:
        epoch, offset = recorded.position.epoch, recorded.position.offset
        return cls(epoch=epoch, offset=str(offset), mixed=True) if recorded.mixed else cls(epoch=epoch, offset=offset)


class JobInfo(BaseModel):
    """What is known of the tape of a job."""

    job_id: str
    events: int
    first_offset: int
    final: bool
    epoch: str
    stream: StreamPosition


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


class Health(BaseModel):
    """The server answers."""

    status: Literal["healthy", "alive", "ready"]


class Version(BaseModel):
    """What runs here."""

    name: str
    version: str
