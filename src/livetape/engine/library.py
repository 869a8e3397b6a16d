"""The use cases of graphs: what the API and the command line do with them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from livetape.clock import Clock, IdFactory
from livetape.engine.block import BlockRegistry
from livetape.engine.graph import Graph, GraphMeta, GraphModel
from livetape.engine.validation import check_structure, input_schema, output_schema
from livetape.errors import ConflictError
from livetape.store.graphs import GraphRow, GraphStore


async def nobody(_user_id: str, _graph_id: str) -> None:
    """Where tapes are read is where they are written: there is nobody to announce them to."""


class Graphs:
    """Stores and shows graphs. Versions are immutable; every change is a new one.

    `announce` makes the tape of a new one known where it is read, and raises nothing that could be waited out.
    """

    def __init__(
        self,
        store: GraphStore,
        blocks: BlockRegistry,
        *,
        clock: Clock,
        new_id: IdFactory,
        announce: Callable[[str, str], Awaitable[None]] = nobody,
    ) -> None:
        self._store = store
        self._blocks = blocks
        self._clock = clock
        self._new_id = new_id
        self._announce = announce

    async def create(self, user_id: str, graph: Graph) -> GraphModel:
        """Store it as version 1 with new ids for the graph, its nodes and links.

        Raises:
            GraphValidationError: it can never be followed; `node_errors` names the nodes as they were sent.
        """
        check_structure(graph, self._blocks)
        fresh = _with_new_ids(graph, self._new_id(), self._new_id)
        row = _row(fresh.model_copy(update={"version": 1}), user_id, self._clock.now())
        await self._store.create(row)
        await self._announce(user_id, row.id)
        return self._model(row)

    async def install(self, user_id: str, graph: Graph) -> bool:
        """Store it under its own id, as it is, unless it is there. For examples that come with the program."""
        check_structure(graph, self._blocks)
        try:
            await self._store.create(_row(graph.model_copy(update={"version": 1}), user_id, self._clock.now()))
        except ConflictError:
            return False
        await self._announce(user_id, graph.id)
        return True

    async def update(self, user_id: str, graph_id: str, graph: Graph) -> GraphModel:
        """Store it as the next version, active if `graph.is_active`.

        Raises:
            GraphValidationError
            NotFoundError
        """
        check_structure(graph, self._blocks)
        fresh = _with_new_ids(graph, graph_id, self._new_id)
        row = await self._store.add_version(_row(fresh, user_id, self._clock.now()))
        return self._model(row)

    async def get(self, user_id: str, graph_id: str, version: int | None = None) -> GraphModel:
        """That version, or the active one. Raises NotFoundError."""
        return self._model(await self._store.get(user_id, graph_id, version))

    async def list(self, user_id: str) -> list[GraphMeta]:
        """The user's active graphs, newest first, at most 250."""
        return [_meta(row) for row in await self._store.list(user_id)]

    async def versions(self, user_id: str, graph_id: str) -> Sequence[GraphModel]:
        """All versions, newest first. Raises NotFoundError."""
        return [self._model(row) for row in await self._store.versions(user_id, graph_id)]

    async def set_active(self, user_id: str, graph_id: str, version: int) -> None:
        """Make this the active version. Raises NotFoundError."""
        await self._store.set_active(user_id, graph_id, version)

    async def delete(self, user_id: str, graph_id: str) -> int:
        """Forget all versions and return how many. Raises NotFoundError."""
        return await self._store.delete(user_id, graph_id)

    def _model(self, row: GraphRow) -> GraphModel:
        graph = graph_of(row)
        return GraphModel(
            **graph.model_dump(),
            user_id=row.user_id,
            created_at=row.created_at,
            input_schema=input_schema(graph, self._blocks),
            output_schema=output_schema(graph, self._blocks),
        )


def graph_of(row: GraphRow) -> Graph:
    """The graph in a stored row. What changes after storing (version, active) is taken from the row."""
    graph = Graph.model_validate_json(row.body)
    return graph.model_copy(update={"id": row.id, "version": row.version, "is_active": row.is_active})


def _row(graph: Graph, user_id: str, now: datetime) -> GraphRow:
    return GraphRow(
        id=graph.id,
        version=graph.version,
        user_id=user_id,
        name=graph.name,
        description=graph.description,
        is_active=graph.is_active,
        body=graph.model_dump_json().encode(),
        created_at=now,
    )


def _meta(row: GraphRow) -> GraphMeta:
    graph = graph_of(row)
    kept: Mapping[str, Any] = graph.model_dump(exclude={"nodes", "links"})
    return GraphMeta(**kept, user_id=row.user_id, created_at=row.created_at)


def _with_new_ids(graph: Graph, graph_id: str, new_id: IdFactory) -> Graph:
    ids = {node.id: new_id() for node in graph.nodes}
    return graph.model_copy(
        update={
            "id": graph_id,
            "nodes": [node.model_copy(update={"id": ids[node.id]}) for node in graph.nodes],
            "links": [
                link.model_copy(update={"id": new_id(), "source_id": ids[link.source_id], "sink_id": ids[link.sink_id]})
                for link in graph.links
            ],
        }
    )
