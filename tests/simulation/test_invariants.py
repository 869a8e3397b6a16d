"""Every judgement, on histories that were doctored to break it, beside the same history unbroken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic_core import to_json

from simulation.database import Change, Commit
from simulation.invariants import Judge
from simulation.world import BEGIN_US

SECOND = 1_000_000


def row(status: str = "RUNNING", **values: Any) -> dict[str, Any]:
    made = {
        "id": "x",
        "status": status,
        "status_reason": None,
        "lease_owner": "w0" if status == "RUNNING" else None,
        "lease_no": 1,
        "lease_until": BEGIN_US + 15 * SECOND if status == "RUNNING" else None,
        "cancel_requested": 0,
        "due_at": None,
    }
    return made | values


def graph(number: int, status: str, *, key: str = "k", final: bool | None = None, of: str = "x") -> Change:
    payload = to_json({"id": of, "status": status, "status_reason": None, "inputs": {"value": {"key": key}}})
    ends = status in {"COMPLETED", "FAILED", "TERMINATED"} if final is None else final
    return event(number, "graph_execution_update", payload, final=ends)


def node_event(number: int, status: str, node: str = "n1") -> Change:
    return event(number, "node_execution_update", to_json({"node_exec_id": node, "status": status, "output_data": {}}))


def output_event(number: int, node: str = "n1") -> Change:
    return event(number, "node_output_update", to_json({"node_exec_id": node, "name": "out", "value": 1}))


def event(number: int, kind: str, payload: bytes, *, final: bool = False) -> Change:
    after = {"tape_id": 1, "number": number, "event_type": kind, "payload": payload, "final": int(final)}
    return Change("event", None, after)


def node(before: str | None, after: str, seq: int = 1) -> Change:
    columns = {"execution_id": "x", "seq": seq, "id": f"n{seq}"}
    return Change("node_execution", {**columns, "status": before} if before else None, {**columns, "status": after})


def output(seq: int = 1, position: int = 0) -> Change:
    return Change("node_output", None, {"execution_id": "x", "seq": seq, "position": position})


def bell(number: int, *, gone: bool = False) -> Change:
    columns = {"id": number, "graph_exec_id": "x", "taken": 0}
    return Change("doorbell", columns if gone else None, None if gone else columns)


class Tale:
    """A history in the making. It begins with an execution that is QUEUED."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.now = 0.0
        self.last = row("QUEUED", lease_no=0)
        self.tell("a0", "start", Change("execution", None, self.last), graph(1, "QUEUED"), bell(1))

    def tell(self, host: str, operation: str, *changes: Change, lease: int | None = None, at: float = 1.0) -> None:
        self.now = max(self.now, at)
        self.judge.committed(Commit(self.now, host, operation, None if lease is None else "x", lease, list(changes)))

    def becomes(self, after: dict[str, Any]) -> Change:
        before, self.last = self.last, after
        return Change("execution", before, after)

    def claimed(self, host: str = "w0", lease_no: int = 1, number: int = 2, at: float = 1.0) -> Tale:
        until = BEGIN_US + round((at + 15) * SECOND)
        after = row(lease_owner=host, lease_no=lease_no, lease_until=until)
        self.tell(host, "claim", self.becomes(after), graph(number, "RUNNING"), at=at)
        return self

    def ran(self) -> Tale:
        self.tell("w0", "commit", node(None, "RUNNING"), node_event(3, "RUNNING"), lease=1)
        return self

    def completed(self) -> Tale:
        changes = [output(), output_event(4), node("RUNNING", "COMPLETED"), node_event(5, "COMPLETED")]
        self.tell("w0", "commit", *changes, self.becomes(row("COMPLETED")), graph(6, "COMPLETED"), lease=1, at=2.0)
        return self


def sound(tale: Tale) -> None:
    tale.claimed().ran().completed()
    tale.tell("w0", "ack", bell(1, gone=True))


