"""Every judgement of what is bounded, on histories that were doctored to break it, beside the same ones unbroken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from livetape.engine.waiting import FIRST_ASK
from livetape.store.executions import ClaimLimits
from simulation.database import Change
from simulation.invariants import Judge, fork_key
from simulation.test_invariants import SECOND, Tale, bell, graph, node, node_event, row
from simulation.world import BEGIN_US

ONE = ClaimLimits(per_user=1)
ONE_OF_A_GRAPH = ClaimLimits(per_graph=1)


def broken(judge: Judge) -> list[str]:
    return [violation.said for violation in judge.violations if violation.invariant == 0]


def paused(*, gone: bool = False) -> Change:
    columns = {"name": "run"}
    return Change("queue_pause", columns if gone else None, None if gone else columns)


def second(tale: Tale, graph_id: str, **values: Any) -> None:
    """Another execution is claimed beside the first."""
    queued = row("QUEUED", id="y", lease_no=0, graph_id=graph_id, **values)
    running = row(id="y", graph_id=graph_id, **values)
    events = [graph(1, "QUEUED", key="l", of="y"), graph(2, "RUNNING", key="l", of="y")]
    for change in events:
        assert change.after is not None
        change.after["tape_id"] = 2
    tale.tell("a0", "start", Change("execution", None, queued), events[0])
    tale.tell("w0", "claim", Change("execution", queued, running), events[1])


def first(tale: Tale) -> None:
    tale.tell("w0", "claim", tale.becomes(row(graph_id="g")), graph(2, "RUNNING"))


@pytest.mark.parametrize(
    ("limits", "graph_id", "may"),
    [
        (ONE, "g", False),
        (ONE, "h", False),
        (ONE_OF_A_GRAPH, "g", False),
        (ONE_OF_A_GRAPH, "h", True),
        (ClaimLimits(per_user=2), "g", True),
    ],
)
def test_no_more_run_than_may(limits: ClaimLimits, graph_id: str, may: bool) -> None:
    judge = Judge(limits=limits)
    tale = Tale(judge)
    first(tale)
    second(tale, graph_id)
    assert bool(broken(judge)) is not may


def test_nothing_is_claimed_while_the_queue_is_paused() -> None:
    judge = Judge()
    tale = Tale(judge)
    tale.tell("a0", "pause", paused())
    tale.tell("a0", "resume", paused(gone=True))
    assert not judge.bounds.paused
    tale.tell("a0", "pause", paused())
    tale.claimed()
    assert broken(judge) == ["it was claimed while the queue was paused"]


@pytest.mark.parametrize(("at", "may"), [(20.0, True), (9.0, False)])
def test_nothing_times_out_before_its_time(at: float, may: bool) -> None:
    ends = BEGIN_US + 10 * SECOND
    judge = Judge()
    tale = Tale(judge)
    tale.tell("w0", "claim", tale.becomes(row(deadline_at=ends)), graph(2, "RUNNING"))
    over = tale.becomes(row("FAILED", status_reason="timeout", deadline_at=ends))
    tale.tell("w0", "commit", over, graph(3, "FAILED"), lease=1, at=at)
    assert bool(broken(judge)) is not may
    assert judge.bounds.seen["run_timeout"] == 1


def test_what_was_begun_has_not_waited_too_long() -> None:
    judge = Judge()
    tale = Tale(judge)
    tale.last = row("QUEUED", lease_no=0, started_at=BEGIN_US, queue_deadline_at=BEGIN_US + SECOND)
    over = tale.becomes(row("FAILED", lease_no=0, status_reason="timeout"))
    tale.tell("w0", "sweep", over, graph(2, "FAILED"), at=5.0)
    assert broken(judge) == ["it had begun, and timed out as if it had not"]


def test_what_runs_too_long_is_ended() -> None:
    judge = Judge()
    tale = Tale(judge)
    tale.tell("w0", "claim", tale.becomes(row(deadline_at=BEGIN_US + 10 * SECOND)), graph(2, "RUNNING"))
    judge.patience(50.0, 0.0, 200.0, 45.0)
    assert not broken(judge)
    judge.patience(60.0, 0.0, 200.0, 45.0)
    assert broken(judge) == ["it runs 50.0 s longer than it may"]


def review(node_exec_id: str, status: str) -> Change:
    columns = {"id": "r", "node_exec_id": node_exec_id, "seq": FIRST_ASK + 1}
    before = None if status == "WAITING" else {**columns, "status": "WAITING"}
    return Change("review", before, {**columns, "status": status})


@pytest.mark.parametrize(
    ("on_interrupt", "decided", "may"),
    [
        ("rerun", "", True),
        ("fail", "", False),
        ("ask", "", False),
        ("ask", "REJECTED", False),
        ("ask", "APPROVED", True),
    ],
)
def test_what_was_interrupted_runs_again_if_its_block_allows_it(on_interrupt: str, decided: str, may: bool) -> None:
    judge = Judge()
    tale = Tale(judge).claimed().ran()
    judge.block_began(1.0, "w0", "x", "n1", on_interrupt)
    assert not broken(judge)
    tale.tell("w0", "commit", review("n1", "WAITING"))
    if decided:
        tale.tell("a0", "decide", review("n1", decided))
    judge.block_began(2.0, "w0", "x", "n1", on_interrupt)
    assert bool(broken(judge)) is not may


@pytest.mark.parametrize(("awake_s", "may"), [(9.0, False), (0.5, True)])
def test_a_block_does_nothing_after_the_end_of_its_time(awake_s: float, may: bool) -> None:
    judge = Judge()
    Tale(judge).claimed().ran()
    judge.block_began(1.0, "w0", "x", "n1")
    judge.block_acted(4.0, "w0", "x", "n1", awake_s, 3.0)
    assert not broken(judge)
    judge.block_acted(9.0, "w0", "x", "n1", awake_s, 3.0)
    assert bool(broken(judge)) is not may


@pytest.mark.parametrize(("status", "may"), [("COMPLETED", True), ("RUNNING", False)])
def test_a_fork_takes_over_from_what_is_over(status: str, may: bool) -> None:
    judge = Judge()
    tale = Tale(judge).claimed().ran()
    if status == "COMPLETED":
        tale.completed()
    change = Change("execution", None, row("QUEUED", id="y", lease_no=0, forked_from="x"))
    told = [node_event(1, "COMPLETED", "m1"), graph(2, "QUEUED", of="y")]
    for one in told:
        assert one.after is not None
        one.after["tape_id"] = 2
    taken = Change("node_execution", None, {"execution_id": "y", "seq": 1, "id": "m1", "status": "COMPLETED"})
    name = Change("tape", None, {"id": 2, "name": "execution_events:y", "last_number": 2, "fence": None})
    tale.tell("a0", "start", name, change, taken, *told)
    assert [violation.said for violation in judge.violations] == ([] if may else [broken(judge)[0]])
    assert judge.executions["y"].nodes[1].taken_over
    assert judge.executions["y"].key == fork_key("x")


def test_a_fork_begins_with_what_was_done() -> None:
    judge = Judge()
    judge.bounds.forked("y", ["a", "a"], ["a", "b", "a"])
    assert not broken(judge)
    judge.bounds.forked("y", ["a", "b", "b"], ["a", "b"])
    assert broken(judge) == ["it begins with what was not done: b"]


def waits_for_a_pause(tale: Tale) -> None:
    tale.tell("a0", "pause", paused())


def waits_for_a_slot(tale: Tale) -> None:
    second(tale, "g")


@pytest.mark.parametrize("why", [waits_for_a_pause, waits_for_a_slot], ids=lambda why: why.__name__)
def test_what_may_not_be_claimed_is_not_stuck(why: Callable[[Tale], None]) -> None:
    judge = Judge(limits=ONE)
    tale = Tale(judge)
    why(tale)
    judge.patience(100.0, 0.0, 60.0, 60.0)
    assert "x" not in {violation.of for violation in judge.violations}


def test_what_may_be_claimed_again_is_stuck_when_nobody_does() -> None:
    judge = Judge()
    tale = Tale(judge)
    tale.tell("a0", "pause", paused())
    tale.tell("a0", "resume", paused(gone=True), at=50.0)
    judge.patience(100.0, 0.0, 60.0, 60.0)
    assert not judge.violations
    judge.patience(120.0, 0.0, 60.0, 60.0)
    assert [violation.invariant for violation in judge.violations] == [5]


def test_what_a_limit_holds_back_needs_no_doorbell() -> None:
    judge = Judge()
    tale = Tale(judge)
    tale.tell("w0", "claim", tale.becomes(row("QUEUED", lease_no=0, held="user")))
    tale.tell("w0", "ack", bell(1, gone=True))
    assert not judge.violations
    assert judge.bounds.seen["held_by_user"] == 1
    tale.tell("w1", "commit", tale.becomes(row("QUEUED", lease_no=0)), bell(2))
    tale.tell("w0", "ack", bell(2, gone=True))
    assert [violation.invariant for violation in judge.violations] == [10]


def test_ends_of_nodes_are_counted_by_their_reason() -> None:
    judge = Judge()
    tale = Tale(judge).claimed().ran()
    for seq, reason in enumerate(("timeout", "worker_lost", "block_error"), 2):
        failed = node("RUNNING", "FAILED", seq)
        assert failed.after is not None
        failed.after["status_reason"] = reason
        tale.tell("w0", "commit", failed, node_event(2 + seq, "FAILED", f"n{seq}"), lease=1)
    assert +judge.bounds.seen == {"node_timeout": 1, "interrupted_fails": 1}


def booked(node_exec_id: str, *, again: bool = False) -> Change:
    columns = {"user_id": "x", "key": node_exec_id}
    return Change("key_value", columns if again else None, columns)


def test_a_transaction_of_a_block_is_run_once() -> None:
    judge = Judge()
    tale = Tale(judge).claimed().ran()
    tale.tell("w0", "effect", booked("n1"))
    judge.bounds.booked("x", ["n1"])
    assert not broken(judge)
    judge.bounds.booked("x", ["n2"])
    tale.tell("w0", "effect", booked("n1", again=True))
    assert broken(judge) == ["the transaction of n2 is lost", "the transaction of n1 was run again"]
