"""What workers that are gone leave behind, and doorbells that nobody heard (execution contract, "Lease", "Queue")."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.adapters.sql import leasing
from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.adapters.sql.transitions import Transitions
from livetape.engine.block import Block, BlockContext, BlockSchema, PinValue
from livetape.errors import LeaseLostError, StoreUnavailableError
from livetape.events.executions import ExecutionStatus
from livetape.store.executions import ExecutionRow, Step
from livetape.store.reviews import Decision
from stage import Stage, on_stage

OUTPUT = "363ae599-353e-4804-937e-b2ee3cef3da4"


class AnyIn(BlockSchema):
    value: Any = None


class AnyOut(BlockSchema):
    out: Any


class Counted(Block[AnyIn]):
    """Counts its runs; waits for ever while `stuck`."""

    id = "counted"
    Input, Output = AnyIn, AnyOut

    def __init__(self) -> None:
        self.runs = 0
        self.stuck = False
        self.began = asyncio.Event()

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.runs += 1
        self.began.set()
        yield "out", data.value
        while self.stuck:
            await asyncio.sleep(0)
            if not self.stuck:
                break


class Fragile(Counted):
    id = "fragile"
    on_interrupt = "fail"


class Asking(Counted):
    id = "asking"
    on_interrupt = "ask"


class Transfer(Counted):
    """Writes to the database of the engine, exactly once."""

    id = "transfer"

    def __init__(self) -> None:
        super().__init__()
        self.units = 0

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        def unit(db: Any) -> int:
            self.units += 1
            db.exec_driver_sql("INSERT INTO account VALUES (1)")
            if data.value == "refused":
                raise ValueError("refused")
            return int(db.exec_driver_sql("SELECT count(*) FROM account").scalar())

        self.runs += 1
        total = await ctx.transaction(unit)
        again = await ctx.transaction(unit) if data.value == "twice" else None
        self.began.set()
        while self.stuck:
            await asyncio.sleep(0)
        yield "out", [total, again]


async def interrupted(stage: Stage, execution_id: str, block: Counted) -> None:
    """Run it until the block has begun, and lose its worker there."""
    row = await stage.claim(execution_id)
    assert row is not None
    block.stuck = True
    block.began.clear()
    executor = await stage.executor(row)
    running = asyncio.create_task(executor.run())
    async with asyncio.timeout(20):
        await block.began.wait()
        await asyncio.sleep(0.05)
    executor.fence()
    await running
    block.stuck = False
    stage.clock.go(15.1)


async def test_an_expired_lease_is_swept_and_a_live_one_is_not(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Counted()) as stage:
        execution_id = await stage.start(await stage.graph("g", {"a": "counted"}))
        row = await stage.claim(execution_id)
        assert row is not None
        stage.clock.go(15)
        assert not (await stage.store.sweep()).recovered
        stage.clock.go(0.001)
        assert (await stage.store.sweep()).recovered == [execution_id]
        assert not (await stage.store.sweep()).recovered
        assert await stage.status(execution_id) == ("QUEUED", "worker_lost")
        with pytest.raises(LeaseLostError):
            await stage.store.commit(Step(execution_id, row.lease_no, progressed=True), row)
        await stage.work()
        assert await stage.status(execution_id) == ("COMPLETED", None)
        await stage.agree(execution_id)


async def test_a_lease_that_is_over_is_not_prolonged_nor_one_of_another_number(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Counted()) as stage:
        execution_id = await stage.start(await stage.graph("g", {"a": "counted"}))
        assert await stage.claim(execution_id) is not None
        renew = stage.store.renew
        assert (await asyncio.to_thread(renew, "w", {execution_id: 1}, 15)).held == {execution_id}
        assert (await asyncio.to_thread(renew, "w", {execution_id: 2}, 15)).held == frozenset()
        assert (await asyncio.to_thread(renew, "other", {execution_id: 1}, 15)).held == frozenset()
        stage.clock.go(15.1)
        assert (await asyncio.to_thread(renew, "w", {execution_id: 1}, 15)).held == frozenset()


async def test_a_supervisor_releases_the_leases_of_a_process_that_exited(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Counted()) as stage:
        graph = await stage.graph("g", {"a": "counted"})
        ids = [await stage.start(graph) for _ in range(3)]
        for execution_id, owner in zip(ids, ("host-17-aa", "host-17-bb", "host-171-aa"), strict=True):
            assert await stage.claim(execution_id, owner) is not None
        assert list(await stage.store.release_owner("host-17-")) == ids[:2]
        assert list(await stage.store.release_owner("host-17-")) == []
        assert await stage.status(ids[2]) == ("RUNNING", None)
        assert await stage.work() == ids[:2]


async def test_a_lost_doorbell_is_rung_again_after_a_time_and_more_seldom_each_time(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Counted()) as stage:
        execution_id = await stage.start(await stage.graph("g", {"a": "counted"}))
        await stage.lose_bells()
        stage.clock.go(14)
        assert not (await stage.store.sweep()).rung
        gone = 14
        rung_at = []
        for _ in range(200):
            stage.clock.go(1)
            gone += 1
            if (await stage.store.sweep()).rung:
                rung_at.append(gone)
                await stage.lose_bells()
        assert rung_at == [15, 30, 60, 120]
        stage.clock.go(100)
        await stage.store.sweep()
        assert await stage.work() == [execution_id]
        assert not (await stage.store.sweep()).rung


async def test_a_doorbell_that_only_waits_is_not_doubled(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Counted()) as stage:
        await stage.start(await stage.graph("g", {"a": "counted"}))
        for _ in range(10):
            stage.clock.go(60)
            assert not (await stage.store.sweep()).rung
        assert await stage.queue.depth() == 1


async def test_a_doorbell_that_comes_early_or_twice_does_not_shorten_the_back_off(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Counted()) as stage:
        execution_id = await stage.start(await stage.graph("g", {"a": "counted"}))
        for delay in (0, 1, 5, 30, 120):
            assert await stage.claim(execution_id) is not None
            await stage.store.recover(expired_before=None)
            stage.clock.go(max(0, delay - 0.1))
            if delay:
                assert await stage.claim(execution_id) is None
            stage.clock.go(0.2)
        assert await stage.claim(execution_id) is not None
        await stage.store.recover(expired_before=None)
        assert await stage.status(execution_id) == ("FAILED", "poison")
        await stage.agree(execution_id)


async def test_an_interrupted_node_runs_again_and_its_output_is_followed_once(tmp_path: Path) -> None:
    block = Counted()
    async with on_stage(tmp_path, block) as stage:
        execution_id = await stage.start(
            await stage.graph("g", {"a": ("counted", {"value": 7}), "b": (OUTPUT, {"name": "r"})},
                              "a.out>b.value")
        )  # fmt: skip
        await interrupted(stage, execution_id, block)
        await stage.store.sweep()
        await stage.work()
        assert await stage.status(execution_id) == ("COMPLETED", None)
        assert (block.runs, await stage.outputs(execution_id)) == (2, {"r": [7]})
        await stage.agree(execution_id)


async def test_on_interrupt_fail(tmp_path: Path) -> None:
    block = Fragile()
    async with on_stage(tmp_path, block) as stage:
        execution_id = await stage.start(await stage.graph("g", {"a": "fragile"}))
        await interrupted(stage, execution_id, block)
        await stage.store.sweep()
        await stage.work()
        assert await stage.status(execution_id) == ("FAILED", "block_error")
        assert (await stage.node(execution_id, "a")).status_reason == "worker_lost"
        assert block.runs == 1
        await stage.agree(execution_id)


@pytest.mark.parametrize("approved", [True, False])
async def test_on_interrupt_ask(tmp_path: Path, approved: bool) -> None:
    block = Asking()
    async with on_stage(tmp_path, block) as stage:
        execution_id = await stage.start(await stage.graph("g", {"a": "asking"}))
        await interrupted(stage, execution_id, block)
        await stage.store.sweep()
        await stage.work()
        assert await stage.status(execution_id) == ("REVIEW", "waiting")
        assert (await stage.node(execution_id, "a")).status is ExecutionStatus.REVIEW
        (review,) = await stage.store.reviews("u")
        await stage.agree(execution_id)
        await stage.store.decide(review.id, Decision(approved, "because"), user_id="u")
        await stage.work()
        await stage.agree(execution_id)
        node = await stage.node(execution_id, "a")
        if approved:
            assert (await stage.status(execution_id), block.runs) == (("COMPLETED", None), 2)
        else:
            assert (await stage.status(execution_id), block.runs) == (("FAILED", "block_error"), 1)
            assert (node.status_reason, node.outputs[-1]) == ("worker_lost", ("error", b'"not run again: because"'))


@pytest.mark.parametrize(("value", "rows", "out"), [("once", 1, [1, None]), ("twice", 2, [1, 2])])
async def test_a_transaction_of_a_block_is_done_exactly_once(
    tmp_path: Path, value: str, rows: int, out: list[Any]
) -> None:
    block = Transfer()
    async with on_stage(tmp_path, block) as stage:
        await stage.database.write(lambda db: db.exec_driver_sql("CREATE TABLE account (n INTEGER)"))
        execution_id = await stage.start(await stage.graph("g", {"a": ("transfer", {"value": value})}))
        await interrupted(stage, execution_id, block)
        await stage.store.sweep()
        await stage.work()
        assert await stage.status(execution_id) == ("COMPLETED", None)
        assert (block.runs, block.units) == (2, rows)
        count = await stage.database.read(lambda db: db.exec_driver_sql("SELECT count(*) FROM account").scalar())
        assert count == rows
        assert (await stage.executions.get("u", execution_id)).node_executions[0].output_data == {"out": [out]}


async def test_a_transaction_that_fails_leaves_nothing_and_a_fenced_one_is_refused(tmp_path: Path) -> None:
    block = Transfer()
    async with on_stage(tmp_path, block) as stage:
        await stage.database.write(lambda db: db.exec_driver_sql("CREATE TABLE account (n INTEGER)"))
        graph = await stage.graph("g", {"a": ("transfer", {"value": "refused"})})
        execution_id = await stage.start(graph)
        await stage.work()
        assert await stage.status(execution_id) == ("FAILED", "block_error")
        count = lambda db: db.exec_driver_sql("SELECT count(*) FROM account").scalar()  # noqa: E731
        assert await stage.database.read(count) == 0
        second = await stage.start(graph)
        row = await stage.claim(second)
        assert row is not None
        await stage.store.recover(expired_before=None)
        with pytest.raises(LeaseLostError):
            await stage.store.effect(row, 1, 0, lambda db: db.exec_driver_sql("INSERT INTO account VALUES (1)") and 1)
        assert await stage.database.read(count) == 0


async def test_a_transaction_whose_commit_is_unknown_is_not_done_twice(tmp_path: Path) -> None:
    block = Transfer()
    async with on_stage(tmp_path, block) as stage:
        await stage.database.write(lambda db: db.exec_driver_sql("CREATE TABLE account (n INTEGER)"))
        execution_id = await stage.start(await stage.graph("g", {"a": ("transfer", {"value": "once"})}))
        effect, failures = stage.store.effect, [StoreUnavailableError("gone at the commit")]

        async def unsure(*arguments: Any) -> Any:
            result = await effect(*arguments)
            if failures:
                raise failures.pop()
            return result

        stage.store.effect = unsure  # type: ignore[method-assign]
        await stage.work()
        assert (await stage.status(execution_id), block.units) == (("COMPLETED", None), 1)


async def test_what_was_asked_to_stop_is_not_handed_back(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Counted()) as stage:
        execution_id = await stage.start(await stage.graph("g", {"a": "counted"}))
        row = await stage.claim(execution_id)
        assert row is not None
        await stage.store.request_cancel(execution_id, user_id="u")
        await stage.store.hand_back(execution_id, lease_no=row.lease_no, reason="worker_stopping")
        assert await stage.status(execution_id) == ("TERMINATED", "cancelled_by_user")
        await stage.agree(execution_id)


async def test_one_that_cannot_be_taken_back_keeps_no_other_from_it_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = PrometheusMetrics("t")
    async with on_stage(tmp_path, Counted()) as stage:
        graph = await stage.graph("g", {"a": "counted"})
        first, second = [await stage.start(graph) for _ in range(2)]
        for execution_id in (first, second):
            await stage.claim(execution_id)
        stage.clock.go(60)
        take_back = leasing.take_back

        def torn(change: Transitions, execution_id: str, still: Callable[[ExecutionRow], bool]) -> bool:
            if execution_id == first:
                raise TypeError("nobody foresaw it")
            return take_back(change, execution_id, still)

        monkeypatch.setattr(leasing, "take_back", torn)
        store = SqlExecutionStore(
            stage.database, on_commit=stage.committed.append, ring=stage.queue.ring, clock=stage.clock, metrics=metrics
        )
        assert (await store.sweep()).recovered == [second]
        assert b't_internal_errors_total{part="sweep"} 1.0' in metrics.render()[0]