def stale_write(tale: Tale) -> None:
    tale.claimed().ran()
    tale.tell("w1", "commit", node("RUNNING", "COMPLETED"), node_event(4, "COMPLETED"), lease=1)


def old_lease(tale: Tale) -> None:
    tale.claimed().ran()
    tale.tell("w0", "sweep", tale.becomes(row("QUEUED")), graph(4, "QUEUED"), bell(2), at=20.0)
    tale.claimed("w0", 2, 5, at=21.0)
    tale.tell("w0", "commit", node("RUNNING", "COMPLETED"), node_event(6, "COMPLETED"), lease=1, at=22.0)


def taken_too_early(tale: Tale) -> None:
    tale.claimed().ran()
    tale.tell("w1", "sweep", tale.becomes(row("QUEUED")), graph(4, "QUEUED"), bell(2), at=10.0)


def renewed_late(tale: Tale) -> None:
    tale.claimed().ran()
    tale.tell("w0", "renew", tale.becomes(row(lease_until=BEGIN_US + 40 * SECOND)), at=20.0)


def acts_for_another(tale: Tale) -> None:
    tale.claimed().ran()
    tale.tell("w1", "sweep", tale.becomes(row("QUEUED")), graph(4, "QUEUED"), bell(2), at=20.0)
    tale.claimed("w1", 2, 5, at=21.0)
    tale.judge.block_acted(25.0, "w0", "x", "n1", 25.0)


def completed_twice(tale: Tale) -> None:
    tale.claimed().ran()
    tale.tell("w0", "commit", node("RUNNING", "COMPLETED"), node_event(4, "COMPLETED"), lease=1)
    tale.tell("w0", "commit", node("RUNNING", "COMPLETED"), node_event(5, "COMPLETED"), lease=1)


def runs_again(tale: Tale) -> None:
    tale.claimed().ran()
    tale.tell("w0", "commit", node("RUNNING", "COMPLETED"), node_event(4, "COMPLETED"), lease=1)
    tale.judge.block_began(2.0, "w0", "x", "n1")


def terminal_changes(tale: Tale) -> None:
    tale.claimed().ran().completed()
    tale.tell("a0", "request_cancel", tale.becomes(row("TERMINATED")), graph(7, "TERMINATED"))


def reason_changes(tale: Tale) -> None:
    tale.claimed().ran().completed()
    tale.tell("a0", "request_cancel", tale.becomes(row("COMPLETED", status_reason="cancelled_by_user")))


def node_comes_back(tale: Tale) -> None:
    tale.claimed().ran()
    tale.tell("w0", "commit", node("RUNNING", "FAILED"), node_event(4, "FAILED"), lease=1)
    tale.tell("w0", "commit", node("FAILED", "RUNNING"), node_event(5, "RUNNING"), lease=1)


def goes_on_after_the_end(tale: Tale) -> None:
    tale.claimed().ran().completed()
    tale.tell("w0", "commit", node_event(7, "COMPLETED"))


def number_is_missing(tale: Tale) -> None:
    tale.claimed()
    tale.tell("w0", "commit", node(None, "RUNNING"), node_event(4, "RUNNING"), lease=1)


def silent_change(tale: Tale) -> None:
    tale.claimed()
    tale.tell("w0", "commit", tale.becomes(row("COMPLETED")), lease=1)


def event_without_change(tale: Tale) -> None:
    tale.claimed()
    tale.tell("w0", "commit", graph(3, "COMPLETED"), lease=1)


def silent_node(tale: Tale) -> None:
    tale.claimed()
    tale.tell("w0", "commit", node(None, "RUNNING"), lease=1)


def silent_output(tale: Tale) -> None:
    tale.claimed().ran()
    tale.tell("w0", "commit", output(), lease=1)


def final_too_early(tale: Tale) -> None:
    tale.tell("w0", "claim", tale.becomes(row()), graph(2, "RUNNING", final=True))


