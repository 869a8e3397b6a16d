"""The ExecutionStore port: the state of executions, written together with the events that tell of it.

Every method that changes state is one transaction that also writes the events of the change, numbered on the
execution's tape (execution contract: state and events cannot disagree). After the commit the store hands what it
wrote to `on_commit`, from where the relay publishes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from livetape.events.executions import ExecutionStatus
from livetape.events.log import NewEvent
from livetape.store.reviews import Decision, NewReview, ReviewRow


@dataclass(slots=True)
class ExecutionRow:
    """One execution. `inputs`, `stats` and `masks` (inputs by node) are JSON. Times are UTC.

    `depth` counts the executions above it. While it waits: `due_at` is when it may be claimed (None: at once),
    `ring_at` when its doorbell is taken for lost, `held` the concurrency limit that kept it back. `wakes` counts what
    has happened to it from outside: children that ended, reviews that were decided.
    """

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
    priority: int = 0
    forked_from: str | None = None
    parent_id: str | None = None
    parent_node_exec_id: str | None = None
    depth: int = 0
    deadline_at: datetime | None = None
    queue_deadline_at: datetime | None = None
    dry_run: bool = False
    cost: int = 0
    due_at: datetime | None = None
    ring_at: datetime | None = None
    held: str | None = None
    wakes: int = 0
    masks: bytes | None = None


@dataclass(slots=True)
class NodeRow:
    """One node execution. `seq` counts them within the execution, from 1. `inputs` is a JSON object `{pin: value}`.

    `output_name` is the name under which an OUTPUT block gives its value to the execution, None for others.
    `outputs` are `(name, value as JSON)` in the order in which they were yielded. `waits` and `effects` (JSON lists)
    are what it did once and for all, however often it is run. `stats` is JSON; `attempt` counts from 1.
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
    attempt: int = 1
    stats: bytes | None = None
    waits: bytes | None = None
    effects: bytes | None = None
    outputs: list[tuple[str, bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class NewExecution:
    """What a start writes.

    `queue_seconds`: it fails when nobody has claimed it by then. `nodes` are taken over from `forked_from`, with
    their outputs; `parent_node_exec_id` is the node execution of
    the parent that waits for it.
    """

    id: str
    user_id: str
    graph_id: str
    graph_version: int
    inputs: bytes
    created_at: datetime
    epoch: str
    priority: int = 0
    forked_from: str | None = None
    parent_id: str | None = None
    parent_node_exec_id: str | None = None
    depth: int = 0
    dry_run: bool = False
    queue_seconds: float | None = None
    masks: bytes | None = None
    nodes: Sequence[NodeRow] = ()


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
    """A new status of the execution itself.

    QUEUED or REVIEW parks it: everything in it waits, until `due_at` (None: until something wakes it). When more has
    happened to it than the `wakes` that its worker has seen, it is due at once.
    """

    status: ExecutionStatus
    status_reason: str | None
    stats: bytes
    started_at: datetime | None = None
    ended_at: datetime | None = None
    due_at: datetime | None = None
    wakes: int = 0
    cost: int = 0


@dataclass(slots=True)
class Step:
    """Everything that one commit of a worker writes, in the order of the fields.

    `touched` are node executions that exist and have a new status or times; `filled` those whose inputs grew.
    `progressed`: a node execution completed, so that earlier recoveries no longer count. `waits` are journals of node
    executions by `seq`; `children` are started and `reviews` opened unless they exist. `abandoned` are node
    executions that ended while they waited: what they started is stopped. `is_parent`: the execution may have
    children, which end with it.
    """

    execution_id: str
    lease_no: int
    progressed: bool = False
    created: list[NodeRow] = field(default_factory=list)
    filled: list[NodeRow] = field(default_factory=list)
    touched: list[NodeRow] = field(default_factory=list)
    outputs: list[NodeOutput] = field(default_factory=list)
    waits: dict[int, bytes] = field(default_factory=dict)
    children: list[NewExecution] = field(default_factory=list)
    reviews: list[NewReview] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    is_parent: bool = False
    change: ExecutionChange | None = None
    events: list[NewEvent] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.created
            or self.filled
            or self.touched
            or self.outputs
            or self.waits
            or self.change is not None
            or self.events
        )

    def follow(self, after: Step) -> None:
        """Write the step after this one in the same commit. A row is written once, as it is in the end."""
        created = {node.seq: place for place, node in enumerate(self.created)}
        for node in (*after.filled, *after.touched):
            if node.seq in created:
                self.created[created[node.seq]] = node
        self.filled = _newest(self.filled, after.filled, created)
        self.touched = _newest(self.touched, after.touched, created)
        self.created += after.created
        self.progressed = self.progressed or after.progressed
        self.outputs += after.outputs
        self.waits |= after.waits
        self.children += after.children
        self.reviews += after.reviews
        self.abandoned += after.abandoned
        self.is_parent = self.is_parent or after.is_parent
        self.change = after.change or self.change
        self.events += after.events


def _newest(before: list[NodeRow], after: list[NodeRow], created: Mapping[int, int]) -> list[NodeRow]:
    if not after:
        return before
    rows = {node.seq: node for node in (*before, *after) if node.seq not in created}
    return list(rows.values())


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


@dataclass(frozen=True, slots=True)
class ClaimLimits:
    """How many executions may run at once, of one user and of one of the user's graphs; how long one may run."""

    per_user: int | None = None
    per_graph: int | None = None
    run_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep found: executions taken from lost workers, rung again, and ended because their time was over."""

    recovered: Sequence[str] = ()
    rung: Sequence[str] = ()
    timed_out: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ChildOutcome:
    """How a child ended. `outputs` is what its OUTPUT blocks gave."""

    execution_id: str
    status: ExecutionStatus
    outputs: dict[str, list[Any]]
    error: str | None
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What those that an execution waits for have come to, as of `wakes`; only what is over."""

    wakes: int
    children: Sequence[ChildOutcome]
    reviews: Sequence[ReviewRow]


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """`depth` executions are due and not claimed, the oldest for `oldest_s` seconds."""

    depth: int
    oldest_s: float


class ExecutionStore(ABC):
    """Every write is conditional on the present status and, for workers, on the lease number.

    Zero rows changed means that somebody else was first: ConflictError or LeaseLostError, and nothing is written.
    Leases and time limits go by the database's clock.
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
    async def claim(
        self, execution_id: str, *, owner: str, lease_seconds: float, limits: ClaimLimits | None = None
    ) -> ExecutionRow | None:
        """Take a waiting execution that is due: RUNNING, a new lease number, the event of it.

        None when it cannot be taken: it does not wait or is not due, the queue is paused, or a limit holds it back.
        What a limit holds back is rung when a slot is free.
        """

    @abstractmethod
    async def commit(self, step: Step, row: ExecutionRow) -> None:
        """Write one step of the lease holder. `row` is what `claim` returned.

        A parking change of what was asked to stop ends it.

        Raises:
            LeaseLostError: the lease number is not current, or the status does not allow the change.
        """

    @abstractmethod
    async def effect(self, row: ExecutionRow, seq: int, place: int, unit: Callable[[Any], Any]) -> Any:
        """Run the unit on the database's connection, in one transaction with the record that it ran.

        `place` counts the effects of this node execution from 0. A unit whose place is recorded is not run again:
        the recorded result is returned. The result must be JSON. What the unit raises undoes everything.

        Raises:
            LeaseLostError
        """

    @abstractmethod
    def renew(self, owner: str, leases: Mapping[str, int], lease_seconds: float) -> Renewal:
        """Prolong these leases (`{execution: lease number}`) of this owner, ahead of all waiting writes.

        A lease that is over is not prolonged. Blocks; called from the renewer's thread.
        """

    @abstractmethod
    async def hand_back(self, execution_id: str, *, lease_no: int, reason: str) -> None:
        """RUNNING to QUEUED with its doorbell, by the lease holder (graceful stop). LeaseLostError as `commit`.

        What was asked to stop ends instead.
        """

    @abstractmethod
    async def request_cancel(self, execution_id: str, *, user_id: str) -> ExecutionRow:
        """Note the wish and tell of it, for it and everything that it started; what is not running becomes TERMINATED
        at once. Terminal: nothing changes. May be asked again.

        Raises:
            NotFoundError
        """

    @abstractmethod
    async def outcomes(self, execution_id: str, children: Sequence[str], reviews: Sequence[str]) -> Outcomes:
        """Which of these children have ended and which of these reviews are decided."""

    @abstractmethod
    async def reviews(
        self,
        user_id: str,
        *,
        execution_id: str | None = None,
        node_exec_id: str | None = None,
        waiting: bool = True,
        limit: int = 100,
    ) -> Sequence[ReviewRow]:
        """The user's reviews, oldest first; only those that wait for a decision unless `waiting` is false."""

    @abstractmethod
    async def decide(self, review_id: str, decision: Decision, *, user_id: str) -> ReviewRow:
        """Write the decision and wake the execution. The same decision again changes nothing.

        Raises:
            NotFoundError
            ConflictError: it was decided otherwise, is not waited for any more, or its data may not be edited.
        """

    @abstractmethod
    async def recover(self, *, expired_before: datetime | None) -> Sequence[str]:
        """Take executions away from workers that are gone: RUNNING with a lease that ended before this moment.

        None voids every lease (only for a process that holds the data folder alone). Each becomes QUEUED with a
        doorbell due after 0, 1, 5, 30, 120 s, by how often it was recovered without progress; the sixth time FAILED
        (`poison`). Returns the ids. Several processes may call it at once.
        """

    @abstractmethod
    async def release_owner(self, owner_prefix: str) -> Sequence[str]:
        """As `recover`, for every lease of the owners whose names begin so: their process is known to have exited."""

    @abstractmethod
    async def sweep(self, *, grace_seconds: float = 0) -> Swept:
        """Do for all processes what none does for itself any more; idempotent, for several processes at once.

        Recovers what has an expired lease; rings again what is due and was not claimed for a while; ends what waited
        or ran longer than it may (running ones `grace_seconds` later than their owner should have).
        """

    @abstractmethod
    async def pause(self, reason: str) -> None:
        """From when this returns nobody claims anything, until `resume`. What runs goes on."""

    @abstractmethod
    async def resume(self) -> None:
        """Let workers claim again."""

    @abstractmethod
    async def paused(self) -> str | None:
        """The reason while the queue is paused."""

    @abstractmethod
    async def figures(self) -> QueueFigures:
        """How much waits to be claimed."""

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

    async def published_all(self, tapes: Collection[str]) -> dict[str, int]:
        """`published` of each of these."""
        return {tape: await self.published(tape) for tape in tapes}

    @abstractmethod
    async def mark_published(self, upto: dict[str, int]) -> None:
        """`{tape: number}`: all up to there are out. Moves only forward."""
