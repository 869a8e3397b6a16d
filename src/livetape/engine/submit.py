"""The use cases of executions: start, look, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from pydantic_core import PydanticSerializationError, from_json, to_json

from livetape.clock import Clock, IdFactory, new_epoch
from livetape.engine.block import BlockRegistry
from livetape.engine.library import graph_of
from livetape.engine.validation import check_runnable
from livetape.errors import GraphValidationError, LimitError, LogError, NotFoundError
from livetape.events.channel import execution_channel, execution_tape
from livetape.events.executions import (
    ExecutionStats,
    ExecutionStatus,
    GraphExecution,
    GraphExecutionMeta,
    NodeExecutionResult,
)
from livetape.events.log import EventLog, Position
from livetape.store.execution_events import execution_outputs, group_outputs
from livetape.store.executions import Committed, ExecutionRow, ExecutionStore, IdempotencyKey, NewExecution, NodeRow
from livetape.store.graphs import GraphStore

Relayed: TypeAlias = Callable[[str, int], int]
"""Of the events of a tape up to a number: up to which number others can read them."""

MAX_INPUT_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Started:
    """`stream` is the position before the first event; `replayed`: an earlier start had the same key."""

    execution: GraphExecutionMeta
    stream: Position
    replayed: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An execution with its node executions. Subscribing after `stream`, which was read first, misses nothing."""

    execution: GraphExecution
    node_executions: list[NodeExecutionResult]
    stream: Position


async def nobody(_committed: Committed) -> None:
    """Where tapes are read is where they are written: there is nobody to announce them to."""


class Executions:
    """Starts, shows and stops executions. `hint` tells the workers of this process of a stop at once; `announce` makes
    the tape of a new one known where it is read, and raises nothing that could be waited out."""

    def __init__(
        self,
        store: ExecutionStore,
        graphs: GraphStore,
        log: EventLog,
        blocks: BlockRegistry,
        *,
        clock: Clock,
        new_id: IdFactory,
        hint: Callable[[str], None],
        announce: Callable[[Committed], Awaitable[None]] = nobody,
        relayed: Relayed | None = None,
        max_input_bytes: int = MAX_INPUT_BYTES,
    ) -> None:
        self._store = store
        self._graphs = graphs
        self._log = log
        self._blocks = blocks
        self._clock = clock
        self._new_id = new_id
        self._hint = hint
        self._announce = announce
        self._relayed = relayed
        self._max_input_bytes = max_input_bytes

    async def start(
        self,
        user_id: str,
        graph_id: str,
        version: int | None,
        inputs: dict[str, Any],
        *,
        idempotency_key: str | None = None,
        request_hash: str = "",
    ) -> Started:
        """Accept an execution: when this returns, it is durable, queued, and will run.

        Raises:
            NotFoundError: no such graph of this user.
            GraphValidationError: it cannot run with these inputs; nothing was written.
            ConflictError: the idempotency key was used with another request.
            LimitError: the inputs are too large.
        """
        stored = await self._graphs.get(user_id, graph_id, version)
        graph = graph_of(stored)
        try:
            body = to_json(inputs)
        except (PydanticSerializationError, ValueError) as error:
            raise GraphValidationError(f"the inputs are not JSON: {error}") from error
        if len(body) > self._max_input_bytes:
            raise LimitError(f"inputs of {len(body)} bytes; at most {self._max_input_bytes} are taken inline")
        check_runnable(graph, self._blocks, inputs)
        new = NewExecution(
            id=self._new_id(),
            user_id=user_id,
            graph_id=graph_id,
            graph_version=stored.version,
            inputs=body,
            created_at=self._clock.now(),
            epoch=new_epoch(),
        )
        key = None if idempotency_key is None else IdempotencyKey(idempotency_key, request_hash)
        row, replayed = await self._store.start(new, idempotency=key)
        if replayed:
            # One key, one answer: what the first request was told, however far the execution has come since.
            row = replace(
                row, status=ExecutionStatus.QUEUED, status_reason=None, started_at=None, ended_at=None, stats=b"{}"
            )
        else:
            await self._announce(_new_tape(row))
        return Started(_meta(row), Position(row.epoch, 0), replayed)

    async def get(self, user_id: str, graph_exec_id: str, *, graph_id: str | None = None) -> Snapshot:
        """Raises NotFoundError, also when it is not an execution of this graph."""
        tape = await self._log.describe(execution_tape(graph_exec_id))
        row = await self._get(user_id, graph_exec_id, graph_id)
        nodes = await self._store.nodes(row.id)
        if tape is None:
            raise LogError(f"the tape of execution {graph_exec_id} is gone")
        stream = Position(tape.epoch, self._told(row, tape.offset))
        return Snapshot(_execution(row, nodes), [_node(row, node) for node in _in_order(nodes)], stream)

    async def list(
        self, user_id: str, *, graph_id: str | None = None, page: int = 1, page_size: int = 25
    ) -> tuple[list[tuple[GraphExecutionMeta, Position]], int]:
        """One page, newest first, each with the position on its tape as of that state; and how many there are."""
        rows, total = await self._store.list(user_id, graph_id=graph_id, limit=page_size, offset=(page - 1) * page_size)
        return [(_meta(row), Position(row.epoch, self._told(row, number))) for row, number in rows], total

    async def stop(
        self, user_id: str, graph_exec_id: str, *, graph_id: str | None = None, wait: float = 0
    ) -> GraphExecutionMeta:
        """Ask it to stop; returns it as it is after the wish was committed, or when it is over within `wait` s.

        Raises:
            NotFoundError
        """
        await self._get(user_id, graph_exec_id, graph_id)
        row = await self._store.request_cancel(graph_exec_id, user_id=user_id)
        self._hint(graph_exec_id)
        deadline = self._clock.monotonic() + wait
        while not row.status.is_terminal and self._clock.monotonic() < deadline:
            await asyncio.sleep(0.05)
            row = await self._store.get(graph_exec_id, user_id=user_id)
        return _meta(row)

    def _told(self, row: ExecutionRow, number: int) -> int:
        return number if self._relayed is None else self._relayed(execution_tape(row.id), number)

    async def _get(self, user_id: str, graph_exec_id: str, graph_id: str | None) -> ExecutionRow:
        row = await self._store.get(graph_exec_id, user_id=user_id)
        if graph_id is not None and row.graph_id != graph_id:
            raise NotFoundError(f"Graph execution #{graph_exec_id} not found.")
        return row