def stuck(tale: Tale) -> None:
    tale.claimed()
    tale.tell("w0", "renew", tale.becomes(row(lease_until=BEGIN_US + 200 * SECOND)), at=10.0)
    tale.judge.patience(120.0, 30.0, 60.0, 60.0)


def not_over(tale: Tale) -> None:
    tale.claimed()
    tale.judge.over(400.0)


def watcher_misses(tale: Tale) -> None:
    tale.judge.watched(9.0, "x", [1, 3], 0, 3)


def watcher_sees_twice(tale: Tale) -> None:
    tale.judge.watched(9.0, "x", [1, 2, 2, 3], 0, 3)


def watcher_is_told_of_a_gap(tale: Tale) -> None:
    tale.judge.watched(9.0, "x", [1, 2, 3], 1, 3)


def slot_is_gone(tale: Tale) -> None:
    tale.judge.slots(9.0, 5, 6)


def stop_does_not_stop(tale: Tale) -> None:
    tale.claimed()
    tale.tell("a0", "request_cancel", tale.becomes(row(cancel_requested=1)), graph(3, "RUNNING"))
    tale.judge.stop_accepted(2.0, "x")
    tale.tell("w0", "commit", node(None, "RUNNING"), node_event(4, "RUNNING"), lease=1, at=50.0)
    tale.judge.patience(80.0, 30.0, 60.0, 40.0)


def key_is_used_twice(tale: Tale) -> None:
    after = row("QUEUED", id="y", lease_no=0)
    other = graph(1, "QUEUED", of="y")
    assert other.after is not None
    other.after["tape_id"] = 2
    tale.tell("a1", "start", Change("execution", None, after), other)


def key_is_answered_twice(tale: Tale) -> None:
    tale.judge.start_accepted(2.0, "k", "x")
    tale.judge.executions["y"] = tale.judge.executions["x"]
    tale.judge.start_accepted(3.0, "k", "y")


def start_is_lost(tale: Tale) -> None:
    tale.judge.start_accepted(2.0, "other", "never-written")


def stop_is_lost(tale: Tale) -> None:
    tale.claimed()
    tale.judge.stop_accepted(2.0, "x")


def bell_is_lost(tale: Tale) -> None:
    tale.tell("w0", "ack", bell(1, gone=True))


BROKEN: dict[Callable[[Tale], None], int] = {
    stale_write: 1,
    old_lease: 1,
    taken_too_early: 1,
    renewed_late: 1,
    acts_for_another: 1,
    completed_twice: 2,
    runs_again: 2,
    terminal_changes: 3,
    reason_changes: 3,
    node_comes_back: 3,
    goes_on_after_the_end: 3,
    number_is_missing: 4,
    silent_change: 4,
    event_without_change: 4,
    silent_node: 4,
    silent_output: 4,
    final_too_early: 4,
    stuck: 5,
    not_over: 5,
    watcher_misses: 6,
    watcher_sees_twice: 6,
    watcher_is_told_of_a_gap: 6,
    slot_is_gone: 7,
    stop_does_not_stop: 8,
    key_is_used_twice: 9,
    key_is_answered_twice: 9,
    start_is_lost: 10,
    stop_is_lost: 10,
    bell_is_lost: 10,
}


def test_a_sound_history_is_sound() -> None:
    judge = Judge()
    tale = Tale(judge)
    sound(tale)
    judge.start_accepted(1.0, "k", "x")
    judge.stop_accepted(3.0, "x")
    judge.watched(9.0, "x", [1, 2, 3, 4, 5, 6], 0, 6)
    judge.slots(9.0, 6, 6)
    judge.patience(400.0, 30.0, 60.0, 60.0)
    judge.over(400.0)
    assert not judge.violations


