"""Says what is wrong with a run, from what was seen outside. Pure: lists of words in, nothing assumed of the engine.

Every function returns complaints; none means that nothing is wrong. `test_checker.py` shows that each of them can
fail.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acceptance.api import TERMINAL, Item

NODE = "node_execution_update"
GRAPH = "graph_execution_update"
OUTPUT = "node_output_update"


@dataclass(frozen=True)
class Line:
    """One line of the side-effect file."""

    kind: str
    node_exec_id: str
    value: int

    @classmethod
    def parse(cls, text: str) -> Line:
        kind, node_exec_id, value, _pid = text.split()
        return cls(kind, node_exec_id, int(value))


def check_numbers(items: Sequence[Item], who: str) -> list[str]:
    """Each number once, in order, 1..n without gap, one epoch, and only the last is final."""
    found = []
    seen: set[int] = set()
    for at, item in enumerate(items):
        if item.offset in seen:
            found.append(f"{who}: number {item.offset} came twice (place {at})")
        seen.add(item.offset)
    offsets = [item.offset for item in items]
    if offsets != sorted(offsets):
        at = next(n for n in range(1, len(offsets)) if offsets[n] < offsets[n - 1])
        found.append(f"{who}: number {offsets[at]} came after {offsets[at - 1]}")
    missing = sorted(set(range(1, max(seen, default=0) + 1)) - seen)
    if missing:
        found.append(f"{who}: numbers {missing[:10]} never came ({len(missing)} in all)")
    if len({item.epoch for item in items}) > 1:
        found.append(f"{who}: more than one epoch: {sorted({item.epoch for item in items})}")
    if not items:
        found.append(f"{who}: nothing")
    elif not items[-1].final:
        found.append(f"{who}: the last, number {items[-1].offset}, is not final")
    early = [item.offset for item in items[:-1] if item.final]
    if early:
        found.append(f"{who}: final, but not the last: {early}")
    return found


def check_transcript(transcript: Sequence[Item], log: Sequence[Item]) -> list[str]:
    """What a client saw is the log, byte for byte."""
    found = check_numbers(transcript, "client")
    of_log = {item.offset: item for item in log}
    for item in transcript:
        kept = of_log.get(item.offset)
        if kept is None:
            found.append(f"client saw number {item.offset}, which is not in the log")
        elif kept.data != item.data:
            at = next((n for n, (a, b) in enumerate(zip(kept.data, item.data, strict=False)) if a != b), -1)
            found.append(
                f"number {item.offset} differs at character {at}: log {kept.data[at : at + 60]!r},"
                f" client {item.data[at : at + 60]!r}"
            )
        elif (kept.epoch, kept.final) != (item.epoch, item.final):
            found.append(f"number {item.offset}: epoch or final differ")
    unseen = sorted(of_log.keys() - {item.offset for item in transcript})
    if unseen:
        found.append(f"client never saw {unseen[:10]} ({len(unseen)} in all)")
    return found


def check_graph_tape(seen: Sequence[Item], logs: Mapping[str, Sequence[Item]]) -> list[str]:
    """A client of the graph saw the graph events of each execution, in order and byte for byte, under numbers 1..n."""
    found = []
    offsets = [item.offset for item in seen]
    if offsets != list(range(1, len(offsets) + 1)):
        found.append(f"graph tape: numbers are {offsets[:30]}")
    if len({item.epoch for item in seen}) > 1:
        found.append("graph tape: more than one epoch")
    for execution_id, log in logs.items():
        want = [item.data for item in log if item.value["event_type"] == GRAPH]
        got = [item.data for item in seen if item.value["id"] == execution_id]
        if want != got:
            found.append(f"graph tape: {len(got)} events of {execution_id}, {len(want)} in its log, or not the same")
    strange = {item.value["id"] for item in seen} - logs.keys()
    if strange:
        found.append(f"graph tape: events of other executions: {strange}")
    return found


def check_statuses(log: Sequence[Item]) -> list[str]:
    """A node execution is COMPLETED at most once, and terminal never changes."""
    found = []
    ended: dict[str, str] = {}
    for item in log:
        event = item.value
        if event.get("event_type") == NODE:
            key = f"node execution {event['node_exec_id']}"
        elif event.get("event_type") == GRAPH:
            key = f"execution {event['id']}"
        else:
            continue
        if key in ended:
            found.append(f"{key}: {ended[key]}, and then {event['status']} again (number {item.offset})")
        if event["status"] in TERMINAL:
            ended[key] = event["status"]
            if key.startswith("execution") and not item.final:
                found.append(f"{key}: {event['status']} without final (number {item.offset})")
    return found


def check_replay(log: Sequence[Item], state: Mapping[str, Any]) -> list[str]:
    """Replaying events 1..n gives the row."""
    found = []
    graph: dict[str, Any] = {}
    nodes: dict[str, dict[str, Any]] = {}
    outputs: defaultdict[str, list[tuple[int, str, Any]]] = defaultdict(list)
    for item in log:
        event = item.value
        kind = event.get("event_type")
        if kind == GRAPH:
            graph = event
        elif kind == NODE:
            nodes[event["node_exec_id"]] = event
        elif kind == OUTPUT:
            outputs[event["node_exec_id"]].append((event["index"], event["name"], event["value"]))
    if graph.get("status") != state["status"]:
        found.append(f"last graph event says {graph.get('status')}, the row {state['status']}")
    if graph.get("outputs", {}) != state["outputs"]:
        found.append("outputs of the last graph event and of the row differ")
    stats, row_stats = graph.get("stats") or {}, state.get("stats") or {}
    found += [
        f"stats.{name} is {row_stats.get(name)!r} in the row, {value!r} replayed"
        for name, value in stats.items()
        if row_stats.get(name) != value
    ]
    rows = {one["node_exec_id"]: one for one in state["node_executions"]}
    doubled = [key for key, n in Counter(one["node_exec_id"] for one in state["node_executions"]).items() if n > 1]
    if doubled:
        found.append(f"node executions twice in the state: {doubled}")
    for key in rows.keys() | nodes.keys():
        row: Any = rows.get(key)
        event: Any = nodes.get(key)
        if row is None:
            found.append(f"node execution {key} has events and no row")
        elif event is None:
            if row["status"] != "INCOMPLETE":
                found.append(f"node execution {key} is {row['status']} and has no event")
        else:
            found += [
                f"node execution {key}: {name} is {row[name]!r} in the row, {event[name]!r} replayed"
                for name in ("status", "node_id", "block_id", "input_data", "output_data")
                if row[name] != event[name]
            ]
    for key, given in outputs.items():
        indexes = [index for index, _, _ in given]
        if indexes != list(range(len(indexes))):
            found.append(f"node execution {key}: outputs are numbered {indexes[:20]}")
        pins: dict[str, list[Any]] = {}
        for _, name, value in given:
            pins.setdefault(name, []).append(value)
        if key in rows and rows[key]["output_data"] != pins:
            found.append(f"node execution {key}: its output events do not add up to its output_data")
    return found


def check_side_effects(lines: Iterable[Line], state: Mapping[str, Any], kills: int) -> list[str]:
    """Each block ran at most 1 + kills times, and what counts as done has really been done."""
    found = []
    runs = Counter((line.kind, line.node_exec_id) for line in lines)
    for (kind, key), n in runs.items():
        if n > 1 + kills:
            found.append(f"{kind} {key} ran {n} times with {kills} kills")
    known = {one["node_exec_id"] for one in state["node_executions"]}
    foreign = {key for _, key in runs} - known
    if foreign:
        found.append(f"ran, but the state does not know them: {sorted(foreign)[:5]}")
    return found


def check_work(lines: Iterable[Line], state: Mapping[str, Any], expected: Mapping[str, Sequence[int]]) -> list[str]:
    """Every value reached its node exactly once and was done there. `expected` is by node id.

    A stream that was interrupted runs again, but what it repeats is not given again (decision 0003).
    """
    found = []
    written = {(line.node_exec_id, line.value) for line in lines if line.kind == "write"}
    done: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for one in state["node_executions"]:
        if one["node_id"] not in expected:
            continue
        if one["status"] != "COMPLETED":
            found.append(f"node execution {one['node_exec_id']} is {one['status']}")
            continue
        value = one["input_data"]["value"][-1]
        done[one["node_id"]][value] += 1
        if (one["node_exec_id"], value) not in written:
            found.append(f"node execution {one['node_exec_id']} is COMPLETED and never wrote {value}")
    for node_id, values in expected.items():
        got = done[node_id]
        missing = [value for value in values if not got[value]]
        if missing:
            found.append(f"node {node_id} never got {missing[:10]}")
        foreign = sorted(got.keys() - set(values))
        if foreign:
            found.append(f"node {node_id} got {foreign[:10]}, which nobody sent")
        often = {value: n for value, n in got.items() if n > 1}
        if often:
            found.append(f"node {node_id} got values more than once: {often}")
    return found
