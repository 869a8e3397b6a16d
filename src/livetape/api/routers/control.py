"""Starting executions from others, and from webhooks."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import Body, Header, Path, Response
from pydantic_core import to_json

from livetape.api.bodies import IdempotencyKey, Name
from livetape.api.control_models import RetryExecution
from livetape.api.deps import ExecutionsDep, UserId, signed_in_router
from livetape.api.models import MAX_VERSION, GraphExecutionMeta
from livetape.api.ports import Started
from livetape.api.routers.executions import canonical, idempotent

router = signed_in_router("/api/graphs/{graph_id}", "graphs")

Key = Annotated[IdempotencyKey | None, Header(alias="Idempotency-Key")]


@router.post("/executions/{graph_exec_id}/retry", summary="Retry graph execution")
async def retry_execution(
    graph_id: Name,
    graph_exec_id: Name,
    response: Response,
    user_id: UserId,
    executions: ExecutionsDep,
    body: Annotated[RetryExecution | None, Body()] = None,
    idempotency_key: Key = None,
) -> GraphExecutionMeta:
    """Goes on where an execution failed or was stopped, as a new one: what completed is taken over, not run again.

    409 when it is not over, or nothing of it is left to run.
    """
    body = body or RetryExecution()
    with idempotent():
        started = await executions.retry(
            user_id,
            graph_exec_id,
            graph_id=graph_id,
            from_node=body.from_node,
            idempotency_key=idempotency_key,
            request_hash=_hash("retry", graph_exec_id, body.model_dump()),
        )
    return _answer(started, response)


@router.post("/executions/{graph_exec_id}/rerun", summary="Rerun graph execution")
async def rerun_execution(
    graph_id: Name,
    graph_exec_id: Name,
    response: Response,
    user_id: UserId,
    executions: ExecutionsDep,
    idempotency_key: Key = None,
) -> GraphExecutionMeta:
    """Starts the same version of the graph with the same inputs once more."""
    with idempotent():
        started = await executions.rerun(
            user_id,
            graph_exec_id,
            graph_id=graph_id,
            idempotency_key=idempotency_key,
            request_hash=_hash("rerun", graph_exec_id),
        )
    return _answer(started, response)


@router.post("/trigger/{graph_version}", summary="Trigger graph agent")
async def trigger_graph(
    graph_id: Name,
    graph_version: Annotated[int, Path(ge=1, le=MAX_VERSION)],
    payload: Annotated[dict[str, Any], Body()],
    response: Response,
    user_id: UserId,
    executions: ExecutionsDep,
    idempotency_key: Key = None,
) -> GraphExecutionMeta:
    """Starts a graph for what a webhook received: its webhook nodes give the body of this request."""
    with idempotent():
        started = await executions.trigger(
            user_id,
            graph_id,
            graph_version,
            payload,
            idempotency_key=idempotency_key,
            request_hash=_hash("trigger", graph_id, graph_version, payload),
        )
    return _answer(started, response)


def _answer(started: Started, response: Response) -> GraphExecutionMeta:
    if started.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return GraphExecutionMeta.of(started.execution, started.stream)


def _hash(*what: Any) -> str:
    return hashlib.sha256(b"\n".join(canonical(from_model) for from_model in what) + to_json(len(what))).hexdigest()
