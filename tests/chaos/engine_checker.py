"""Judges a site from what was seen outside: tapes, what watchers saw, rows, and a file that blocks wrote to.

Pure, and it knows nothing of the engine. The rules carry the numbers of the invariants in the execution contract; rule
0 is that the results are those of a run without faults. `test_engine_checker.py` shows that each of them can fail.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

from acceptance.api import TERMINAL, Item
from chaos.checker import (
    GRAPH,
    NODE,
    check_graph_tape,
    check_numbers,
    check_replay,
    check_statuses,
    check_transcript,
)

RESULTS: Final = 0
LATE_S: Final = 0.3
"""Clocks are those of one machine, but a moment is noted a little before or after what it tells of."""

BACK_OFF_S: Final = (0, 1, 5, 30, 120)
"""The waits of an execution that is lost again and again without progress; after them it is given up."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done from `begun` to `ended`, in seconds of the day.

    `interrupts`: what runs may be begun again because of it. `zombies`: processes that may go on for a moment with what
    others have taken over meanwhile; None stands for every process. `delays`: nothing is begun while it lasts.
    """

    kind: str
    begun: float
    ended: float
    pids: tuple[int, ...] = ()
    interrupts: bool = False
    zombies: tuple[int, ...] | None = ()
    delays: bool = False
    detail: Mapping[str, Any] = field(default_factory=dict)

    def touches(self, begin: float, end: float) -> bool:
        return self.begun <= end and begin <= self.ended


@dataclass(frozen=True, slots=True)
class Act:
    """One run of a block that acts outside. `ended` is None when it was cut short, or never said so."""

    key: str
    value: int
    pid: int
    began: float
    ended: float | None


@dataclass(frozen=True)
class Watched:
    """All that one watcher saw of an execution."""

    items: Sequence[Item]
    complaints: Sequence[str] = ()


@dataclass(frozen=True)
class Run:
    """One execution. `results` is by node id, sorted; `row_then` is its row just after the end, `row` at the very end.

    `starts`: the ids that requests with its Idempotency-Key were answered with; a child has none. `acting`: the nodes
    whose runs are in the side-effect file.
    """

    id: str
    shape: str
    log: Sequence[Item]
    row: Mapping[str, Any]
    row_then: Mapping[str, Any] | None = None
    starts: Sequence[str] = ()
    stopped_at: float | None = None
    results: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    acting: frozenset[str] = frozenset()
    watched: Sequence[Watched] = ()


@dataclass(frozen=True)
class Probe:
    """So many executions were started when all was over, one for each slot; `together` of them ran at one time."""

    slots: int
    together: int


@dataclass(frozen=True)
class Patience:
    """Seconds. `stop_s`: from an accepted stop to the end. `recover_s`: until what was interrupted is begun again,
    beside the back-off.
    `lease_s`: how long a fault is felt after its end. `zombie_s`: how long a process that comes back may go on."""

    lease_s: float
    stop_s: float
    recover_s: float
    zombie_s: float = 2.0


@dataclass(frozen=True)
class Evidence:
    """Everything that was seen.

    By graph: `listed` are the ids that its list shows, `members` those that it should show, `graphs` what was seen of
    its tape. `children`: the executions that each parent has started. `gave_up`: what clients met that could not go on.
    """

    runs: Sequence[Run]
    acts: Sequence[Act]
    faults: Sequence[Fault]
    patience: Patience
    listed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    graphs: Mapping[str, Sequence[Item]] = field(default_factory=dict)
    members: Mapping[str, Sequence[str]] = field(default_factory=dict)
    children: Mapping[str, Sequence[str]] = field(default_factory=dict)
    probe: Probe | None = None
    gave_up: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Violation:
    rule: int
    execution: str
    text: str

    def __str__(self) -> str:
        return f"rule {self.rule}, {self.execution}: {self.text}"


def acts_of(lines: Iterable[str]) -> list[Act]:
    """The side-effect file: `began|ended key value pid time`; other lines are not ours.

    A run ends with the next line of its process for the same key and value.
    """
    acts: list[Act] = []
    open_acts: dict[tuple[str, int, int], int] = {}
    for line in lines:
        words = line.split()
        if len(words) != 5:
            continue
        what, key, value, pid, at = words[0], words[1], int(words[2]), int(words[3]), float(words[4])
        if what == "began":
            open_acts[key, value, pid] = len(acts)
            acts.append(Act(key, value, pid, at, None))
        else:
            number = open_acts.pop((key, value, pid), None)
            if number is None:
                acts.append(Act(key, value, pid, at, at))
            else:
                acts[number] = replace(acts[number], ended=at)
    return acts


def together(acts: Iterable[Act]) -> int:
    """How many ran at one time, at most."""
    moments = [(act.began, 1) for act in acts] + [(act.ended, -1) for act in acts if act.ended is not None]
    most = now = 0
    for _, step in sorted(moments):
        now += step
        most = max(most, now)
    return most


def judge(seen: Evidence) -> list[Violation]:
    """Everything that is wrong."""
    found: list[Violation] = []
    by_key: defaultdict[str, list[Act]] = defaultdict(list)
    for act in seen.acts:
        by_key[act.key].append(act)
    for run in seen.runs:
        say = _Says(found, run.id)
        _tape(run, say)
        _end(run, seen, say)
        _starts(run, say)
        _results(run, say)
        _acts(run, by_key, seen, say)
    found += [Violation(10, "-", f"a client gave up: {text}") for text in seen.gave_up]
    _lists(seen, found)
    _graphs(seen, found)
    if seen.probe is not None and seen.probe.together < seen.probe.slots:
        text = f"{seen.probe.together} executions ran at once on {seen.probe.slots} slots when all was over"
        found.append(Violation(7, "-", text))
    return found


def recoveries(seen: Evidence, kind: str) -> list[float]:
    """For each block that a fault of this kind cut short: the seconds until it was begun again."""
    by_key: defaultdict[str, list[Act]] = defaultdict(list)
    for act in sorted(seen.acts, key=lambda act: act.began):
        by_key[act.key].append(act)
    took = []
    for fault in seen.faults:
        if fault.kind != kind:
            continue
        for acts in by_key.values():
            for one, following in pairwise(acts):
                if one.pid in fault.pids and one.began < fault.begun < following.began and one.ended is None:
                    took.append(following.began - fault.begun)
    return took


class _Says:
    """Notes violations of one execution."""

    def __init__(self, found: list[Violation], execution: str) -> None:
        self._found = found
        self._execution = execution

    def __call__(self, rule: int, *texts: str) -> None:
        self._found.extend(Violation(rule, self._execution, text) for text in texts)


def _tape(run: Run, say: _Says) -> None:
    say(4, *check_numbers(run.log, "tape"))
    say(4, *check_replay(run.log, run.row))
    say(3, *check_statuses(run.log))
    completed: Counter[str] = Counter()
    for item in run.log:
        event = item.value
        if event.get("event_type") == NODE and event["status"] == "COMPLETED":
            completed[event["node_exec_id"]] += 1
    say(2, *(f"{n} events complete the node execution {key}" for key, n in completed.items() if n > 1))
    for watched in run.watched:
        say(6, *check_transcript(watched.items, run.log), *watched.complaints)


def _end(run: Run, seen: Evidence, say: _Says) -> None:
    status = run.row["status"]
    if status not in TERMINAL:
        say(5, f"{status} ({run.row.get('status_reason')}) when all was over")
    if run.row_then is not None:
        for name in ("status", "status_reason", "outputs", "ended_at", "node_executions"):
            if run.row_then.get(name) != run.row.get(name):
                say(3, f"{name} was {str(run.row_then.get(name))[:200]} at its end, is {str(run.row.get(name))[:200]}")
    live = [one["node_exec_id"] for one in run.row["node_executions"] if one["status"] in ("RUNNING", "QUEUED")]
    if status in TERMINAL and live:
        say(5, f"it is {status}, and node executions still run: {live[:5]}")
    if run.stopped_at is None:
        return
    ended = _moment(run.row.get("ended_at"))
    if status not in TERMINAL or ended is None:
        say(8, f"{status}, and a stop was accepted")
        return
    due = run.stopped_at + seen.patience.stop_s
    for fault in sorted(seen.faults, key=lambda fault: fault.begun):
        if fault.interrupts and run.stopped_at - seen.patience.lease_s <= fault.ended and fault.begun <= due:
            due = max(due, fault.ended + seen.patience.stop_s)
    if ended > due:
        say(8, f"{status} {ended - run.stopped_at:.1f} s after an accepted stop, {ended - due:.1f} s too late")
    if status == "FAILED":
        say(8, f"stopped, and it ended FAILED ({run.row.get('status_reason')})")


def _starts(run: Run, say: _Says) -> None:
    if len(set(run.starts)) > 1:
        say(9, f"one Idempotency-Key was answered with {sorted(set(run.starts))}")
    first = next((item.value for item in run.log if item.value.get("event_type") == GRAPH), None)
    if first is not None and first["id"] != run.id:
        say(10, f"its tape is that of {first['id']}")
    if not run.log:
        say(10, "it was accepted and has no events")


def _results(run: Run, say: _Says) -> None:
    status = run.row["status"]
    if status == "COMPLETED" or run.stopped_at is None:
        given = _given(run)
        for node_id, values in run.results.items():
            if status == "COMPLETED" and given[node_id] != list(values):
                say(RESULTS, f"node {node_id} gave {str(given[node_id])[:200]}, not {str(list(values))[:200]}")
    if status == "COMPLETED":
        open_nodes = [one["status"] for one in run.row["node_executions"] if one["status"] not in TERMINAL]
        if open_nodes:
            say(RESULTS, f"COMPLETED with node executions that are {sorted(open_nodes)}")
    elif run.stopped_at is not None:
        given = _given(run)
        for node_id, got in given.items():
            foreign = Counter(map(repr, got)) - Counter(map(repr, run.results.get(node_id, got)))
            if foreign:
                say(RESULTS, f"node {node_id} gave {sorted(foreign)[:5]}, which it does not give without faults")
    elif status in TERMINAL and run.row.get("status_reason") != "poison":
        say(RESULTS, f"ended {status} ({run.row.get('status_reason')}); nobody stopped it")


def _given(run: Run) -> defaultdict[str, list[Any]]:
    given: defaultdict[str, list[Any]] = defaultdict(list)
    for one in run.row["node_executions"]:
        for values in one["output_data"].values():
            given[one["node_id"]].extend(values)
    for values in given.values():
        values.sort(key=lambda value: (str(type(value)), value))
    return given


def _acts(run: Run, by_key: Mapping[str, Sequence[Act]], seen: Evidence, say: _Says) -> None:
    faults, patience = seen.faults, seen.patience
    over = _moment(run.row.get("ended_at"))
    losses = _losses(run.log)
    recover_s = patience.recover_s + (BACK_OFF_S[min(losses, len(BACK_OFF_S)) - 1] if losses else 0)
    for one in run.row["node_executions"]:
        if one["node_id"] not in run.acting:
            continue
        key = one["node_exec_id"]
        acts = sorted(by_key.get(key, ()), key=lambda act: act.began)
        done = one["status"] == "COMPLETED"
        values = one["input_data"].get("value", [None])
        if done and not any(act.ended is not None and act.value == values[-1] for act in acts):
            say(2, f"node execution {key} is COMPLETED and never did {values[-1]}")
        end = _moment(one.get("end_time")) if one["status"] in TERMINAL else over
        for act in acts:
            if end is not None and act.began > end + LATE_S and not _zombie(act, faults, patience):
                rule = 2 if done else 3
                say(rule, f"node execution {key} began {act.began - end:.2f} s after it was {one['status']}")
        for act, again in pairwise(acts):
            both = act.ended is not None and act.ended > again.began and act.pid != again.pid
            if both and not any(_zombie(who, faults, patience, until=act.ended) for who in (act, again)):
                say(1, f"node execution {key} ran in {act.pid} and {again.pid} at the same time")
            causes = [f for f in faults if f.interrupts and f.touches(act.began - patience.lease_s, again.began)]
            if not causes:
                say(2, f"node execution {key} ran again after {again.began - act.began:.2f} s without a reason")
                continue
            due = max(act.began, *(fault.ended for fault in causes if fault.begun <= again.began))
            late = again.began - _delayed(due, recover_s, faults)
            if late > recover_s:
                say(5, f"node execution {key} was begun again after {late:.1f} s")
    if run.row.get("status_reason") == "poison" and losses < len(BACK_OFF_S):
        say(5, f"given up as poison after {losses} losses without progress")


def _delayed(since: float, within_s: float, faults: Sequence[Fault]) -> float:
    """From when it counts that something was not begun: what delays it may come one after the other."""
    for fault in sorted(faults, key=lambda fault: fault.begun):
        if fault.delays and fault.begun <= since + within_s:
            since = max(since, fault.ended)
    return since


def _losses(log: Sequence[Item]) -> int:
    """How often it lost its worker without progress in between, at most."""
    most = now = 0
    for item in log:
        event = item.value
        if event.get("event_type") == NODE and event["status"] == "COMPLETED":
            now = 0
        elif event.get("event_type") == GRAPH and event.get("status_reason") == "worker_lost":
            now += 1
            most = max(most, now)
    return most


def _zombie(act: Act, faults: Sequence[Fault], patience: Patience, *, until: float | None = None) -> bool:
    """Whether its process came back from a pause and could not know yet that it had lost everything."""
    at = act.began if until is None else until
    return any(
        (fault.zombies is None or act.pid in fault.zombies) and fault.begun <= at <= fault.ended + patience.zombie_s
        for fault in faults
    )


def _lists(seen: Evidence, found: list[Violation]) -> None:
    """What each graph's list shows is what was accepted, no less and no more."""
    for graph_id, listed in seen.listed.items():
        wanted = set(seen.members.get(graph_id, ()))
        lost = sorted(wanted - set(listed))
        more = sorted(set(listed) - wanted)
        found += [Violation(10, one, "it was accepted and is in no list") for one in lost]
        found += [Violation(9, one, f"nobody started this execution of graph {graph_id}") for one in more]
        found += [Violation(9, one, "it is listed twice") for one, n in Counter(listed).items() if n > 1]
    for parent, children in seen.children.items():
        if len(children) > 1:
            found.append(Violation(9, parent, f"one node execution started {len(children)} executions: {children}"))


def _graphs(seen: Evidence, found: list[Violation]) -> None:
    logs = {run.id: run.log for run in seen.runs}
    for graph_id, items in seen.graphs.items():
        mine = {one: logs[one] for one in seen.members.get(graph_id, ()) if one in logs}
        found += [Violation(6, graph_id, text) for text in check_graph_tape(items, mine)]


def _moment(text: Any) -> float | None:
    if text is None:
        return None
    return datetime.fromisoformat(str(text)).timestamp()
