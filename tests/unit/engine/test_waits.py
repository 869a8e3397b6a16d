"""Timers and graphs inside graphs: the execution leaves its worker while everything in it waits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from livetape.events.executions import ExecutionStatus
from unit.engine.waiting_blocks import children_of, inner, outer, runs, stage_on

# ---- timers --------------------------------------------------------------------------------------------------------


async def test_a_long_wait_takes_no_worker_and_is_rung_when_it_is_due(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        execution_id = await stage.start(await outer(stage, "ticker"))
        await stage.work()
        for number in range(3):
            assert await stage.status(execution_id) == ("QUEUED", "waiting")
            assert await stage.outputs(execution_id) == {"r": list(range(number + 1))}
            assert await stage.claim(execution_id) is None
            await stage.agree(execution_id)
            stage.clock.go(59)
            assert await stage.work() == []
            await stage.store.sweep()
            assert await stage.work() == []
            stage.clock.go(1)
            assert await stage.work() == [execution_id]
        assert await stage.status(execution_id) == ("COMPLETED", None)
        assert await stage.outputs(execution_id) == {"r": [0, 1, 2]}
        assert runs(stage, "ticker") == 4
        await stage.agree(execution_id)
        node = await stage.node(execution_id, "a")
        assert node.start_time is not None
        assert node.end_time is not None
        assert (node.end_time - node.start_time).total_seconds() == 180


async def test_a_timer_whose_doorbell_was_lost_is_rung_by_the_sweep(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        execution_id = await stage.start(await outer(stage, "ticker"))
        await stage.work()
        await stage.lose_bells()
        stage.clock.go(60 + 15)
        assert list((await stage.store.sweep()).rung) == [execution_id]
        assert await stage.work() == [execution_id]


async def test_stop_while_it_waits(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        execution_id = await stage.start(await outer(stage, "ticker"))
        await stage.work()
        await stage.executions.stop("u", execution_id)
        assert await stage.status(execution_id) == ("TERMINATED", "cancelled_by_user")
        assert (await stage.node(execution_id, "a")).status is ExecutionStatus.TERMINATED
        await stage.agree(execution_id)
        stage.clock.go(100)
        assert await stage.work() == []


# ---- graphs inside graphs ------------------------------------------------------------------------------------------


async def test_a_graph_inside_a_graph(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        await inner(stage)
        execution_id = await stage.start(await outer(stage))
        ran = await stage.work()
        (child,) = await children_of(stage, execution_id)
        assert ran == [execution_id, child, execution_id]
        row = await stage.row(child)
        assert (row.parent_id, row.depth, row.user_id) == (execution_id, 1, "u")
        assert row.parent_node_exec_id == (await stage.node(execution_id, "a")).id
        assert await stage.status(execution_id) == ("COMPLETED", None)
        assert await stage.outputs(execution_id) == {"r": [5]}
        assert runs(stage, "sub") == 2
        await stage.agree(execution_id)
        await stage.agree(child)


async def test_the_end_of_a_child_and_the_wake_of_its_parent_are_one_commit(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        await inner(stage)
        execution_id = await stage.start(await outer(stage))
        row = await stage.claim(execution_id)
        assert row is not None
        await (await stage.executor(row)).run()
        assert await stage.status(execution_id) == ("QUEUED", "waiting")
        assert await stage.claim(execution_id) is None, "nothing has happened that it waits for"
        (child,) = await children_of(stage, execution_id)
        assert (await stage.row(execution_id)).ring_at is None
        await stage.store.request_cancel(child, user_id="u")
        assert execution_id in await stage.bells()
        await stage.work()
        assert await stage.status(execution_id) == ("FAILED", "block_error")
        assert (
            "TERMINATED" in (await stage.executions.get("u", execution_id)).node_executions[0].output_data["error"][0]
        )


async def test_a_child_that_ends_before_its_parent_has_left_wakes_it_at_once(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        await inner(stage)
        execution_id = await stage.start(await outer(stage))
        row = await stage.claim(execution_id)
        assert row is not None
        commit = stage.store.commit

        async def late(step: Any, of: Any) -> None:
            if step.change is not None and step.change.status is ExecutionStatus.QUEUED:
                # everything of the child happens between the parent's last look and its leaving
                await stage.store.commit_alone(step, of)  # type: ignore[attr-defined]
            else:
                await commit(step, of)

        async def alone(step: Any, of: Any) -> None:
            change, step.change = step.change, None
            await commit(step, of)
            stage.store.commit = commit  # type: ignore[method-assign]
            (child,) = await children_of(stage, execution_id)
            claimed = await stage.claim(child)
            assert claimed is not None
            await (await stage.executor(claimed)).run()
            step.change, step.waits, step.children, step.events, step.touched = change, {}, [], [], []
            step.created, step.outputs = [], []
            await commit(step, of)

        stage.store.commit = late  # type: ignore[method-assign]
        stage.store.commit_alone = alone  # type: ignore[attr-defined]
        await (await stage.executor(row)).run()
        assert await stage.status(execution_id) == ("QUEUED", "waiting")
        assert execution_id in await stage.bells()
        await stage.work()
        assert await stage.status(execution_id) == ("COMPLETED", None)
        await stage.agree(execution_id)


async def test_children_run_so_many_at_once_and_each_once(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        await inner(stage)
        execution_id = await stage.start(await outer(stage, "many"))
        row = await stage.claim(execution_id)
        assert row is not None
        await (await stage.executor(row)).run()
        assert len(await children_of(stage, execution_id)) == 2
        await stage.work()
        assert len(await children_of(stage, execution_id)) == 5
        given = (await stage.outputs(execution_id))["r"]
        assert sorted(given) == [[n, [n]] for n in range(5)]
        await stage.agree(execution_id)


async def test_what_a_node_started_is_stopped_when_the_node_has_failed(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        await stage.graph("quick", {"s": ("step", {"value": 1})})
        await stage.graph("slow", {"t": "ticker"})
        graph = await stage.graph("outer", {"a": "fickle", "t": "ticker"})
        execution_id = await stage.start(graph)
        await stage.work()
        assert await stage.status(execution_id) == ("QUEUED", "waiting"), "the other branch goes on"
        assert (await stage.node(execution_id, "a")).status is ExecutionStatus.FAILED
        statuses = {(await stage.row(child)).graph_id: await stage.status(child)
                    for child in await children_of(stage, execution_id)}  # fmt: skip
        assert statuses == {"quick": ("COMPLETED", None), "slow": ("TERMINATED", "parent_ended")}
        await stage.agree(execution_id)


async def test_a_child_that_fails_fails_its_node(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        await stage.graph("inner", {"s": ("step", {"value": "broken"})})
        execution_id = await stage.start(await outer(stage))
        await stage.work()
        assert await stage.status(execution_id) == ("FAILED", "block_error")
        node = await stage.node(execution_id, "a")
        assert from_json(node.outputs[-1][1]) == "FAILED: node s: it is broken"
        await stage.agree(execution_id)


async def test_a_graph_that_is_not_there_fails_the_node(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        execution_id = await stage.start(await outer(stage, value="nowhere"))
        await stage.work()
        assert await stage.status(execution_id) == ("FAILED", "block_error")


async def test_graphs_lie_only_so_deep_inside_each_other(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        stage.max_depth = 3
        execution_id = await stage.start(await outer(stage, value="outer"))
        await stage.work()
        rows, total = await stage.store.list("u", limit=100)
        assert (total, max(row.depth for row, _ in rows)) == (4, 3)
        assert {row.status for row, _ in rows} == {ExecutionStatus.FAILED}
        assert "inside each other" in str(from_json((await stage.row(execution_id)).stats)["error"])


async def test_stopping_a_parent_stops_everything_inside_it(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        await stage.graph("inner", {"s": ("sub", {"value": "innermost"})})
        await stage.graph("innermost", {"e": "endless"})
        execution_id = await stage.start(await outer(stage))
        working = asyncio.create_task(stage.work())
        async with asyncio.timeout(20):
            while not runs(stage, "endless"):
                await asyncio.sleep(0.01)
        (child,) = await children_of(stage, execution_id)
        (grandchild,) = await children_of(stage, child)
        await stage.executions.stop("u", execution_id)
        assert await stage.status(execution_id) == ("TERMINATED", "cancelled_by_user")
        assert await stage.status(child) == ("TERMINATED", "cancelled_by_user")
        assert await stage.status(grandchild) == ("RUNNING", "cancel_requested")
        assert grandchild in stage.hints
        stage.executors[-1].look(await stage.row(grandchild))
        async with asyncio.timeout(20):
            await working
        assert await stage.status(grandchild) == ("TERMINATED", "cancelled_by_user")
        for one in (execution_id, child, grandchild):
            await stage.agree(one)


async def test_a_parent_that_runs_beside_its_child_learns_of_its_end_by_a_look(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        await inner(stage)
        graph = await stage.graph(
            "outer", {"a": ("sub", {"value": "inner"}), "e": "endless", "s": "step"}, "a.out>s.value"
        )
        execution_id = await stage.start(graph)
        row = await stage.claim(execution_id)
        assert row is not None
        executor = await stage.executor(row)
        running = asyncio.create_task(executor.run())
        async with asyncio.timeout(20):
            while not await children_of(stage, execution_id):
                await asyncio.sleep(0.01)
        await stage.work()
        assert execution_id in stage.hints
        executor.look(await stage.row(execution_id))
        async with asyncio.timeout(20):
            while runs(stage, "step") != 2:
                await asyncio.sleep(0.01)
        executor.cancel()
        await running
        await stage.agree(execution_id)
