"""What the REST interface is given. It knows these shapes and nothing of who fills them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from livetape.api.control_models import Reviewed
from livetape.auth import Principal
from livetape.engine.graph import Graph, GraphMeta, GraphModel
from livetape.engine.start_options import StartOptions
from livetape.events.executions import GraphExecution, GraphExecutionMeta, NodeExecutionResult
from livetape.events.log import Position, Tape
from livetape.events.recorder import Recorded


class Graphs(Protocol):
    """The graphs of the users. Every method sees only the user's own."""

    async def create(self, user_id: str, graph: Graph) -> GraphModel: ...

    async def update(self, user_id: str, graph_id: str, graph: Graph) -> GraphModel: ...

    async def get(self, user_id: str, graph_id: str, version: int | None = None) -> GraphModel: ...

    async def list(self, user_id: str) -> list[GraphMeta]: ...

    async def versions(self, user_id: str, graph_id: str) -> Sequence[GraphModel]: ...

    async def set_active(self, user_id: str, graph_id: str, version: int) -> None: ...

    async def delete(self, user_id: str, graph_id: str) -> int: ...


class Started(Protocol):
    """What a start gave. `replayed`: an earlier request with the same idempotency key had started it."""

    @property
    def execution(self) -> GraphExecutionMeta: ...

    @property
    def stream(self) -> Position: ...

    @property
    def replayed(self) -> bool: ...


class Snapshot(Protocol):
    """One execution as it stood at `stream` or later."""

    @property
    def execution(self) -> GraphExecution: ...

    @property
    def node_executions(self) -> list[NodeExecutionResult]: ...

    @property
    def stream(self) -> Position: ...


class Executions(Protocol):
    """The executions of the users. Every method sees only the user's own."""

    async def start(
        self,
        user_id: str,
        graph_id: str,
        version: int | None,
        inputs: dict[str, Any],
        *,
        options: StartOptions | None = None,
        idempotency_key: str | None = None,
        request_hash: str = "",
    ) -> Started: ...

    async def trigger(
        self,
        user_id: str,
        graph_id: str,
        version: int | None,
        payload: dict[str, Any],
        *,
        idempotency_key: str | None = None,
        request_hash: str = "",
    ) -> Started: ...

    async def rerun(
        self,
        user_id: str,
        graph_exec_id: str,
        *,
        graph_id: str | None = None,
        idempotency_key: str | None = None,
        request_hash: str = "",
    ) -> Started: ...

    async def retry(
        self,
        user_id: str,
        graph_exec_id: str,
        *,
        graph_id: str | None = None,
        from_node: str | None = None,
        idempotency_key: str | None = None,
        request_hash: str = "",
    ) -> Started: ...

    async def get(self, user_id: str, graph_exec_id: str, *, graph_id: str | None = None) -> Snapshot: ...

    async def blob(self, user_id: str, graph_exec_id: str, sha256: str) -> bytes: ...

    async def list(
        self, user_id: str, *, graph_id: str | None = None, page: int = 1, page_size: int = 25
    ) -> tuple[list[tuple[GraphExecutionMeta, Position]], int]: ...

    async def stop(
        self, user_id: str, graph_exec_id: str, *, graph_id: str | None = None, wait: float = 0
    ) -> GraphExecutionMeta: ...


class Reviews(Protocol):
    """What executions ask people. Every method sees only the user's own."""

    async def waiting(self, user_id: str, *, page: int = 1, page_size: int = 25) -> Sequence[Reviewed]: ...

    async def of_execution(self, user_id: str, graph_exec_id: str) -> Sequence[Reviewed]: ...

    async def decide(
        self,
        user_id: str,
        node_exec_id: str,
        *,
        approved: bool,
        message: str = "",
        edited: Any = None,
        is_edited: bool = False,
    ) -> Reviewed: ...


class QueueFigures(Protocol):
    """How much waits to be begun, and for how long."""

    @property
    def depth(self) -> int: ...

    @property
    def oldest_s(self) -> float: ...


class QueueControl(Protocol):
    """The queue of executions as a whole."""

    async def pause(self, reason: str) -> None: ...

    async def resume(self) -> None: ...

    async def paused(self) -> str | None: ...

    async def figures(self) -> QueueFigures: ...


class Jobs(Protocol):
    """The tapes of background jobs."""

    async def publish(
        self,
        user_id: str | None,
        job_id: str,
        event_type: str,
        data: Any,
        *,
        timestamp: str | None = None,
        idempotency_key: str | None = None,
        is_admin: bool = False,
    ) -> Recorded: ...


class Tapes(Protocol):
    """The part of the event log that answers whose a tape is."""

    async def describe(self, tape: str) -> Tape | None: ...


class EventStreams(Protocol):
    """Answers with the events of a tape: a JSON page, server-sent events or lines, as the request asks.

    Whether the caller may read the tape has been checked; who it is stands in `request.state.principal`.
    """

    async def __call__(self, request: Request, tape: Tape) -> Response: ...


class Revocations(Protocol):
    """Knows the tokens that hold no longer before their time is over."""

    async def check(self, principal: Principal) -> None:
        """Refuse who came with one.

        Raises:
            UnauthenticatedError: it was revoked.
        """
        ...


Readiness: TypeAlias = Callable[[], Awaitable[Sequence[str]]]
"""Returns what is still missing before this process can serve; nothing when it is ready."""

Degraded: TypeAlias = Callable[[], Sequence[str]]
"""Returns what is not as it should be although this process can serve."""

MetricsText: TypeAlias = Callable[[], tuple[bytes, str]]
"""Returns the metrics of this process and their content type."""
