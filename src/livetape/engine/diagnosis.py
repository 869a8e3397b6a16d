"""Why an execution does not move. Pure: what is known of it goes in, a finding comes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from livetape.events.executions import ExecutionStatus
from livetape.store.executions import ExecutionRow

PATIENCE_S: Final = 10.0
"""So long anything may take without being worth a word."""

WORKER_GONE: Final = "nobody sweeps: is a worker running?"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one execution that is not over. `timers`: when its waits are due."""

    row: ExecutionRow
    has_bell: bool = False
    children: Sequence[tuple[str, ExecutionStatus]] = ()
    reviews: Sequence[tuple[str, datetime]] = ()
    timers: Sequence[datetime] = ()
    parent: ExecutionStatus | None = None


@dataclass(frozen=True, slots=True)
class World:
    """What is known of everything. `bells_elsewhere`: doorbells go to a broker, where nobody can look for one."""

    now: datetime
    facts: Sequence[Facts]
    paused: str | None = None
    bells_elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """One execution that does not move. `is_fault`: it should; else it waits for what `why` says, as it should."""

    execution_id: str
    kind: str
    status: str
    since: datetime
    why: str
    fix: str = ""
    is_fault: bool = True


@dataclass(slots=True)
class _Running:
    """Who runs something now, with a lease that holds."""

    users: set[str] = field(default_factory=set)
    graphs: set[tuple[str, str]] = field(default_factory=set)


def findings(world: World) -> list[Finding]:
    """What does not move, the oldest first. What is being run, and what was queued just now, is not among it."""
    running = _Running()
    for facts in world.facts:
        row = facts.row
        if row.status is ExecutionStatus.RUNNING and row.lease_until is not None and row.lease_until >= world.now:
            running.users.add(row.user_id)
            running.graphs.add((row.user_id, row.graph_id))
    found = [finding for facts in world.facts if (finding := _look(facts, world, running)) is not None]
    return sorted(found, key=lambda one: (one.since, one.execution_id))


def faults(found: Iterable[Finding]) -> list[Finding]:
    """Those that should move."""
    return [finding for finding in found if finding.is_fault]


def _look(facts: Facts, world: World, running: _Running) -> Finding | None:
    row = facts.row
    if facts.parent is not None and facts.parent.is_terminal:
        why = f"its parent {row.parent_id} is {facts.parent.value}, and nothing may outlive its parent"
        return _of(facts, "orphan", row.created_at, why, f"stop it: livetape executions stop {row.id}")
    if row.status is ExecutionStatus.RUNNING:
        return _running(facts, world)
    return _waiting(facts, world, running)


def _running(facts: Facts, world: World) -> Finding | None:
    row, now = facts.row, world.now
    late = timedelta(seconds=PATIENCE_S)
    if row.lease_until is None or row.lease_until < now - late:
        since = row.lease_until or row.created_at
        return _of(facts, "worker_lost", since, f"the lease of worker {row.lease_owner} is over", WORKER_GONE)
    if row.deadline_at is not None and row.deadline_at < now - 3 * late:
        why = f"its time was over, and worker {row.lease_owner} has not ended it"
        return _of(facts, "overdue", row.deadline_at, why, WORKER_GONE)
    if row.cancel_requested:
        why = f"it shall stop; worker {row.lease_owner} waits for a block that does not end"
        return _of(facts, "stopping", row.started_at or row.created_at, why, is_fault=False)
    return None


def _waiting(facts: Facts, world: World, running: _Running) -> Finding | None:
    row, now = facts.row, world.now
    due = row.due_at or row.created_at
    if row.status_reason == "waiting":
        return _parked(facts, world, due)
    if world.paused is not None:
        fix = "DELETE /api/queue/pause, when it may go on"
        return _of(facts, "paused", due, f"the queue is paused: {world.paused}", fix, is_fault=False)
    if row.held is not None:
        busy = row.user_id in running.users if row.held == "user" else (row.user_id, row.graph_id) in running.graphs
        whose = "the user's" if row.held == "user" else "the graph's"
        if busy:
            return _of(facts, "held", due, f"{whose} limit of executions at once is reached", is_fault=False)
        why = f"it was kept back for {whose} limit of executions at once, and none of them runs"
        return _of(facts, "held_for_nothing", due, why, WORKER_GONE)
    if due > now:
        why = f"recovered {row.recoveries} times without progress; tried again at {due:%H:%M:%S}"
        return _of(facts, "back_off", row.started_at or row.created_at, why, is_fault=False)
    if now - due < timedelta(seconds=PATIENCE_S):
        return None
    return _unclaimed(facts, world, due)


def _unclaimed(facts: Facts, world: World, due: datetime) -> Finding:
    if facts.has_bell:
        why = "its doorbell waits, and no worker takes it"
        return _of(facts, "no_worker", due, why, "start workers, or give them more slots")
    if world.bells_elsewhere:
        why = "no worker has claimed it; its doorbell was given to the broker"
        return _of(facts, "no_worker", due, why, "look at the broker's queue and its consumers")
    return _of(facts, "doorbell_lost", due, "it is queued, and there is no doorbell for it", WORKER_GONE)


def _parked(facts: Facts, world: World, due: datetime) -> Finding | None:
    row, now = facts.row, world.now
    late = now - due > timedelta(seconds=PATIENCE_S)
    if due <= now:
        return _unclaimed(facts, world, due) if late and world.paused is None else None
    ended = [child for child, status in facts.children if status.is_terminal]
    open_children = [child for child, status in facts.children if not status.is_terminal]
    since = row.started_at or row.created_at
    if facts.reviews:
        asked = min(at for _, at in facts.reviews)
        why = f"{len(facts.reviews)} review(s) wait for a person: {', '.join(name for name, _ in facts.reviews[:3])}"
        return _of(facts, "review", asked, why, "decide them: POST /api/review/action", is_fault=False)
    if open_children:
        return _of(facts, "child", since, f"waits for {', '.join(open_children[:3])}", is_fault=False)
    if facts.timers:
        return _of(facts, "timer", since, f"waits until {min(facts.timers):%Y-%m-%d %H:%M:%S} UTC", is_fault=False)
    if ended:
        why = f"it waits for {', '.join(ended[:3])}, which ended without waking it"
        return _of(facts, "wake_lost", since, why, "stop it, then retry it")
    why = "it waits, and for nothing that is known"
    return _of(facts, "waits_for_nothing", since, why, f"stop it: livetape executions stop {row.id}")


def _of(facts: Facts, kind: str, since: datetime, why: str, fix: str = "", *, is_fault: bool = True) -> Finding:
    return Finding(facts.row.id, kind, facts.row.status.value, since, why, fix, is_fault)
