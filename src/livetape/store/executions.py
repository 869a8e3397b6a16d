"""The ExecutionStore port: the state of executions, written together with the events that tell of it.

Every method that changes state is one transaction that also writes the events of the change, numbered on the
execution's tape (execution contract: state and events cannot disagree). After the commit the store hands what it
wrote to `on_commit`, from where the relay publishes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from livetape.events.executions import ExecutionStatus
from livetape.events.log import NewEvent


@dataclass(slots=True)
class ExecutionRow:
    """One execution. `inputs` and `stats` are JSON. Times are UTC."""

    id: str
    user_id: str
    graph_id: str
    graph_version: int
    status: ExecutionStatus
    status_reason: str | None
    inputs: bytes
    stats: bytes
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    cancel_requested: bool
    lease_owner: str | None
    lease_no: int
    lease_until: datetime | None
    recoveries: int
    tape_id: int
    epoch: str


@dataclass(slots=True)
class NodeRow:
    """One node execution. `seq` counts them within the execution, from 1. `inputs` is a JSON object `{pin: value}`.

    `output_name` is the name under which an OUTPUT block gives its value to the execution, None for others.
    `outputs` are `(name, value as JSON)` in the order in which they were yielded.
    """

    id: str
    seq: int
    node_id: str
    block_id: str
    status: ExecutionStatus
    status_reason: str | None
    inputs: bytes
    output_name: str | None
    add_time: datetime
    queue_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    outputs: list[tuple[str, bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class NewExecution:
    """What a start writes. `event` is the first event of its tape."""

    id: str
    user_id: str
    graph_id: str
    graph_version: int
    inputs: bytes
    created_at: datetime
    epoch: str


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's key for one command, valid 24 hours per user; `fingerprint` tells whether the body is the same."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class NodeOutput:
    """One yielded value, as JSON. `index` counts from 0 within the node execution."""

    seq: int
    index: int
    name: str
    value: bytes


@dataclass(frozen=True, slots=True)
class ExecutionChange:
    """A new status of the execution itself, allowed only from `sources`."""

    status: ExecutionStatus
    status_reason: str | None
    stats: bytes
    started_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(slots=True)
class Step:
    """Everything that one commit of a worker writes, in the order of the fields.

    `touched` are node executions that exist and have a new status or times; `filled` those whose inputs grew.
    `progressed`: a node execution completed, so that earlier recoveries no longer count.
    """

    execution_id: str
    lease_no: int
    progressed: bool = False
    created: list[NodeRow] = field(default_factory=list)
    filled: list[NodeRow] = field(default_factory=list)
    touched: list[NodeRow] = field(default_factory=list)
    outputs: list[NodeOutput] = field(default_factory=list)
    change: ExecutionChange | None = None
    events: list[NewEvent] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.created or self.filled or self.touched or self.outputs or self.change is not None or self.events
        )


@dataclass(frozen=True, slots=True)
class Committed:
    """Events that a commit wrote: `events[0]` has the number `first`."""

    tape: str
    channel: str
    epoch: str
    graph_id: str
    execution_id: str
    first: int
    events: Sequence[NewEvent]


class CommitListener(Protocol):
    """Called after the commit, in the event loop of the caller, in the order of the commits of one execution."""

    def __call__(self, committed: Committed) -> None: ...


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a worker learns when it renews: the executions that are still its own, and which of them to cancel."""

    held: frozenset[str]
    cancelled: frozenset[str]


class ExecutionStore(ABC):
    """Every write is conditional on the present status and, for workers, on the lease number.

    Zero rows changed means that somebody else was first: ConflictError or LeaseLostError, and nothing is written.
    """

    @abstractmethod
    async def start(self, new: NewExecution, *, idempotency: IdempotencyKey | None = None) -> tuple[ExecutionRow, bool]:
        """Create it QUEUED with its tape, its first event and its doorbell.

        Returns the row and whether it is the replay of an earlier start with the same key.

        Raises:
            ConflictError: the same key with another fingerprint (context `reason="idempotency"`).
        """

    @abstractmethod
    async def get(self, execution_id: str, *, user_id: str | None = None) -> ExecutionRow:
        """Raises NotFoundError, also when it belongs to another user than `user_id`."""

    @abstractmethod
    async def list(
        self, user_id: str, *, graph_id: str | None = None, limit: int = 25, offset: int = 0
    ) -> tuple[Sequence[tuple[ExecutionRow, int]], int]:
        """Newest first, each with the newest number of its tape as of that state; and how many there are in all."""

    @abstractmethod
    async def nodes(self, execution_id: str, *, with_outputs: bool = True) -> Sequence[NodeRow]:
        """In the order of `seq`."""

    @abstractmethod
    async def claim(self, execution_id: str, *, owner: str, lease_seconds: float) -> ExecutionRow | None:
        """Take a QUEUED execution: RUNNING, a new lease number, the event of it. None when it cannot be taken."""

    @abstractmethod
    async def commit(self, step: Step, row: ExecutionRow) -> None:
        """Write one step of the lease holder. `row` is what `claim` returned.

        Raises:
            LeaseLostError: the lease number is not current, or the status does not allow the change.
        """

    @abstractmethod
    def renew(self, owner: str, execution_ids: Sequence[str], lease_seconds: float) -> Renewal:
        """Prolong the leases of this owner on these executions, ahead of all waiting writes.

        Blocks; called from the renewer's thread.
        """

    @abstractmethod
    async def hand_back(self, execution_id: str, *, lease_no: int, reason: str) -> None:
        """RUNNING to QUEUED with its doorbell, by the lease holder (graceful stop). LeaseLostError as `commit`."""

    @abstractmethod
    async def request_cancel(self, execution_id: str, *, user_id: str) -> ExecutionRow:
        """Note the wish and tell of it; what is not running becomes TERMINATED at once. Terminal: nothing changes.

        Raises:
            NotFoundError
        """

    @abstractmethod
    async def recover(self, *, expired_before: datetime | None) -> Sequence[str]:
        """Take executions away from workers that are gone: RUNNING with a lease that ended before this moment.

        None voids every lease (only for a process that holds the data folder alone). Each becomes QUEUED with a
        doorbell due after 0, 1, 5, 30, 120 s, by how often it was recovered without progress; the sixth time FAILED
        (`poison`). Returns the ids. One idempotent transaction: several processes may call it at once.
        """

    @abstractmethod
    async def counts(self) -> dict[ExecutionStatus, int]:
        """How many executions there are of each status."""


class TapeRelayStore(ABC):
    """What the relay needs: which tapes have events that were committed but not published."""

    @abstractmethod
    async def unpublished(self, *, limit: int = 1000) -> Sequence[Committed]:
        """Tapes with unpublished events (`events` empty, `first` the number of the first of them)."""

    @abstractmethod
    async def published(self, tape: str) -> int:
        """The number up to which this tape was marked; 0 when nothing is known of it."""

    @abstractmethod
    async def mark_published(self, upto: dict[str, int]) -> None:
        """`{tape: number}`: all up to there are out. Moves only forward."""
