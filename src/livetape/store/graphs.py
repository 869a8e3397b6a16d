"""The GraphStore port: immutable versions of graphs, owned by users."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class GraphRow:
    """One version of a graph. `body` is its JSON (`engine.graph.Graph`), never interpreted by the store."""

    id: str
    version: int
    user_id: str
    name: str
    description: str
    is_active: bool
    body: bytes
    created_at: datetime


class GraphStore(ABC):
    """Ownership is part of every query: another user's graph is simply not found."""

    @abstractmethod
    async def create(self, row: GraphRow) -> None:
        """Store version 1 and make the graph's tape, in one transaction. Raises ConflictError if the id exists."""

    @abstractmethod
    async def add_version(self, row: GraphRow) -> GraphRow:
        """Store the next version (`row.version` is ignored); it becomes the active one if `row.is_active`.

        Raises:
            NotFoundError: no such graph of this user.
        """

    @abstractmethod
    async def get(self, user_id: str, graph_id: str, version: int | None = None) -> GraphRow:
        """That version; without one the active version, or the newest when none is active.

        Raises:
            NotFoundError
        """

    @abstractmethod
    async def list(self, user_id: str, *, limit: int = 250) -> Sequence[GraphRow]:
        """One row per graph that has an active version, newest graph first. `body` is empty."""

    @abstractmethod
    async def versions(self, user_id: str, graph_id: str) -> Sequence[GraphRow]:
        """All versions, newest first. Raises NotFoundError."""

    @abstractmethod
    async def set_active(self, user_id: str, graph_id: str, version: int) -> None:
        """Make this the only active version. Raises NotFoundError."""

    @abstractmethod
    async def delete(self, user_id: str, graph_id: str) -> int:
        """Forget all versions; returns how many. Executions stay. Raises NotFoundError."""

    @abstractmethod
    async def count(self) -> int:
        """How many graphs there are."""
