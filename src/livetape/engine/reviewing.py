"""The use cases of reviews: what waits for a person, and what the person decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json, to_json

from livetape.engine.large_values import Keeping
from livetape.errors import ConflictError, NotFoundError
from livetape.store.executions import ExecutionStore
from livetape.store.reviews import Decision, ReviewRow, ReviewStatus


class Reviews:
    """Every method sees only the user's own."""

    def __init__(self, store: ExecutionStore, keeping: Keeping | None = None) -> None:
        self._store = store
        self._keeping = keeping

    async def waiting(self, user_id: str, *, page: int = 1, page_size: int = 25) -> Sequence[ReviewRow]:
        """What waits for a decision, oldest first."""
        found = await self._store.reviews(user_id, limit=page * page_size)
        return found[(page - 1) * page_size :]

    async def of_execution(self, user_id: str, graph_exec_id: str) -> Sequence[ReviewRow]:
        """What waits for a decision in this execution. Raises NotFoundError."""
        await self._store.get(graph_exec_id, user_id=user_id)
        return await self._store.reviews(user_id, execution_id=graph_exec_id)

    async def decide(
        self,
        user_id: str,
        node_exec_id: str,
        *,
        approved: bool,
        message: str = "",
        edited: Any = None,
        is_edited: bool = False,
    ) -> ReviewRow:
        """Decide what this node execution asks now; the execution goes on. The same decision again changes nothing.

        `is_edited`: `edited` stands in place of what was shown (None is data, too).

        Raises:
            NotFoundError: it asks nothing.
            ConflictError: it was decided otherwise, or its data may not be edited.
            LimitError: the edited data is too large.
            BlobUnavailableError: it is large, and cannot be kept now.
        """
        asked = await self._store.reviews(user_id, node_exec_id=node_exec_id, waiting=False)
        if not asked:
            raise NotFoundError(f"Node execution #{node_exec_id} asks for no review.")
        # the one that waits, else the newest: who asks twice is answered as the first time
        review = next((one for one in asked if one.status is ReviewStatus.WAITING), asked[-1])
        if review.status is ReviewStatus.CANCELLED:
            raise ConflictError("the execution ended before this was decided")
        payload = await self._kept(review, edited) if is_edited else None
        return await self._store.decide(review.id, Decision(approved, message, payload), user_id=user_id)

    async def _kept(self, review: ReviewRow, edited: Any) -> bytes:
        """As the row is to have it. Who sends the pointer that was shown, or what it leads to, edits nothing."""
        if self._keeping is None or edited == from_json(review.payload):
            return to_json(edited)
        return to_json(await self._keeping.of(review.user_id, review.execution_id).move(edited))
