"""Stopping, retrying, limits, time-outs and pauses (execution contract, "Cancel, pause, time-outs")."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from livetape.engine.block import Block, BlockContext, BlockSchema, BlockType, PinValue
from livetape.engine.start_options import StartOptions
from livetape.errors import ConflictError, GraphValidationError, NotFoundError
from livetape.events.executions import ExecutionStatus
from livetape.store.executions import ClaimLimits
from stage import Stage, on_stage

OUTPUT = "363ae599-353e-4804-937e-b2ee3cef3da4"


class AnyIn(BlockSchema):
    value: Any = None


class AnyOut(BlockSchema):
    out: Any


class Step(Block[AnyIn]):
    """Gives its value and counts its runs by value."""

    id = "step"
    pure = True
    Input, Output = AnyIn, AnyOut

    def __init__(self) -> None:
        self.ran: list[Any] = []
        self.broken: set[Any] = set()

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.ran.append(data.value)
        if data.value in self.broken:
            raise ValueError(f"{data.value} is broken")
        yield "out", data.value


class Effect(Step):
    id = "effect"
    pure = False


class Endless(Step):
    id = "endless"

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.ran.append(data.value)
        await asyncio.get_running_loop().create_future()
        yield "out", None


class Hook(Step):
    """Gives what a webhook received."""

    id = "hook"
    block_type = BlockType.WEBHOOK

    class Input(AnyIn):
        payload: dict[str, Any]

    async def run(self, data: Any, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "out", data.payload


async def graph_of_steps(stage: Stage, *values: Any) -> str:
    """A chain of steps; the last value goes out as `r`. Each step gives the first's value on."""
    nodes: dict[str, Any] = {f"n{i}": "step" for i in range(len(values))}
    nodes["n0"] = ("step", {"value": values[0]})
    links = [f"n{i}.out>n{i + 1}.value" for i in range(len(values) - 1)]
    return await stage.graph("g", nodes | {"r": (OUTPUT, {"name": "r"})}, *links, f"n{len(values) - 1}.out>r.value")


# ---- stopping ------------------------------------------------------------------------------------------------------


async def test_stop_while_queued_ends_it_at_once_and_again_changes_nothing(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Step()) as stage:
        execution_id = await stage.start(await graph_of_steps(stage, 1))
        for _ in range(3):
            meta = await stage.executions.stop("u", execution_id)
            assert (meta.status, meta.status_reason) == (ExecutionStatus.TERMINATED, "cancelled_by_user")
        assert await stage.work() == []
        await stage.agree(execution_id)
        with pytest.raises(NotFoundError):
            await stage.executions.stop("v", execution_id)


async def test_stop_while_it_runs_is_heard_by_a_look_at_the_row(tmp_path: Path) -> None:
    block = Endless()
    async with on_stage(tmp_path, block) as stage:
        execution_id = await stage.start(await stage.graph("g", {"a": "endless"}))
        running = asyncio.create_task(stage.work())
        async with asyncio.timeout(20):
            while not block.ran:
                await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await stage.executions.stop_graph_execution("u", execution_id, wait_timeout=0)
        meta = await stage.executions.stop("u", execution_id)
        assert (meta.status, meta.status_reason) == (ExecutionStatus.RUNNING, "cancel_requested")
        assert execution_id in stage.hints
        stage.executors[0].look(await stage.row(execution_id))
        await running
        await stage.executions.stop_graph_execution("u", execution_id, wait_timeout=0)
        assert await stage.status(execution_id) == ("TERMINATED", "cancelled_by_user")
        await stage.agree(execution_id)


# ---- retry and re-run ----------------------------------------------------------------------------------------------


