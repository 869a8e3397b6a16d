"""Starting, watching and stopping executions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Body, Header, Path, Query, Response
from pydantic_core import to_json
from starlette.requests import Request

from livetape.api.bodies import IdempotencyKey, Name, StreamPosition
from livetape.api.deps import EventStreamsDep, ExecutionsDep, TapesDep, UserId, signed_in_router
from livetape.api.errors import ApiError
from livetape.api.models import (
    MAX_VERSION,
    GraphExecutionMeta,
    GraphExecutionsPaginated,
    GraphExecutionWithNodes,
    Pagination,
    StartExecution,
)
from livetape.api.ports import Tapes
from livetape.api.routers.streams import EVENTS_OPENAPI
from livetape.engine.start_options import StartOptions
from livetape.errors import ConflictError, LogUnavailableError, NotFoundError
from livetape.events.channel import execution_tape, graph_tape
from livetape.events.log import Position

MAX_LISTED = 250
MAX_STOP_WAIT = 15

router = signed_in_router("/api", "graphs")


@router.post("/graphs/{graph_id}/execute/{graph_version}", summary="Execute graph agent")
async def start_execution(
    graph_id: Name,
    graph_version: Annotated[int, Path(ge=1, le=MAX_VERSION)],
    response: Response,
    user_id: UserId,
    executions: ExecutionsDep,
    body: Annotated[StartExecution | None, Body()] = None,
    preset_id: Name | None = None,
    idempotency_key: Annotated[IdempotencyKey | None, Header(alias="Idempotency-Key")] = None,
) -> GraphExecutionMeta:
    """Starts an execution; the answer comes when it is stored, long before it ends.

    With an `Idempotency-Key`, a repeated request gives the first one's execution and the header
    `Idempotency-Replayed: true`; another body with the same key is 409.
    """
    body = body or StartExecution()
    _refuse_unsupported(body, preset_id)
    with idempotent():
        started = await executions.start(
            user_id,
            graph_id,
            graph_version,
            body.inputs,
            options=StartOptions(priority=body.priority, dry_run=body.dry_run, masks=body.nodes_input_masks),
            idempotency_key=idempotency_key,
            request_hash=request_hash(graph_id, graph_version, body),
        )
    if started.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return GraphExecutionMeta.of(started.execution, started.stream)


@router.get("/executions", summary="List all executions")
async def list_executions(user_id: UserId, executions: ExecutionsDep) -> list[GraphExecutionMeta]:
    """The caller's latest 250 executions, newest first."""
    found, _ = await executions.list(user_id, page=1, page_size=MAX_LISTED)
    return [GraphExecutionMeta.of(meta, position) for meta, position in found]


@router.get("/graphs/{graph_id}/executions", summary="List graph executions")
async def list_graph_executions(
    graph_id: Name,
    user_id: UserId,
    executions: ExecutionsDep,
    tapes: TapesDep,
    page: Annotated[int, Query(ge=1, le=MAX_VERSION)] = 1,
    page_size: Annotated[int, Query(ge=1, le=100)] = 25,
) -> GraphExecutionsPaginated:
    """A page of the executions of one graph, newest first."""
    tape = await tapes.describe(graph_tape(graph_id))
    found, total = await executions.list(user_id, graph_id=graph_id, page=page, page_size=page_size)
    return GraphExecutionsPaginated(
        executions=[GraphExecutionMeta.of(meta, position) for meta, position in found],
        pagination=Pagination(
            total_items=total,
            total_pages=math.ceil(total / page_size),
            current_page=page,
            page_size=page_size,
        ),
        stream=StreamPosition.of(tape.position) if tape is not None and tape.owner == user_id else None,
    )


@router.get("/graphs/{graph_id}/executions/{graph_exec_id}", summary="Get execution details")
async def get_execution(
    graph_id: Name, graph_exec_id: Name, user_id: UserId, executions: ExecutionsDep
) -> GraphExecutionWithNodes:
    """One execution with its outputs and its node executions."""
    snapshot = await executions.get(user_id, graph_exec_id, graph_id=graph_id)
    return GraphExecutionWithNodes.of(snapshot.execution, snapshot.node_executions, snapshot.stream)


@router.post("/graphs/{graph_id}/executions/{graph_exec_id}/stop", summary="Stop graph execution")
async def stop_execution(
    graph_id: Name,
    graph_exec_id: Name,
    user_id: UserId,
    executions: ExecutionsDep,
    tapes: TapesDep,
    wait: Annotated[float, Query(ge=0, le=MAX_STOP_WAIT, allow_inf_nan=False)] = 0,
) -> GraphExecutionMeta:
    """Asks the execution to stop and answers with its state after that; `wait` seconds for it to have ended."""
    stream = await _own_position(tapes, user_id, graph_exec_id)
    execution = await executions.stop(user_id, graph_exec_id, graph_id=graph_id, wait=wait)
    return GraphExecutionMeta.of(execution, stream)


@router.get(
    "/graphs/{graph_id}/executions/{graph_exec_id}/events",
    summary="Read execution events",
    response_model=None,
    **EVENTS_OPENAPI,
)
async def read_events(
    graph_id: Name,
    graph_exec_id: Name,
    request: Request,
    user_id: UserId,
    executions: ExecutionsDep,
    tapes: TapesDep,
    event_streams: EventStreamsDep,
) -> Response:
    """The events of an execution: a page of JSON, or by `Accept` a stream that ends after the final event."""
    tape = await tapes.describe(execution_tape(graph_exec_id))
    if tape is None:
        await executions.get(user_id, graph_exec_id, graph_id=graph_id)
        raise LogUnavailableError("this execution has no tape yet")  # it gets one as soon as the log can be reached
    if tape.owner != user_id or tape.graph_id != graph_id:
        raise NotFoundError(f"Graph execution #{graph_exec_id} not found.")
    return await event_streams(request, tape)


def request_hash(graph_id: str, graph_version: int, body: StartExecution) -> str:
    """Equal for requests that ask for the same, however their JSON was written."""
    what = {"graph_id": graph_id, "graph_version": graph_version, **body.model_dump()}
    return hashlib.sha256(canonical(what)).hexdigest()


@contextmanager
def idempotent() -> Iterator[None]:
    """Says of a key that was used with another request what to do about it."""
    try:
        yield
    except ConflictError as error:
        if error.context.get("reason") != "idempotency":
            raise
        raise ApiError(
            409, error.message, code="idempotency_conflict", hint="Use a new Idempotency-Key for a new request."
        ) from error


def canonical(value: object) -> bytes:
    """JSON that is equal for equal values, whatever the order of their keys."""
    if isinstance(value, dict):
        members = (to_json(name) + b":" + canonical(value[name]) for name in sorted(value))
        return b"{" + b",".join(members) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(canonical(item) for item in value) + b"]"
    return to_json(value)


def _refuse_unsupported(body: StartExecution, preset_id: str | None) -> None:
    """What this server does not do yet must not look as if it had been done."""
    asked = {
        "credentials_inputs": bool(body.credentials_inputs),
        "preset_id": preset_id is not None,
    }
    if names := [name for name, is_asked in asked.items() if is_asked]:
        raise ApiError(
            400,
            f"This server does not support {', '.join(names)}; nothing was started",
            code="unsupported",
            hint=f"Leave out {', '.join(names)} and retry.",
        )


async def _own_position(tapes: Tapes, user_id: str, graph_exec_id: str) -> Position | None:
    tape = await tapes.describe(execution_tape(graph_exec_id))
    return tape.position if tape is not None and tape.owner == user_id else None
