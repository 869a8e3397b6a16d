"""The use cases of executions: start, look, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from pydantic_core import PydanticSerializationError, from_json, to_json

from livetape.clock import Clock, IdFactory, new_epoch
from livetape.engine.blobs import Place
from livetape.engine.block import BlockRegistry, BlockType
from livetape.engine.forks import fork_nodes
from livetape.engine.graph import Graph
from livetape.engine.graph_plan import GraphPlan
from livetape.engine.large_values import Keeping, LargeValues, referenced
from livetape.engine.library import graph_of
from livetape.engine.pins import select_output
from livetape.engine.planner import Rules
from livetape.engine.start_options import StartOptions
from livetape.engine.validation import check_runnable
from livetape.errors import ConflictError, GraphValidationError, LimitError, LogError, NotFoundError
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

Relayed: TypeAlias = Callable[[Mapping[str, int]], Awaitable[Mapping[str, int]]]
"""Of the events of tapes, each up to a number: up to which number others can read them."""

MAX_INPUT_BYTES: Final = 1024 * 1024

WEBHOOKS: Final = frozenset({BlockType.WEBHOOK, BlockType.WEBHOOK_MANUAL})
"""Types of blocks that give what a webhook received."""


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
        queue_seconds: float | None = None,
        rules: Rules | None = None,
        keeping: Keeping | None = None,
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
        self._queue_seconds = queue_seconds
        self._rules = rules or Rules()
        self._keeping = keeping

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
    ) -> Started:
        """Accept an execution: when this returns, it is durable, queued, and will run.

        Raises:
            NotFoundError: no such graph of this user.
            GraphValidationError: it cannot run with these inputs; nothing was written.
            ConflictError: the idempotency key was used with another request.
            LimitError: the inputs are too large.
            BlobError: they cannot be kept.
        """
        options = options or StartOptions()
        stored = await self._graphs.get(user_id, graph_id, version)
        self._check_size(inputs, options.masks)
        check_runnable(graph_of(stored), self._blocks, inputs, options.masks)
        new = self._new(user_id, graph_id, stored.version)
        values = None if self._keeping is None else self._keeping.of(user_id, new.id)
        new = replace(
            new,
            inputs=to_json(inputs if values is None else await values.moved(inputs)),
            priority=options.priority,
            dry_run=options.dry_run,
            masks=await _masks(options.masks, values),
        )
        return await self._start(new, idempotency_key, request_hash)

    async def trigger(
        self,
        user_id: str,
        graph_id: str,
        version: int | None,
        payload: dict[str, Any],
        *,
        idempotency_key: str | None = None,
        request_hash: str = "",
    ) -> Started:
        """Start a graph for what its webhook received: every webhook node gives this payload.

        Raises:
            GraphValidationError: the graph has no webhook node; and as `start`.
        """
        stored = await self._graphs.get(user_id, graph_id, version)
        nodes = graph_of(stored).nodes
        receivers = [node.id for node in nodes if self._receives(node.block_id)]
        if not receivers:
            first = nodes[0].id if nodes else graph_id
            raise GraphValidationError(
                "the graph has no webhook node", node_errors={first: {"block_id": "the graph has no webhook node"}}
            )
        options = StartOptions(masks={node_id: {"payload": payload} for node_id in receivers})
        return await self.start(
            user_id,
            graph_id,
            stored.version,
            {},
            options=options,
            idempotency_key=idempotency_key,
            request_hash=request_hash,
        )

    async def rerun(
        self,
        user_id: str,
        graph_exec_id: str,
        *,
        graph_id: str | None = None,
        idempotency_key: str | None = None,
        request_hash: str = "",
    ) -> Started:
        """Start the same graph version with the same inputs once more.

        Raises:
            NotFoundError
            GraphValidationError: it cannot run any more.
        """
        row = await self._get(user_id, graph_exec_id, graph_id)
        await self._runnable(row)
        new = self._again(row)
        await self._take_over(row, new)
        return await self._start(new, idempotency_key, request_hash)

    async def retry(
        self,
        user_id: str,
        graph_exec_id: str,
        *,
        graph_id: str | None = None,
        from_node: str | None = None,
        idempotency_key: str | None = None,
        request_hash: str = "",
    ) -> Started:
        """Go on where an execution failed or was stopped, as a new one: what completed is taken over and not run again.

        `from_node`: this node and everything downstream of it is run again in any case.

        Raises:
            NotFoundError: no such execution of this user, or its graph has no such node.
            ConflictError: it is not over, or nothing of it is left to run.
            GraphValidationError: it cannot run any more.
        """
        row = await self._get(user_id, graph_exec_id, graph_id)
        if not row.status.is_terminal:
            raise ConflictError("this execution is not over: stop it first", status=row.status.value)
        graph = await self._runnable(row)
        plan = GraphPlan(graph, self._blocks)
        if from_node is not None and from_node not in plan.nodes:
            raise NotFoundError(f"Node #{from_node} not found.")
        new, earlier = self._again(row), await self._store.nodes(row.id)
        inputs = from_json(row.inputs)
        masks = {} if row.masks is None else from_json(row.masks)
        values = await self._take_over(row, new, earlier)
        if values is not None:
            masks = await values.defaults(plan, inputs, masks)
            await values.prepare_stored(earlier, plan.sources_of)
        nodes = fork_nodes(
            plan,
            inputs,
            earlier,
            now=self._clock.now(),
            new_id=self._new_id,
            rules=self._rules,
            masks=masks,
            select=select_output if values is None else values.select,
            from_node=from_node,
        )
        if not nodes:
            raise ConflictError("nothing of this execution is left to run", status=row.status.value)
        return await self._start(replace(new, nodes=nodes), idempotency_key, request_hash)

    async def _runnable(self, row: ExecutionRow) -> Graph:
        graph = graph_of(await self._graphs.get(row.user_id, row.graph_id, row.graph_version))
        inputs = from_json(row.inputs)
        masks = None if row.masks is None else from_json(row.masks)
        if self._keeping is not None:
            values = self._keeping.of(row.user_id, row.id)
            inputs = await values.whole(inputs)
            masks = None if masks is None else {node: await values.whole(pins) for node, pins in masks.items()}
        check_runnable(graph, self._blocks, inputs, masks)
        return graph

    async def _take_over(
        self, row: ExecutionRow, new: NewExecution, nodes: Sequence[NodeRow] = ()
    ) -> LargeValues | None:
        """Give the new execution the large values of an earlier one."""
        if self._keeping is None:
            return None
        await self._keeping.take_over(Place(row.user_id, row.id), Place(new.user_id, new.id), referenced(row, nodes))
        return self._keeping.of(new.user_id, new.id)

    def _again(self, row: ExecutionRow) -> NewExecution:
        new = self._new(row.user_id, row.graph_id, row.graph_version)
        return replace(
            new, inputs=row.inputs, priority=row.priority, dry_run=row.dry_run, masks=row.masks, forked_from=row.id
        )

    def _new(self, user_id: str, graph_id: str, version: int) -> NewExecution:
        return NewExecution(
            id=self._new_id(),
            user_id=user_id,
            graph_id=graph_id,
            graph_version=version,
            inputs=b"{}",
            created_at=self._clock.now(),
            epoch=new_epoch(),
            queue_seconds=self._queue_seconds,
        )

    async def _start(self, new: NewExecution, idempotency_key: str | None, request_hash: str) -> Started:
        key = None if idempotency_key is None else IdempotencyKey(idempotency_key, request_hash)
        row, replayed = await self._store.start(new, idempotency=key)
        if replayed:
            if self._keeping is not None:
                await self._keeping.forget(new.user_id, new.id)
            # One key, one answer: what the first request was told, however far the execution has come since.
            row = replace(
                row, status=ExecutionStatus.QUEUED, status_reason=None, started_at=None, ended_at=None, stats=b"{}"
            )
        else:
            await self._announce(_new_tape(row))
        return Started(_meta(row), Position(row.epoch, 0), replayed)

    def _check_size(self, inputs: Mapping[str, Any], masks: Mapping[str, Any]) -> None:
        for given in (inputs, masks):
            try:
                size = len(to_json(given))
            except (PydanticSerializationError, ValueError) as error:
                raise GraphValidationError(f"the inputs are not JSON: {error}") from error
            if size > self._max_input_bytes:
                raise LimitError(f"inputs of {size} bytes; at most {self._max_input_bytes} are taken inline")

    def _receives(self, block_id: str) -> bool:
        block = self._blocks.get(block_id)
        return block is not None and block.block_type in WEBHOOKS

    async def get(self, user_id: str, graph_exec_id: str, *, graph_id: str | None = None) -> Snapshot:
        """Raises NotFoundError, also when it is not an execution of this graph."""
        tape = await self._log.describe(execution_tape(graph_exec_id))
        row = await self._get(user_id, graph_exec_id, graph_id)
        nodes = await self._store.nodes(row.id)
        if tape is None:
            raise LogError(f"the tape of execution {graph_exec_id} is gone")
        told = await self._told({row.id: tape.offset})
        stream = Position(tape.epoch, told[row.id])
        return Snapshot(_execution(row, nodes), [_node(row, node) for node in _in_order(nodes)], stream)

    async def blob(self, user_id: str, graph_exec_id: str, sha256: str) -> bytes:
        """The JSON of a large value, to which a pointer with this hash leads.

        Raises:
            NotFoundError: no such execution of this user, or no such value of it.
            BlobError: it is damaged, or cannot be read now.
        """
        row = await self._get(user_id, graph_exec_id, None)
        if self._keeping is None:
            raise NotFoundError(f"there is no blob {sha256}")
        return await self._keeping.blobs.get(Place(user_id, row.id), sha256)

    async def list(
        self, user_id: str, *, graph_id: str | None = None, page: int = 1, page_size: int = 25
    ) -> tuple[list[tuple[GraphExecutionMeta, Position]], int]:
        """One page, newest first, each with the position on its tape as of that state; and how many there are."""
        rows, total = await self._store.list(user_id, graph_id=graph_id, limit=page_size, offset=(page - 1) * page_size)
        told = await self._told({row.id: number for row, number in rows})
        return [(_meta(row), Position(row.epoch, told[row.id])) for row, _ in rows], total

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

    async def stop_graph_execution(self, user_id: str, graph_exec_id: str, wait_timeout: float = 15.0) -> None:
        """Stop it and everything that it started, and return when it is over.

        Raises:
            NotFoundError
            TimeoutError: it is not over after `wait_timeout` seconds; it ends all the same.
        """
        meta = await self.stop(user_id, graph_exec_id, wait=wait_timeout)
        if not meta.status.is_terminal:
            raise TimeoutError(f"execution {graph_exec_id} is still {meta.status.value} after {wait_timeout:g} s")

    async def _told(self, numbers: Mapping[str, int]) -> Mapping[str, int]:
        """The numbers of these executions that others can read too."""
        if self._relayed is None:
            return numbers
        relayed = await self._relayed({execution_tape(name): number for name, number in numbers.items()})
        return {name: relayed[execution_tape(name)] for name in numbers}

    async def _get(self, user_id: str, graph_exec_id: str, graph_id: str | None) -> ExecutionRow:
        row = await self._store.get(graph_exec_id, user_id=user_id)
        if graph_id is not None and row.graph_id != graph_id:
            raise NotFoundError(f"Graph execution #{graph_exec_id} not found.")
        return row


async def _masks(masks: Mapping[str, Mapping[str, Any]], values: LargeValues | None) -> bytes | None:
    if not masks:
        return None
    if values is None:
        return to_json(masks)
    return to_json({node_id: await values.moved(pins) for node_id, pins in masks.items()})


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
        "is_dry_run": row.dry_run,
        "nodes_input_masks": None if row.masks is None else from_json(row.masks),
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