async def test_a_retry_takes_over_what_completed_and_runs_the_rest(tmp_path: Path) -> None:
    good, bad = Step(), Effect()
    async with on_stage(tmp_path, good, bad) as stage:
        graph = await stage.graph(
            "g",
            {
                "a": ("step", {"value": 1}),
                "b": ("effect", {}),
                "c": "step",
                "d": ("step", {"value": 5}),
                "r": (OUTPUT, {"name": "r"}),
                "s": (OUTPUT, {"name": "s"}),
            },
            "a.out>b.value",
            "b.out>c.value",
            "c.out>r.value",
            "d.out>s.value",
        )
        bad.broken = {1}
        first = await stage.start(graph)
        await stage.work()
        assert await stage.status(first) == ("FAILED", "block_error")
        assert sorted(good.ran) == [1, 5]
        bad.broken = set()
        started = await stage.executions.retry("u", first)
        fork = started.execution.id
        assert (await stage.row(fork)).forked_from == first
        await stage.agree(fork)
        await stage.work()
        assert await stage.status(fork) == ("COMPLETED", None)
        assert (sorted(good.ran), bad.ran) == ([1, 1, 5], [1, 1]), "a and d were not run again, b and c were"
        assert await stage.outputs(fork) == {"r": [1], "s": [5]}
        await stage.agree(fork)
        assert await stage.status(first) == ("FAILED", "block_error"), "terminal never changes"
        with pytest.raises(ConflictError):
            await stage.executions.retry("u", fork)
        again = (await stage.executions.retry("u", fork, from_node="b")).execution.id
        await stage.work()
        assert (await stage.outputs(again), len(bad.ran)) == ({"r": [1], "s": [5]}, 3)
        assert sorted(good.ran) == [1, 1, 1, 5], "only c lies downstream of b"
        with pytest.raises(NotFoundError):
            await stage.executions.retry("u", fork, from_node="nowhere")


async def test_a_retry_of_what_was_stopped_before_it_began_runs_it_all(tmp_path: Path) -> None:
    block = Step()
    async with on_stage(tmp_path, block) as stage:
        first = await stage.start(await graph_of_steps(stage, 3, 3))
        with pytest.raises(ConflictError):
            await stage.executions.retry("u", first)
        await stage.executions.stop("u", first)
        fork = (await stage.executions.retry("u", first)).execution.id
        await stage.work()
        assert (await stage.outputs(fork), block.ran) == ({"r": [3]}, [3, 3])


async def test_a_retry_with_static_links_and_values_that_wait(tmp_path: Path) -> None:
    calculator, store = "b1ab9b19-67a6-406d-abf5-2dba76d00c79", "1ff065e9-88e8-4358-9d82-8dc91f622ba9"
    bad = Effect()
    async with on_stage(tmp_path, bad) as stage:
        graph = await stage.graph(
            "g",
            {
                "x": (store, {"input": 4}),
                "y": (store, {"input": 6}),
                "b": ("effect", {"value": 5}),
                "calc": (calculator, {"operation": "Add"}),
                "r": (OUTPUT, {"name": "r"}),
            },
            "x.output>calc.a",
            "y.output>calc.a",
            "b.out=>calc.b",
            "calc.result>r.value",
        )
        bad.broken = {5}
        first = await stage.start(graph)
        await stage.work()
        bad.broken = set()
        fork = (await stage.executions.retry("u", first)).execution.id
        await stage.work()
        assert sorted((await stage.outputs(fork))["r"]) == [9, 11]
        await stage.agree(fork)


async def test_a_rerun_is_a_new_execution_of_the_same(tmp_path: Path) -> None:
    block = Step()
    async with on_stage(tmp_path, block) as stage:
        first = await stage.start(await graph_of_steps(stage, 3))
        await stage.work()
        second = (await stage.executions.rerun("u", first)).execution.id
        await stage.work()
        assert (await stage.outputs(second), block.ran) == ({"r": [3]}, [3, 3])
        with pytest.raises(NotFoundError):
            await stage.executions.rerun("v", first)


# ---- limits --------------------------------------------------------------------------------------------------------


async def test_a_user_has_so_many_slots_and_each_end_lets_the_next_go(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Step()) as stage:
        stage.limits = ClaimLimits(per_user=2)
        graph = await graph_of_steps(stage, 1)
        other = await stage.graph("h", {"a": "step"}, user="v")
        ids = [await stage.start(graph) for _ in range(4)]
        theirs = await stage.start(other, user="v")
        rows = [await stage.claim(execution_id) for execution_id in [*ids, theirs]]
        assert [row is not None for row in rows] == [True, True, False, False, True]
        assert [(await stage.row(i)).held for i in ids] == [None, None, "user", "user"]
        await stage.lose_bells()
        for row in rows[:2]:
            assert row is not None
            await (await stage.executor(row)).run()
        assert await stage.bells() == ids[2:], "one was rung for each slot"
        assert await stage.work() == ids[2:]
        for execution_id in ids:
            assert await stage.status(execution_id) == ("COMPLETED", None)


