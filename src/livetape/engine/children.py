"""Executions that a node execution starts: graphs inside graphs."""

from __future__ import annotations

from typing import Final

from pydantic_core import to_json

from livetape.clock import Clock, new_epoch
from livetape.engine.block import BlockRegistry
from livetape.engine.block_ports import Wait
from livetape.engine.changes import NodeRun
from livetape.engine.large_values import Keeping
from livetape.engine.library import graph_of
from livetape.engine.validation import check_runnable
from livetape.errors import BlockExecutionError
from livetape.store.executions import ExecutionRow, NewExecution
from livetape.store.graphs import GraphStore

MAX_DEPTH: Final = 10


class ChildMaker:
    """Makes children of the same user, with the priority of their parent. `max_depth` graphs inside each other."""

    def __init__(
        self,
        graphs: GraphStore,
        blocks: BlockRegistry,
        *,
        clock: Clock,
        max_depth: int = MAX_DEPTH,
        keeping: Keeping | None = None,
    ) -> None:
        self._graphs = graphs
        self._blocks = blocks
        self._clock = clock
        self._max_depth = max_depth
        self._keeping = keeping

    async def __call__(self, row: ExecutionRow, run: NodeRun, child_id: str, wait: Wait) -> NewExecution:
        """What starts it.

        Raises:
            BlockExecutionError: it would lie too deep.
            NotFoundError: no such graph of this user.
            GraphValidationError: it cannot run with these inputs.
            LimitError: they are too large.
            BlobError: they cannot be kept.
        """
        if row.depth >= self._max_depth:
            raise BlockExecutionError(f"more than {self._max_depth} graphs inside each other: does one start itself?")
        call = wait.request
        stored = await self._graphs.get(row.user_id, call["graph_id"], call.get("graph_version"))
        masks = call.get("node_input_masks") or {}
        check_runnable(graph_of(stored), self._blocks, call["inputs"], masks)
        inputs = call["inputs"]
        if self._keeping is not None:
            values = self._keeping.of(row.user_id, child_id)
            inputs = await values.moved(inputs)
            masks = {node_id: await values.moved(pins) for node_id, pins in masks.items()}
        return NewExecution(
            id=child_id,
            user_id=row.user_id,
            graph_id=stored.id,
            graph_version=stored.version,
            inputs=to_json(inputs),
            created_at=self._clock.now(),
            epoch=new_epoch(),
            priority=row.priority,
            parent_id=row.id,
            parent_node_exec_id=run.id,
            depth=row.depth + 1,
            dry_run=row.dry_run,
            masks=to_json(masks) if masks else None,
        )
