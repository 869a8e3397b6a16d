"""The planner, sentence by sentence of the execution contract ("Graph semantics", "Failure of a node")."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest

from livetape.engine.block import Block, BlockContext, BlockRegistry, BlockSchema, BlockType, PinValue
from livetape.engine.changes import CancelRequested, Changes, Ended, NodeRun, Output, Yielded
from livetape.engine.graph import Graph, Link, Node
from livetape.engine.graph_plan import GraphPlan
from livetape.engine.planner import Planner, Rules
from livetape.events.executions import ExecutionStatus as Status


class Step(Block[BlockSchema]):
    """Any pins; the planner never runs it."""

    id = "step"

    class Input(BlockSchema):
        a: Any = None
        b: Any = None

    class Output(BlockSchema):
        out: Any

    async def run(self, data: BlockSchema, ctx: BlockContext) -> AsyncIterator[PinValue]:
        raise AssertionError("the planner runs no block")
        yield "out", None


class Kept(Step):
    id = "kept"
    static_output: ClassVar[bool] = True


class Given(Step):
    id = "given"
    block_type = BlockType.INPUT


class Told(Step):
    id = "told"
    block_type = BlockType.OUTPUT


class Note(Step):
    id = "note"
    block_type = BlockType.NOTE


BLOCKS = BlockRegistry([Step(), Kept(), Given(), Told(), Note()])


def graph(nodes: dict[str, str | tuple[str, dict[str, Any]]], *links: str) -> Graph:
    """Nodes by id: a block id, or that and its defaults. Links: `x.out>y.a`, `=>` for a static one."""
    made = []
    for node_id, of in nodes.items():
        block, defaults = (of, {}) if isinstance(of, str) else of
        made.append(Node(id=node_id, block_id=block, input_default=defaults))
    parsed = []
    for text in links:
        static = "=>" in text
        (source, pin), (sink, to) = (end.split(".") for end in text.replace("=>", ">").split(">"))
        parsed.append(Link(source_id=source, source_name=pin, sink_id=sink, sink_name=to, is_static=static))
    return Graph(name="g", nodes=made, links=parsed)


class Play:
    """A planner with a memory of what it said."""

    def __init__(self, g: Graph, rules: Rules | None = None) -> None:
        ids = itertools.count(1)
        self.planner = Planner(GraphPlan(g, BLOCKS), rules or Rules(), lambda: f"id{next(ids)}")
        self.started: list[NodeRun] = []
        self.changes: list[Changes] = []

    def begin(self, **inputs: Any) -> Play:
        return self._note(self.planner.begin(inputs))

    def feed(self, *happenings: Any) -> Play:
        return self._note(self.planner.advance(happenings))

    def _note(self, changes: Changes) -> Play:
        self.changes.append(changes)
        self.started += changes.start
        return self

    def run_of(self, node_id: str, which: int = 0) -> NodeRun:
        return [run for run in self.started if run.node.id == node_id][which]

    def give(self, node_id: str, *values: Any, which: int = 0, pin: str = "out") -> Play:
        seq = self.run_of(node_id, which).seq
        return self.feed(*(Yielded(seq, pin, value) for value in values))

    def end(self, node_id: str, which: int = 0) -> Play:
        return self.feed(Ended(self.run_of(node_id, which).seq, Status.COMPLETED))

    def fail(self, node_id: str, message: str = "no") -> Play:
        return self.feed(Ended(self.run_of(node_id).seq, Status.FAILED, message))

    @property
    def inputs(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for run in self.started:
            found.setdefault(run.node.id, []).append(run.inputs)
        return found

    @property
    def over(self) -> tuple[Status, str | None] | None:
        last = self.changes[-1].over
        return None if last is None else (last.status, last.reason)


def test_nodes_without_incoming_links_and_input_blocks_start() -> None:
    play = Play(graph({"x": "step", "in": "given", "y": "step", "n": "note"}, "x.out>y.a", "y.out>in.a")).begin()
    assert set(play.inputs) == {"x", "in"}


def test_an_input_block_takes_the_value_given_under_its_name_else_its_own() -> None:
    named = {"in": ("given", {"name": "n", "value": 1}), "other": ("given", {"name": "m", "value": 2})}
    play = Play(graph(named)).begin(n=7)
    assert play.inputs == {"in": [{"name": "n", "value": 7}], "other": [{"name": "m", "value": 2}]}


def test_outputs_are_followed_as_they_are_yielded() -> None:
    play = Play(graph({"x": "step", "y": "step"}, "x.out>y.a")).begin().give("x", 1)
    assert play.inputs["y"] == [{"a": 1}], "while x still runs"
    play.give("x", 2).end("x")
    assert play.inputs["y"] == [{"a": 1}, {"a": 2}]


def test_a_value_goes_to_the_oldest_waiting_execution_that_lacks_the_pin() -> None:
    g = graph({"x": "step", "y": "step", "z": "step"}, "x.out>z.a", "y.out>z.b")
    play = Play(g).begin().give("x", 1, 2, 3)
    assert "z" not in play.inputs, "linked pins always wait"
    play.give("y", "p", "q")
    assert play.inputs["z"] == [{"a": 1, "b": "p"}, {"a": 2, "b": "q"}]
    assert play.end("x").end("y").end("z").end("z", 1).over == (Status.COMPLETED, None)
    assert play.changes[-1].over is not None
    assert play.changes[-1].over.incomplete == 1, "the third never got its b"


def test_unlinked_pins_take_their_defaults_and_linked_ones_never_do() -> None:
    g = graph({"x": "step", "y": ("step", {"a": "default", "b": "kept"})}, "x.out>y.a")
    assert Play(g).begin().give("x", 1).inputs["y"] == [{"a": 1, "b": "kept"}]


def test_a_value_of_none_is_forwarded() -> None:
    assert Play(graph({"x": "step", "y": "step"}, "x.out>y.a")).begin().give("x", None).inputs["y"] == [{"a": None}]


def test_other_outputs_do_not_fire_the_link() -> None:
    assert "y" not in Play(graph({"x": "step", "y": "step"}, "x.out>y.a")).begin().give("x", 1, pin="else").inputs


def test_a_static_value_is_kept_for_later_executions() -> None:
    g = graph({"x": "step", "s": "step", "z": "step"}, "x.out>z.a", "s.out=>z.b")
    play = Play(g).begin().give("s", "kept").give("x", 1, 2)
    assert play.inputs["z"] == [{"a": 1, "b": "kept"}, {"a": 2, "b": "kept"}]


def test_a_static_value_completes_all_that_wait_for_it() -> None:
    g = graph({"x": "step", "s": "step", "z": "step"}, "x.out>z.a", "s.out=>z.b")
    play = Play(g).begin().give("x", 1, 2, 3).give("s", "late")
    assert play.inputs["z"] == [{"a": n, "b": "late"} for n in (1, 2, 3)]


def test_a_newer_static_value_replaces_the_kept_one() -> None:
    g = graph({"x": "step", "s": "step", "z": "step"}, "x.out>z.a", "s.out=>z.b")
    play = Play(g).begin().give("s", "old").give("x", 1).give("s", "new").give("x", 2, 3)
    assert [run["b"] for run in play.inputs["z"]] == ["old", "new", "new"]


def test_a_block_with_static_output_makes_its_links_static() -> None:
    g = graph({"x": "step", "s": "kept", "z": "step"}, "x.out>z.a", "s.out>z.b")
    assert len(Play(g).begin().give("x", 1, 2).give("s", "v").inputs["z"]) == 2


@pytest.mark.parametrize("order", list(itertools.permutations(["a", "a", "a", "b"])))
def test_the_upstream_vector_in_every_order_of_arrival(order: tuple[str, ...]) -> None:
    nodes = {"x0": "kept", "x1": "kept", "x2": "kept", "s": "kept", "calc": "step"}
    g = graph(nodes, "x0.out>calc.a", "x1.out>calc.a", "x2.out>calc.a", "s.out>calc.b")
    play = Play(g).begin()
    sources = iter(["x0", "x1", "x2"])
    for pin in order:
        play.give("s", 5) if pin == "b" else play.give(next(sources), 4)
    assert play.inputs["calc"] == [{"a": 4, "b": 5}] * 3


def test_an_error_is_an_output_like_any_other() -> None:
    g = graph({"x": "step", "h": "step"}, "x.error>h.a")
    play = Play(g).begin().fail("x", "broken")
    assert play.inputs["h"] == [{"a": "broken"}]
    assert play.end("h").over == (Status.COMPLETED, None), "an error whose pin is linked is handled"


def test_an_unhandled_failure_ends_failed_after_the_other_branches() -> None:
    g = graph({"x": "step", "y": "step", "after": "step", "later": "step"}, "x.out>after.a", "y.out>later.a")
    play = Play(g).begin().fail("x", "broken")
    assert play.over is None, "y still runs"
    play.give("y", 1).end("y").end("later")
    assert play.over == (Status.FAILED, "block_error")
    assert play.changes[-1].over is not None
    assert play.changes[-1].over.error == "node x: broken"


def test_nothing_new_starts_downstream_of_an_unhandled_failure() -> None:
    g = graph({"x": "step", "y": "step", "join": "step"}, "x.out>join.a", "y.out>join.b")
    play = Play(g).begin().give("x", 1).fail("x").give("y", 2).end("y")
    assert "join" not in play.inputs
    assert play.over == (Status.FAILED, "block_error")
    ended = [run for run in play.changes[-1].told if isinstance(run, NodeRun) and run.node.id == "join"]
    assert [(run.status, run.status_reason) for run in ended] == [(Status.TERMINATED, "upstream_failed")]


def test_the_other_policy_completes_in_spite_of_errors() -> None:
    play = Play(graph({"x": "step"}), Rules(node_error_policy="complete")).begin().fail("x")
    assert play.over == (Status.COMPLETED, None)
    assert play.changes[-1].failed == 1


def test_no_more_nodes_run_at_once_than_allowed() -> None:
    play = Play(graph({f"n{i}": "step" for i in range(5)}), Rules(parallel_nodes=2)).begin()
    assert list(play.inputs) == ["n0", "n1"]
    assert [run.node.id for run in play.end("n0").changes[-1].start] == ["n2"]


def test_a_loop_is_ended_by_the_step_limit() -> None:
    g = graph({"in": ("given", {"name": "n", "value": 1}), "x": "step"}, "in.out>x.a", "x.out>x.a")
    play = Play(g, Rules(step_limit=5)).begin().give("in", 0).end("in")
    rounds = 0
    while play.over is None:
        play.give("x", rounds, which=rounds).end("x", rounds)
        rounds += 1
    assert play.over == (Status.FAILED, "step_limit")
    assert len(play.started) == 5


def test_cancel_stops_what_runs_and_starts_nothing() -> None:
    play = Play(graph({"x": "step", "y": "step"}, "x.out>y.a"), Rules(parallel_nodes=1)).begin()
    play.give("x", 1).feed(CancelRequested())
    assert (play.changes[-1].stop, play.over) == (True, None)
    play.feed(Ended(play.run_of("x").seq, Status.TERMINATED))
    assert play.over == (Status.TERMINATED, "cancelled_by_user")
    assert "y" not in play.inputs


def test_what_happens_after_the_end_changes_nothing() -> None:
    play = Play(graph({"x": "step"})).begin().end("x")
    assert play.over == (Status.COMPLETED, None)
    assert not play.feed(Yielded(1, "out", 1), CancelRequested()).changes[-1]


def test_a_graph_without_anything_to_run_completes() -> None:
    assert Play(graph({})).begin().over == (Status.COMPLETED, None)


# ---- going on after an interruption --------------------------------------------------------------------------------


def resumed(g: Graph, *runs: tuple[str, Status, dict[str, Any], list[Any]], **more: Any) -> Play:
    play = Play(g)
    nodes = play.planner.plan.nodes
    stored = []
    for seq, (node_id, status, inputs, outputs) in enumerate(runs, 1):
        run = NodeRun(seq, f"old{seq}", nodes[node_id], status, inputs)
        run.outputs, run.output_count = {"out": list(outputs)}, len(outputs)
        run.recorded.extend(("out", value) for value in outputs)
        stored.append(run)
    options: dict[str, Any] = {"statics": {}, "failed": {}, "last_seq": len(stored)} | more
    return play._note(play.planner.resume(stored, **options))


def test_an_interrupted_node_runs_again_without_doubling_its_outputs() -> None:
    g = graph({"x": "step", "y": "step"}, "x.out>y.a")
    play = resumed(g, ("x", Status.RUNNING, {}, [1, 2]), ("y", Status.QUEUED, {"a": 2}, []))
    assert [run.node.id for run in play.started] == ["x", "y"]
    play.give("x", 1, 2, 3)
    recorded = [(item.index, item.value) for c in play.changes for item in c.told if isinstance(item, Output)]
    assert recorded == [(2, 3)]
    assert play.inputs["y"] == [{"a": 2}, {"a": 3}]


def test_a_run_that_goes_another_way_is_recorded_from_there_on() -> None:
    play = resumed(graph({"x": "step"}), ("x", Status.RUNNING, {}, [1, 2]))
    play.give("x", 1, "other", 2)
    recorded = [(item.index, item.value) for c in play.changes for item in c.told if isinstance(item, Output)]
    assert recorded == [(2, "other"), (3, 2)]


def test_waiting_executions_and_kept_static_values_survive() -> None:
    g = graph({"x": "step", "s": "step", "z": "step"}, "x.out>z.a", "s.out=>z.b")
    play = resumed(g, ("x", Status.RUNNING, {}, []), statics={"z": {"b": "kept"}})
    assert play.give("x", 1).inputs["z"] == [{"a": 1, "b": "kept"}]
    g = graph({"x": "step", "y": "step", "z": "step"}, "x.out>z.a", "y.out>z.b")
    play = resumed(g, ("y", Status.RUNNING, {}, []), ("z", Status.INCOMPLETE, {"a": 1}, []))
    assert play.give("y", 2).inputs["z"] == [{"a": 1, "b": 2}]


def test_a_node_that_must_not_run_again_is_failed() -> None:
    play = resumed(graph({"x": "step"}), ("x", Status.RUNNING, {}, []), failed={1: "lost"})
    assert play.started == []
    assert play.over == (Status.FAILED, "block_error")


def test_nothing_left_to_do_ends_the_execution() -> None:
    assert resumed(graph({"x": "step"}), last_seq=1).over == (Status.COMPLETED, None)