@pytest.mark.parametrize("how", ["worker lost", "handed back", "stopped", "poison"])
async def test_a_slot_never_leaks(tmp_path: Path, how: str) -> None:
    async with on_stage(tmp_path, Step()) as stage:
        stage.limits = ClaimLimits(per_graph=1)
        graph = await graph_of_steps(stage, 1)
        first, second = [await stage.start(graph) for _ in range(2)]
        row = await stage.claim(first)
        assert row is not None
        assert await stage.claim(second) is None
        await stage.lose_bells()
        match how:
            case "worker lost":
                stage.clock.go(16)
                await stage.store.sweep()
            case "handed back":
                await stage.store.hand_back(first, lease_no=row.lease_no, reason="worker_stopping")
            case "stopped":
                await stage.executions.stop("u", first)
                stage.clock.go(16)
                await stage.store.sweep()
            case "poison":
                await stage.database.write(lambda db: db.exec_driver_sql("UPDATE execution SET recoveries = 5"))
                stage.clock.go(16)
                await stage.store.sweep()
                assert await stage.status(first) == ("FAILED", "poison")
        assert second in await stage.work()
        assert await stage.status(second) == ("COMPLETED", None)


async def test_a_slot_that_one_graph_may_not_take_goes_to_another(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Step()) as stage:
        stage.limits = ClaimLimits(per_user=2, per_graph=1)
        for name in ("full", "free"):
            await stage.graph(name, {"a": "step"})
        running = [await stage.claim(await stage.start(name)) for name in ("full", "free")]
        waiting = [await stage.start(name) for name in ("full", "full", "free", "free")]
        assert [await stage.claim(execution_id) for execution_id in waiting] == [None] * 4
        assert [(await stage.row(i)).held for i in waiting] == ["user"] * 4
        await stage.lose_bells()
        assert running[1] is not None
        await (await stage.executor(running[1])).run()
        assert await stage.work() == waiting[2:], "not in a minute: now"
        assert [(await stage.row(i)).held for i in waiting[:2]] == ["graph", "graph"]
        assert running[0] is not None
        await (await stage.executor(running[0])).run()
        assert await stage.work() == waiting[:2]


async def test_what_a_limit_holds_back_is_rung_again_should_nobody_else_do_it(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Step()) as stage:
        graph = await graph_of_steps(stage, 1)
        first, second = [await stage.start(graph) for _ in range(2)]
        stage.limits = ClaimLimits(per_user=1)
        assert await stage.claim(first) is not None
        assert await stage.claim(second) is None
        await stage.lose_bells()
        stage.limits = ClaimLimits()  # the settings were changed
        stage.clock.go(61)
        await stage.store.sweep()
        assert second in await stage.work()


async def test_higher_priorities_go_first(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Step()) as stage:
        graph = await graph_of_steps(stage, 1)
        ids = [
            (await stage.executions.start("u", graph, None, {}, options=StartOptions(priority=p))).execution.id
            for p in (0, 5, 9)
        ]
        assert await stage.work() == ids[::-1]


# ---- time-outs -----------------------------------------------------------------------------------------------------


async def test_what_nobody_begins_in_time_fails_and_what_was_begun_does_not(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Step()) as stage:
        stage.executions._queue_seconds = 30
        graph = await graph_of_steps(stage, 1)
        first, second = [await stage.start(graph) for _ in range(2)]
        assert await stage.claim(second) is not None
        stage.clock.go(29)
        assert not (await stage.store.sweep()).timed_out
        stage.clock.go(2)
        assert list((await stage.store.sweep()).timed_out) == [first]
        assert await stage.status(first) == ("FAILED", "timeout")
        assert await stage.status(second) == ("QUEUED", "worker_lost")
        await stage.agree(first)
        assert await stage.work() == [second]


async def test_the_owner_ends_what_runs_too_long(tmp_path: Path) -> None:
    block = Endless()
    async with on_stage(tmp_path, block) as stage:
        stage.limits = ClaimLimits(run_seconds=60)
        execution_id = await stage.start(await stage.graph("g", {"a": "endless"}))
        row = await stage.claim(execution_id)
        assert row is not None
        executor = await stage.executor(row)
        running = asyncio.create_task(executor.run())
        async with asyncio.timeout(20):
            while not block.ran:
                await asyncio.sleep(0.01)
        stage.clock.go(59)
        executor._wake.set()
        await asyncio.sleep(0.05)
        assert not running.done()
        stage.clock.go(2)
        executor._wake.set()
        async with asyncio.timeout(20):
            await running
        assert await stage.status(execution_id) == ("FAILED", "timeout")
        await stage.agree(execution_id)


