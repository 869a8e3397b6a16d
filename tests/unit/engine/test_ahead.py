"""Which blocks may run before the commit that tells of them, and what is then in one commit (decision 0022)."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Literal, cast

import pytest

from livetape.engine.block import Block, BlockContext, BlockRegistry, BlockSchema, PinValue
from livetape.engine.block_cost import BlockCosts
from livetape.engine.executor import AHEAD_ROUNDS, AHEAD_S, Executor, ExecutorOptions
from livetape.engine.graph import Graph, Link, Node
from livetape.engine.graph_plan import GraphPlan
from livetape.engine.hooks import Costs, Hooks
from livetape.errors import CommitUnknownError, LeaseLostError
from livetape.events.executions import ExecutionStatus
from livetape.observability import NoMetrics
from livetape.store.executions import ExecutionRow, ExecutionStore, Step
from livetape.testing.fakes import ManualClock


class Plain(Block["Plain.Input"]):
    """Gives what it got."""

    id = "plain"

    class Input(BlockSchema):
        value: int

    class Output(BlockSchema):
        value: int

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, data: Plain.Input, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.runs += 1
        yield "value", data.value


class Pure(Plain):
    id = "pure"
    pure = True


class Asked(Pure):
    """Whoever interrupts it has to be asked."""

    id = "asked"
    on_interrupt: ClassVar[Literal["rerun", "fail", "ask"]] = "ask"


class Slow(Pure):
    """Does not end at once."""

    id = "slow"

    async def run(self, data: Plain.Input, ctx: BlockContext) -> AsyncIterator[PinValue]:
        await asyncio.sleep(0.05)
        yield "value", data.value


class Steps:
    """Keeps steps. `on_commit` is called before each."""

    def __init__(self, on_commit: Callable[[], None] = lambda: None) -> None:
        self.steps: list[Step] = []
        self.on_commit = on_commit
        self.handed_back: list[str] = []
        self.over = False

    async def nodes(self, execution_id: str) -> tuple[()]:
        return ()

    async def commit(self, step: Step, row: ExecutionRow) -> None:
        self.on_commit()
        self.steps.append(step)

    async def hand_back(self, execution_id: str, *, lease_no: int, reason: str) -> None:
        if self.over:
            raise LeaseLostError
        self.handed_back.append(reason)


class Late(Pure):
    """Takes its time, by the clock."""

    id = "late"

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self.clock = clock

    async def run(self, data: Plain.Input, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.clock.advance(2 * AHEAD_S)
        yield "value", data.value


async def run(
    store: Steps,
    blocks: Sequence[Block[Any]],
    names: Sequence[str],
    hooks: Hooks | None = None,
    *,
    clock: ManualClock | None = None,
) -> None:
    """A chain of these blocks. No time passes but what they let pass."""
    clock, ids, registry = clock or ManualClock(), itertools.count(1), BlockRegistry(blocks)
    nodes = [Node(id=f"n{n}", block_id=name, input_default={} if n else {"value": 4}) for n, name in enumerate(names)]
    links = [
        Link(source_id=f"n{n}", sink_id=f"n{n + 1}", source_name="value", sink_name="value")
        for n in range(len(names) - 1)
    ]
    now = clock.now()
    row = ExecutionRow(
        id="run", user_id="alice", graph_id="g", graph_version=1, status=ExecutionStatus.RUNNING, status_reason=None,
        inputs=b"{}", stats=b"{}", created_at=now, started_at=now, ended_at=None, cancel_requested=False,
        lease_owner="here", lease_no=1, lease_until=None, recoveries=0, tape_id=1, epoch="e",
    )  # fmt: skip
    with ThreadPoolExecutor(1) as threads:
        executor = Executor(
            row,
            GraphPlan(Graph(name="g", nodes=nodes, links=links), registry),
            store=cast("ExecutionStore", store),
            blocks=registry,
            threads=threads,
            clock=clock,
            new_id=lambda: f"id{next(ids)}",
            metrics=NoMetrics(),
            options=ExecutorOptions(),
            hooks=hooks,
        )
        async with asyncio.timeout(20):
            await executor.run()


def told(step: Step) -> list[tuple[str, str]]:
    """Node and status of each snapshot, in order."""
    events = [json.loads(event.payload) for event in step.events]
    return [(event["node_id"], event["status"]) for event in events if event["event_type"] == "node_execution_update"]


async def test_a_chain_of_pure_blocks_is_one_commit_with_the_events_of_all_rounds() -> None:
    store = Steps()
    await run(store, [Pure()], ["pure"] * 3)
    (step,) = store.steps
    assert told(step) == [
        ("n0", "RUNNING"),
        ("n0", "COMPLETED"),
        ("n1", "RUNNING"),
        ("n1", "COMPLETED"),
        ("n2", "RUNNING"),
        ("n2", "COMPLETED"),
    ]
    assert [node.status for node in step.created] == [ExecutionStatus.COMPLETED] * 3
    assert all(json.loads(node.inputs) == {"value": 4} and node.end_time for node in step.created)
    assert not step.touched
    assert not step.filled
    assert [(output.seq, output.value) for output in step.outputs] == [(1, b"4"), (2, b"4"), (3, b"4")]
    assert step.change is not None
    assert step.change.status is ExecutionStatus.COMPLETED
    assert step.events[-1].final


async def test_what_may_have_called_somebody_begins_after_the_commit_that_says_so() -> None:
    plain, begun = Plain(), []
    store = Steps(lambda: begun.append(plain.runs))
    await run(store, [Pure(), plain], ["pure", "plain", "pure", "plain", "pure"])
    assert begun == [0, 1, 2]
    assert [("n1", "RUNNING") in told(step) for step in store.steps] == [True, False, False]
    assert [("n3", "RUNNING") in told(step) for step in store.steps] == [False, True, False]


async def test_what_has_happened_is_not_kept_back_for_longer_than_a_moment() -> None:
    store, clock = Steps(), ManualClock()
    await run(store, [Late(clock)], ["late"] * 3, clock=clock)
    assert [told(step) for step in store.steps] == [
        [("n0", "RUNNING"), ("n0", "COMPLETED"), ("n1", "RUNNING")],
        [("n1", "COMPLETED"), ("n2", "RUNNING"), ("n2", "COMPLETED")],
    ]


async def test_a_long_chain_is_not_kept_back_to_its_end() -> None:
    store = Steps()
    await run(store, [Pure()], ["pure"] * (3 * AHEAD_ROUNDS))
    assert len(store.steps) >= 3


class Payer:
    """Somebody pays."""

    async def before(self, who: object, block: object, inputs: Mapping[str, Any]) -> None:
        pass

    async def after(self, who: object, block: object, inputs: Mapping[str, Any], stats: object) -> int:
        return 1


class Judge:
    """Somebody looks at every output."""

    async def start(self, user_id: str, graph_id: str, inputs: dict[str, Any]) -> str | None:
        return None

    async def output(self, who: object, name: str, value: Any) -> str | None:
        return None


@pytest.mark.parametrize(
    ("hooks", "commits"),
    [
        (Hooks(costs=BlockCosts(NoMetrics())), 1),
        (Hooks(costs=BlockCosts(NoMetrics(), cast("Costs", Payer()))), 4),
        (Hooks(costs=cast("Costs", Payer())), 4),
        (Hooks(moderation=Judge()), 4),
    ],
)
async def test_whoever_pays_or_judges_is_told_of_nothing_that_is_not_written(hooks: Hooks, commits: int) -> None:
    store = Steps()
    await run(store, [Pure()], ["pure"] * 3, hooks)
    assert len(store.steps) == commits


async def test_where_a_person_is_asked_after_an_interruption_it_is_written_first() -> None:
    store = Steps()
    await run(store, [Asked()], ["asked"] * 2)
    assert len(store.steps) == 3


async def test_one_that_does_not_end_at_once_is_told_to_run_meanwhile() -> None:
    store = Steps()
    await run(store, [Slow(), Pure()], ["slow", "pure"])
    assert told(store.steps[0]) == [("n0", "RUNNING")]
    assert len(store.steps) == 2


@pytest.mark.parametrize("over", [False, True], ids=["it goes on", "it was the last step"])
async def test_after_a_commit_of_which_nobody_knows_it_is_given_back_at_once(over: bool) -> None:
    def lose() -> None:
        raise CommitUnknownError("gone")

    store = Steps(lose)
    store.over = over
    await run(store, [Plain()], ["plain"])
    assert store.handed_back == ([] if over else ["commit_unknown"])