def _new_tape(row: ExecutionRow) -> Committed:
    return Committed(
        tape=execution_tape(row.id),
        channel=execution_channel(row.user_id, row.graph_id, row.id),
        epoch=row.epoch,
        graph_id=row.graph_id,
        execution_id=row.id,
        first=1,
        events=(),
    )


def _meta(row: ExecutionRow) -> GraphExecutionMeta:
    return GraphExecutionMeta(**_common(row))


def _execution(row: ExecutionRow, nodes: Any) -> GraphExecution:
    return GraphExecution(**_common(row), outputs=execution_outputs(nodes))


def _common(row: ExecutionRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "user_id": row.user_id,
        "graph_id": row.graph_id,
        "graph_version": row.graph_version,
        "inputs": from_json(row.inputs),
        "status": row.status,
        "status_reason": row.status_reason,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "stats": ExecutionStats.model_validate_json(row.stats),
    }


def _in_order(nodes: Any) -> list[NodeRow]:
    """By the time of queueing, those that still wait last."""
    return sorted(nodes, key=lambda n: (n.queue_time is None, n.queue_time or n.add_time, n.seq))


def _node(row: ExecutionRow, node: NodeRow) -> NodeExecutionResult:
    return NodeExecutionResult(
        user_id=row.user_id,
        graph_id=row.graph_id,
        graph_version=row.graph_version,
        graph_exec_id=row.id,
        node_exec_id=node.id,
        node_id=node.node_id,
        block_id=node.block_id,
        status=node.status,
        status_reason=node.status_reason,
        input_data={pin: [value] for pin, value in from_json(node.inputs).items()},
        output_data=group_outputs(node.outputs),
        add_time=node.add_time,
        queue_time=node.queue_time,
        start_time=node.start_time,
        end_time=node.end_time,
    )
