"""The checker of the engine can fail: each doctored site breaks the rule that it should, and an honest one none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from acceptance.api import Item
from chaos.engine_checker import (
    Act,
    Evidence,
    Fault,
    Patience,
    Probe,
    Run,
    Watched,
    acts_of,
    judge,
    recoveries,
    together,
)

EPOCH = "k3v9x0aq"
BEGIN = 1_800_000_000.0
PATIENCE = Patience(lease_s=4, stop_s=8, recover_s=12)
KILL = Fault("worker killed", BEGIN + 2.5, BEGIN + 3, pids=(7,), interrupts=True)
REDIS = Fault("Redis restarted", BEGIN + 2.5, BEGIN + 3)
PAUSE = Fault("worker paused", BEGIN + 2.5, BEGIN + 8, pids=(7,), interrupts=True, zombies=(7,))


def at(seconds: float) -> str:
    return datetime.fromtimestamp(BEGIN + seconds, UTC).isoformat()


def event(kind: str, **values: Any) -> dict[str, Any]:
    return {"event_type": f"{kind}_update", **values}


def node_row(number: int, status: str = "COMPLETED") -> dict[str, Any]:
    return {
        "node_exec_id": f"x{number}",
        "node_id": f"n{number}",
        "block_id": "b",
        "status": status,
        "input_data": {"value": [number]},
        "output_data": {"done": [number + 1]},
        "add_time": at(number),
        "end_time": at(number + 1),
    }


def tape(events: list[dict[str, Any]]) -> list[Item]:
    return [Item(n, EPOCH, json.dumps(event), n == len(events)) for n, event in enumerate(events, 1)]


def honest_events() -> list[dict[str, Any]]:
    """Three nodes, one after the other; the worker is killed in the third, which is begun again."""
    events = [event("graph_execution", id="E", status=status, outputs={}) for status in ("QUEUED", "RUNNING")]
    for number in range(3):
        row = node_row(number)
        events.append(event("node_execution", **{**row, "status": "RUNNING", "output_data": {}}))
        if number == 2:
            events += [event("graph_execution", id="E", status=status, outputs={}) for status in ("QUEUED", "RUNNING")]
        output = {"node_exec_id": row["node_exec_id"], "index": 0, "name": "done", "value": number + 1}
        events.append(event("node_output", **output))
        events.append(event("node_execution", **row))
    events.append(event("graph_execution", id="E", status="COMPLETED", outputs={}))
    return events


def honest() -> Evidence:
    log = tape(honest_events())
    row = {
        "id": "E",
        "status": "COMPLETED",
        "status_reason": None,
        "outputs": {},
        "ended_at": at(4.5),
        "node_executions": [node_row(number) for number in range(3)],
    }
    row["node_executions"][2]["end_time"] = at(4.5)
    log = [*log[:-2], replace(log[-2], data=json.dumps(event("node_execution", **row["node_executions"][2]))), log[-1]]
    run = Run(
        id="E",
        shape="chain",
        log=log,
        row=row,
        row_then=copy.deepcopy(row),
        starts=("E", "E"),
        results={f"n{number}": [number + 1] for number in range(3)},
        acting=frozenset({"n0", "n1", "n2"}),
        watched=(Watched(log),),
    )
    acts = [
        Act("x0", 0, 7, BEGIN + 0.1, BEGIN + 0.9),
        Act("x1", 1, 7, BEGIN + 1.1, BEGIN + 1.9),
        Act("x2", 2, 7, BEGIN + 2.1, None),
        Act("x2", 2, 8, BEGIN + 3.5, BEGIN + 4.4),
    ]
    return Evidence(
        runs=[run],
        acts=acts,
        faults=[KILL],
        patience=PATIENCE,
        listed={"G": ["E"]},
        members={"G": ["E"]},
        graphs={"G": graph_tape(log)},
        children={"E": ["C"]},
        probe=Probe(12, 12),
    )


def graph_tape(log: list[Item]) -> list[Item]:
    items = [item for item in log if item.value["event_type"] == "graph_execution_update"]
    return [replace(item, offset=number, epoch="graph") for number, item in enumerate(items, 1)]


def doctored(events: list[dict[str, Any]]) -> Evidence:
    """The same with other events, and watchers who saw them."""
    seen = honest()
    log = tape(events)
    run = replace(seen.runs[0], log=log, watched=(Watched(log),))
    return replace(seen, runs=[run], graphs={"G": graph_tape(log)})


def with_run(**changed: Any) -> Evidence:
    seen = honest()
    return replace(seen, runs=[replace(seen.runs[0], **changed)])


def with_row(**changed: Any) -> Evidence:
    return with_run(row={**honest().runs[0].row, **changed}, row_then=None)


def rules(seen: Evidence) -> set[int]:
    return {violation.rule for violation in judge(seen)}


def test_an_honest_site_breaks_no_rule() -> None:
    assert judge(honest()) == []


# ---- what the doctors do ---------------------------------------------------------------------------------------------


def completed_twice() -> Evidence:
    events = honest_events()
    events.insert(8, event("node_execution", **node_row(1)))
    return doctored(events)


def ran_again_after_it_was_completed() -> Evidence:
    seen = honest()
    return replace(seen, acts=[*seen.acts, Act("x1", 1, 8, BEGIN + 3.6, BEGIN + 3.7)])


def ran_again_without_a_fault() -> Evidence:
    return replace(honest(), faults=[])


def ran_again_because_of_a_fault_that_excuses_nothing() -> Evidence:
    return replace(honest(), faults=[REDIS])


def completed_and_never_done() -> Evidence:
    seen = honest()
    return replace(seen, acts=seen.acts[1:])


def two_at_the_same_time() -> Evidence:
    seen = honest()
    return replace(seen, acts=[*seen.acts[:2], replace(seen.acts[2], ended=BEGIN + 3.9), seen.acts[3]])


def went_on_after_its_end() -> Evidence:
    events = honest_events()
    events.append(event("graph_execution", id="E", status="FAILED", outputs={}))
    seen = doctored(events)
    return replace(seen, runs=[replace(seen.runs[0], row={**seen.runs[0].row, "status": "FAILED"}, row_then=None)])


def changed_after_its_end() -> Evidence:
    return with_run(row_then={**honest().runs[0].row, "status": "TERMINATED"})


def began_after_its_execution_was_terminated() -> Evidence:
    seen = honest()
    row = copy.deepcopy(dict(seen.runs[0].row))
    row["node_executions"][1]["status"] = "TERMINATED"
    changed = replace(seen.runs[0], row=row)
    return replace(seen, runs=[changed], acts=[*seen.acts, Act("x1", 1, 8, BEGIN + 3.6, None)])


def a_number_is_missing() -> Evidence:
    seen = honest()
    log = [item for item in seen.runs[0].log if item.offset != 4]
    return replace(seen, runs=[replace(seen.runs[0], log=log, watched=())])


def a_number_came_twice() -> Evidence:
    seen = honest()
    log = list(seen.runs[0].log)
    return replace(seen, runs=[replace(seen.runs[0], log=[*log[:5], log[4], *log[5:]], watched=())])


def two_final_events() -> Evidence:
    seen = honest()
    log = [replace(item, final=item.offset in (3, len(seen.runs[0].log))) for item in seen.runs[0].log]
    return replace(seen, runs=[replace(seen.runs[0], log=log, watched=(Watched(log),))])


def the_row_is_not_what_was_told() -> Evidence:
    rows = copy.deepcopy(honest().runs[0].row["node_executions"])
    rows[1]["output_data"] = {"done": [99]}
    return with_row(node_executions=rows)


def still_running() -> Evidence:
    return with_row(status="RUNNING", ended_at=None)


def left_over_node() -> Evidence:
    rows = copy.deepcopy(honest().runs[0].row["node_executions"])
    rows[1]["status"] = "RUNNING"
    return with_row(node_executions=rows)


def recovered_late() -> Evidence:
    seen = honest()
    late = replace(seen.acts[3], began=BEGIN + 20, ended=BEGIN + 21)
    row = copy.deepcopy(dict(seen.runs[0].row))
    row["node_executions"][2]["end_time"] = row["ended_at"] = at(21)
    log = list(seen.runs[0].log)
    log[-2] = replace(log[-2], data=json.dumps(event("node_execution", **row["node_executions"][2])))
    run = replace(seen.runs[0], row=row, row_then=None, log=log, watched=())
    return replace(seen, acts=[*seen.acts[:3], late], runs=[run])


def given_up_too_soon() -> Evidence:
    return with_row(status="FAILED", status_reason="poison")


def a_watcher_missed_one() -> Evidence:
    items = [item for item in honest().runs[0].log if item.offset != 6]
    return with_run(watched=(Watched(items),))


def a_watcher_saw_something_else() -> Evidence:
    items = [replace(item, data=item.data.replace("x1", "y1")) for item in honest().runs[0].log]
    return with_run(watched=(Watched(items),))


def a_watcher_was_told_of_a_gap() -> Evidence:
    return with_run(watched=(Watched(honest().runs[0].log, ["the server said gap"]),))


def the_graph_tape_lacks_one() -> Evidence:
    seen = honest()
    items = [item for item in seen.graphs["G"] if item.offset != 2]
    return replace(seen, graphs={"G": [replace(item, offset=n) for n, item in enumerate(items, 1)]})


def a_slot_leaked() -> Evidence:
    return replace(honest(), probe=Probe(12, 11))


def stopped_late() -> Evidence:
    seen = with_run(stopped_at=BEGIN - 60)
    return replace(seen, faults=[replace(KILL, begun=BEGIN - 90, ended=BEGIN - 80), KILL])


def stopped_and_still_there() -> Evidence:
    return with_run(
        row={**honest().runs[0].row, "status": "RUNNING", "ended_at": None}, stopped_at=BEGIN, row_then=None
    )


def a_key_with_two_executions() -> Evidence:
    return with_run(starts=("E", "F"))


def an_execution_that_nobody_started() -> Evidence:
    return replace(honest(), listed={"G": ["E", "F"]})


def a_child_too_many() -> Evidence:
    return replace(honest(), children={"E": ["C", "D"]})


def accepted_and_lost() -> Evidence:
    return replace(honest(), listed={"G": []})


def a_client_gave_up() -> Evidence:
    return replace(honest(), gave_up=["start: 500"])


def another_result() -> Evidence:
    return with_run(results={"n0": [1], "n1": [2], "n2": [4]})


def failed_and_nobody_knows_why() -> Evidence:
    events = honest_events()
    events[-1]["status"] = "FAILED"
    seen = doctored(events)
    row = {**seen.runs[0].row, "status": "FAILED", "status_reason": "block_error"}
    return replace(seen, runs=[replace(seen.runs[0], row=row, row_then=None)])


def stopped_with_a_foreign_result() -> Evidence:
    events = honest_events()
    events[-1]["status"] = "TERMINATED"
    seen = doctored(events)
    row = {**seen.runs[0].row, "status": "TERMINATED"}
    run = replace(seen.runs[0], row=row, row_then=None, stopped_at=BEGIN + 4, results={"n1": [7]})
    return replace(seen, runs=[run])


@pytest.mark.parametrize(
    ("doctor", "rule"),
    [
        (another_result, 0),
        (failed_and_nobody_knows_why, 0),
        (stopped_with_a_foreign_result, 0),
        (two_at_the_same_time, 1),
        (completed_twice, 2),
        (ran_again_after_it_was_completed, 2),
        (ran_again_without_a_fault, 2),
        (ran_again_because_of_a_fault_that_excuses_nothing, 2),
        (completed_and_never_done, 2),
        (went_on_after_its_end, 3),
        (changed_after_its_end, 3),
        (began_after_its_execution_was_terminated, 3),
        (a_number_is_missing, 4),
        (a_number_came_twice, 4),
        (two_final_events, 4),
        (the_row_is_not_what_was_told, 4),
        (still_running, 5),
        (left_over_node, 5),
        (recovered_late, 5),
        (given_up_too_soon, 5),
        (a_watcher_missed_one, 6),
        (a_watcher_saw_something_else, 6),
        (a_watcher_was_told_of_a_gap, 6),
        (the_graph_tape_lacks_one, 6),
        (a_slot_leaked, 7),
        (stopped_late, 8),
        (stopped_and_still_there, 8),
        (a_key_with_two_executions, 9),
        (an_execution_that_nobody_started, 9),
        (a_child_too_many, 9),
        (accepted_and_lost, 10),
        (a_client_gave_up, 10),
    ],
)
def test_a_doctored_site_breaks_its_rule(doctor: Callable[[], Evidence], rule: int) -> None:
    assert rule in rules(doctor())


@pytest.mark.parametrize(
    "doctor",
    [
        another_result,
        failed_and_nobody_knows_why,
        two_at_the_same_time,
        ran_again_without_a_fault,
        changed_after_its_end,
        recovered_late,
        a_watcher_missed_one,
        the_graph_tape_lacks_one,
        a_slot_leaked,
        stopped_late,
        a_key_with_two_executions,
        a_child_too_many,
        accepted_and_lost,
    ],
)
def test_what_is_wrong_in_one_way_is_not_called_wrong_in_others(doctor: Callable[[], Evidence]) -> None:
    assert len(rules(doctor())) == 1


def test_a_process_that_comes_back_from_a_pause_may_not_know_yet() -> None:
    seen = honest()
    ended = replace(seen.acts[2], ended=BEGIN + 8.2)
    back = Act("x1", 1, 7, BEGIN + 8.1, None)
    seen = replace(seen, acts=[*seen.acts[:2], ended, back, seen.acts[3]], faults=[PAUSE])
    assert judge(seen) == []
    assert rules(replace(seen, faults=[replace(PAUSE, zombies=())])) == {1, 2}


def test_a_stop_may_take_as_long_as_a_fault_that_is_in_its_way() -> None:
    seen = with_run(stopped_at=BEGIN - 5)
    assert judge(seen) == []
    assert rules(replace(seen, faults=[], acts=[*seen.acts[:2], seen.acts[3]])) == {8}


def test_nothing_is_late_that_could_not_be_begun() -> None:
    seen = recovered_late()
    away = [
        Fault("RabbitMQ gone", BEGIN + 4, BEGIN + 6, delays=True),
        Fault("RabbitMQ gone", BEGIN + 8, BEGIN + 10, delays=True),
    ]
    assert judge(replace(seen, faults=[KILL, *away])) == []
    assert rules(replace(seen, faults=[KILL, away[0]])) == {5}
    assert rules(replace(seen, faults=[KILL, *(replace(one, delays=False) for one in away)])) == {5}


def test_what_is_lost_again_and_again_waits_longer_each_time() -> None:
    assert rules(recovered_late()) == {5}
    seen = recovered_late()
    lost = event("graph_execution", id="E", status="QUEUED", status_reason="worker_lost", outputs={})
    run = seen.runs[0]
    values = [item.value for item in run.log]
    for count, wanted in ((2, {5}), (4, set())):
        log = tape([*values[:-5], *[lost] * count, *values[-5:]])
        graphs = {"G": graph_tape(log)}
        assert rules(replace(seen, runs=[replace(run, log=log)], graphs=graphs)) == wanted


def test_acts_are_read_from_lines_of_many_processes() -> None:
    lines = [
        "began a 1 10 100.0",
        "stream b 0 10",
        "began a 1 11 100.5",
        "ended a 1 10 101.0",
        "ended a 1 11 101.5",
        "began c 2 10 102.0",
    ]
    acts = acts_of(lines)
    assert acts == [
        Act("a", 1, 10, 100.0, 101.0),
        Act("a", 1, 11, 100.5, 101.5),
        Act("c", 2, 10, 102.0, None),
    ]
    assert together(acts) == 2


def test_recoveries_are_measured_from_the_fault_to_the_next_begin() -> None:
    assert recoveries(honest(), "worker killed") == pytest.approx([1.0])
    assert recoveries(honest(), "worker paused") == []