def test_recovery_is_sound() -> None:
    judge = Judge()
    tale = Tale(judge).claimed().ran()
    tale.tell("w1", "sweep", tale.becomes(row("QUEUED")), graph(4, "QUEUED"), bell(2), at=17.0)
    tale.claimed("w1", 2, 5, at=18.0)
    tale.tell("w1", "commit", node("RUNNING", "RUNNING"), node_event(6, "RUNNING"), lease=2, at=18.1)
    assert not judge.violations


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_doctored_history_is_seen_through(broken: Callable[[Tale], None]) -> None:
    judge = Judge()
    broken(Tale(judge))
    assert BROKEN[broken] in {violation.invariant for violation in judge.violations}


def test_every_invariant_has_a_doctored_history() -> None:
    assert set(BROKEN.values()) == set(range(1, 11))


def test_the_lease_of_a_dead_process_may_be_taken_at_once() -> None:
    judge = Judge(alive=lambda name: name != "w0")
    taken_too_early(Tale(judge))
    assert not judge.violations


def test_a_doorbell_that_is_not_due_may_be_acknowledged() -> None:
    judge = Judge(bells_are_safe=False)
    tale = Tale(judge)
    judge.bell_taken(1.0, "x", 7)
    tale.tell("w0", "wait", tale.becomes(row("QUEUED", lease_no=0, due_at=BEGIN_US + 60 * SECOND)))
    judge.bell_acknowledged(2.0, "x", 7)
    assert not judge.violations


def test_a_broker_is_told_to_forget_what_nobody_claimed() -> None:
    judge = Judge(bells_are_safe=False)
    Tale(judge)
    judge.bell_taken(1.0, "x", 7)
    judge.bell_acknowledged(2.0, "x", 7)
    assert [violation.invariant for violation in judge.violations] == [10]


def test_a_process_that_was_held_up_may_act_before_it_sees_what_it_missed() -> None:
    judge = Judge()
    tale = Tale(judge).claimed().ran()
    tale.tell("w1", "sweep", tale.becomes(row("QUEUED")), graph(4, "QUEUED"), bell(2), at=20.0)
    tale.claimed("w1", 2, 5, at=21.0)
    judge.block_acted(25.0, "w0", "x", "n1", 0.5)
    assert not judge.violations


def test_a_node_that_never_acted_is_not_completed() -> None:
    judge = Judge()
    done = {"id": "n1", "status": "COMPLETED", "outputs": [], "acts": True}
    judge.replayed(9.0, {"id": "x", "status": "COMPLETED", "status_reason": None}, [done], [])
    assert 2 in {violation.invariant for violation in judge.violations}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "FAILED"}, "status is FAILED"),
        ({"nodes": [("n1", "FAILED", [("out", 1)])]}, "node n1 is FAILED"),
        ({"nodes": [("n1", "COMPLETED", [])]}, "outputs of node n1"),
        ({"events": slice(1, None)}, "event 1 is missing"),
        ({"snapshot": {}}, "has not all its outputs"),
    ],
)
def test_replay_gives_the_row(change: dict[str, Any], said: str) -> None:
    def judged(
        status: str = "COMPLETED",
        nodes: list[tuple[str, str, list[tuple[str, Any]]]] | None = None,
        events: slice = slice(None),
        snapshot: dict[str, Any] | None = None,
    ) -> list[str]:
        judge = Judge()
        graph_event = {"id": "x", "status": "COMPLETED", "status_reason": None}
        given = {"out": [1]} if snapshot is None else snapshot
        node_end = {"node_exec_id": "n1", "status": "COMPLETED", "output_data": given}
        told = [
            (1, "node_output_update", to_json({"node_exec_id": "n1", "name": "out", "value": 1})),
            (2, "node_execution_update", to_json(node_end)),
            (3, "graph_execution_update", to_json(graph_event)),
        ]
        rows = [("n1", "COMPLETED", [("out", 1)])] if nodes is None else nodes
        judge.replayed(
            9.0,
            {"id": "x", "status": status, "status_reason": None},
            [{"id": name, "status": state, "outputs": outputs} for name, state, outputs in rows],
            told[events],
        )
        return [violation.said for violation in judge.violations if violation.invariant == 4]

    assert not judged()
    assert any(said in found for found in judged(**change))