async def test_the_sweep_ends_what_its_owner_does_not(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Step()) as stage:
        stage.limits = ClaimLimits(run_seconds=20)
        execution_id = await stage.start(await graph_of_steps(stage, 1))
        row = await stage.claim(execution_id)
        assert row is not None
        for _ in range(6):
            stage.clock.go(5)
            await asyncio.to_thread(stage.store.renew, "w", {execution_id: 1}, 15)
        assert not (await stage.store.sweep(grace_seconds=10)).timed_out
        stage.clock.go(0.1)
        assert list((await stage.store.sweep(grace_seconds=10)).timed_out) == [execution_id]
        assert await stage.status(execution_id) == ("FAILED", "timeout")
        await (await stage.executor(row)).run()
        assert await stage.status(execution_id) == ("FAILED", "timeout"), "its owner writes nothing more"
        await stage.agree(execution_id)


async def test_a_limit_of_time_holds_over_recoveries(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Step()) as stage:
        stage.limits = ClaimLimits(run_seconds=40)
        execution_id = await stage.start(await graph_of_steps(stage, 1))
        first = await stage.claim(execution_id)
        stage.clock.go(16)
        await stage.store.sweep()
        second = await stage.claim(execution_id)
        assert first is not None
        assert second is not None
        assert second.deadline_at == first.deadline_at


# ---- pause ---------------------------------------------------------------------------------------------------------


async def test_a_paused_queue_gives_nothing_out_and_goes_on_where_it_was(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Step()) as stage:
        execution_id = await stage.start(await graph_of_steps(stage, 1))
        await stage.store.pause("maintenance")
        await stage.store.pause("again")
        assert await stage.store.paused() == "maintenance"
        assert await stage.claim(execution_id) is None
        await stage.lose_bells()
        stage.clock.go(100)
        assert not (await stage.store.sweep()).rung, "nothing is rung that may not be claimed"
        assert (await stage.store.figures()).depth == 1
        await stage.store.resume()
        assert await stage.store.paused() is None
        await stage.store.sweep()
        assert await stage.work() == [execution_id]


# ---- dry runs, masks, webhooks -------------------------------------------------------------------------------------


async def test_a_dry_run_runs_nothing_with_effects(tmp_path: Path) -> None:
    pure, effect = Step(), Effect()
    async with on_stage(tmp_path, pure, effect) as stage:
        graph = await stage.graph("g", {"a": ("step", {"value": 1}), "b": "effect", "c": "step"},
                                  "a.out>b.value", "b.out>c.value")  # fmt: skip
        started = await stage.executions.start("u", graph, None, {}, options=StartOptions(dry_run=True))
        await stage.work()
        assert started.execution.is_dry_run
        assert await stage.status(started.execution.id) == ("COMPLETED", None)
        assert (pure.ran, effect.ran) == ([1], [])
        node = await stage.node(started.execution.id, "b")
        assert (node.status, node.status_reason) == (ExecutionStatus.TERMINATED, "dry_run")
        await stage.agree(started.execution.id)


async def test_masks_replace_what_a_node_has(tmp_path: Path) -> None:
    block = Step()
    async with on_stage(tmp_path, block) as stage:
        graph = await graph_of_steps(stage, 1, 1)
        options = StartOptions(masks={"n1": {"value": "masked"}})
        started = await stage.executions.start("u", graph, None, {}, options=options)
        await stage.work()
        assert (block.ran, await stage.outputs(started.execution.id)) == ([1, "masked"], {"r": ["masked"]})
        await stage.agree(started.execution.id)
        with pytest.raises(GraphValidationError):
            await stage.executions.start("u", graph, None, {}, options=StartOptions(masks={"nowhere": {}}))


async def test_a_webhook_starts_a_graph_with_its_payload(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Hook(), Step()) as stage:
        graph = await stage.graph("g", {"h": "hook", "r": (OUTPUT, {"name": "r"})}, "h.out>r.value")
        with pytest.raises(GraphValidationError):
            await stage.start(graph)
        started = await stage.executions.trigger("u", graph, None, {"n": 1})
        await stage.work()
        assert await stage.outputs(started.execution.id) == {"r": [{"n": 1}]}
        with pytest.raises(GraphValidationError, match="no webhook node"):
            await stage.executions.trigger("u", await stage.graph("h", {"a": "step"}), None, {})
