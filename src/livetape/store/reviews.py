"""Reviews: what a node execution asks a person, and what the person decides."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class ReviewStatus(StrEnum):
    """Where a review stands. CANCELLED: the execution ended before anybody decided."""

    WAITING = "WAITING"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class NewReview:
    """What is asked. `payload` is JSON; `number` is that of the wait in its node execution."""

    id: str
    node_exec_id: str
    number: int
    payload: bytes
    instructions: str
    editable: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """`payload` (JSON) replaces what was shown, when it may be edited. None leaves it."""

    approved: bool
    message: str = ""
    payload: bytes | None = None


@dataclass(frozen=True, slots=True)
class ReviewRow:
    """One review. `payload` is JSON, as it was left by whoever decided."""

    id: str
    user_id: str
    graph_id: str
    execution_id: str
    node_exec_id: str
    seq: int
    payload: bytes
    instructions: str
    editable: bool
    status: ReviewStatus
    created_at: datetime
    decided_by: str | None
    decided_at: datetime | None
    message: str
