"""Bodies of the routes that control executions: retries, webhooks, reviews, pauses. Names and fields of reviews are
those of the seed."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, Field
from pydantic_core import from_json

from livetape.api.bodies import Name
from livetape.engine.plain_text import Text


class RetryExecution(BaseModel):
    """Where to begin again: `from_node` and what lies downstream of it are run in any case."""

    from_node: Name | None = None


class ReviewItem(BaseModel):
    """One decision. `reviewed_data`, when it is there, replaces what was shown."""

    node_exec_id: Name
    approved: bool
    message: Annotated[Text, Field(max_length=10_000)] | None = None
    reviewed_data: Any = None
    auto_approve_future: bool = False


class ReviewRequest(BaseModel):
    """Decisions on reviews that wait."""

    reviews: Annotated[list[ReviewItem], Field(min_length=1, max_length=100)]


class ReviewResponse(BaseModel):
    """How many decisions were taken. `error` says what became of the first that was not."""

    approved_count: int
    rejected_count: int
    failed_count: int
    error: str | None = None


class Reviewed(Protocol):
    """A review, as the use cases know it."""

    @property
    def node_exec_id(self) -> str: ...

    @property
    def user_id(self) -> str: ...

    @property
    def execution_id(self) -> str: ...

    @property
    def graph_id(self) -> str: ...

    @property
    def payload(self) -> bytes: ...

    @property
    def instructions(self) -> str: ...

    @property
    def editable(self) -> bool: ...

    @property
    def status(self) -> str: ...

    @property
    def message(self) -> str: ...

    @property
    def created_at(self) -> datetime: ...

    @property
    def decided_at(self) -> datetime | None: ...


class PendingHumanReviewModel(BaseModel):
    """A review that waits for a person."""

    node_exec_id: str
    user_id: str
    graph_exec_id: str
    graph_id: str
    payload: Any
    instructions: str | None = None
    editable: bool
    status: Literal["WAITING", "APPROVED", "REJECTED"]
    review_message: str | None = None
    processed: bool = False
    created_at: datetime
    reviewed_at: datetime | None = None

    @classmethod
    def of(cls, review: Reviewed) -> PendingHumanReviewModel:
        return cls(
            node_exec_id=review.node_exec_id,
            user_id=review.user_id,
            graph_exec_id=review.execution_id,
            graph_id=review.graph_id,
            payload=from_json(review.payload),
            instructions=review.instructions or None,
            editable=review.editable,
            status="APPROVED"
            if review.status == "APPROVED"
            else "REJECTED"
            if review.status == "REJECTED"
            else "WAITING",
            review_message=review.message or None,
            processed=review.decided_at is not None,
            created_at=review.created_at,
            reviewed_at=review.decided_at,
        )


class PauseQueue(BaseModel):
    """Why nothing shall be begun for a while."""

    reason: Annotated[Text, Field(min_length=1, max_length=1_000)]


class QueueState(BaseModel):
    """The queue of executions: `depth` are due and not begun, the oldest for `oldest_seconds`; `paused` says why
    nothing is begun."""

    depth: int
    oldest_seconds: float
    paused: str | None
