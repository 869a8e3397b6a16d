"""Why executions do not move: planted in a real database, each found and named with its reason."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import update

from livetape.adapters.sql.diagnosis import read_world
from livetape.adapters.sql.tables import execution
from livetape.engine.block import Block, BlockContext, BlockSchema, PinValue
from livetape.engine.block_ports import ChildCall, ReviewRequest
from livetape.engine.diagnosis import Finding, faults, findings
from livetape.events.executions import ExecutionStatus
from livetape.store.executions import ClaimLimits
from stage import Stage, on_stage


class AnyIn(BlockSchema):
    value: Any = None


class Waits(Block[AnyIn]):
    """Waits for what its value names."""

    id = "waits"
    Input = AnyIn

    class Output(BlockSchema):
        out: Any

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        match data.value:
            case "timer":
                await ctx.sleep_until(ctx.clock.now() + timedelta(hours=1))
            case "review":
                await ctx.review.ask(ReviewRequest(1, "look"))
            case "child":
                await ctx.children.run(ChildCall("timer", {}))
        yield "out", 1


async def started(stage: Stage, name: str) -> str:
    if name not in {row.id for row in await stage.graphs.list("u")}:
        await stage.graph(name, {"a": ("waits", {"value": name})})
    return await stage.start(name)


async def told(stage: Stage) -> dict[str, Finding]:
    world = await stage.database.read(lambda db: read_world(db, stage.clock.now()))
    return {finding.execution_id: finding for finding in findings(world)}


async def spoil(stage: Stage, execution_id: str, **values: Any) -> None:
    changed = update(execution).where(execution.c.id == execution_id).values(values)
    await stage.database.write(lambda db: db.execute(changed))


async def test_what_moves_and_what_waits_as_it_should_is_no_fault(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Waits()) as stage:
        running = await started(stage, "now")
        assert await stage.claim(running) is not None
        await stage.lose_bells()
        waiting = {name: await started(stage, name) for name in ("timer", "review", "child")}
        await stage.work()
        queued = await started(stage, "now")
        found = await told(stage)
        assert faults(found.values()) == []
        assert running not in found
        assert queued not in found
        assert {name: found[waiting[name]].kind for name in waiting} == {name: name for name in waiting}
        assert "13:00:00" in found[waiting["timer"]].why
        stage.clock.go(5)
        stage.limits = ClaimLimits(per_user=1)
        assert await stage.claim(queued) is None
        assert (await told(stage))[queued].kind == "held"


async def test_every_planted_fault_is_named_with_its_reason(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Waits()) as stage:
        lost = await started(stage, "now")
        assert await stage.claim(lost, "host-1") is not None
        await stage.lose_bells()
        unheard = await started(stage, "now")
        await stage.lose_bells()
        await stage.graph("timer", {"a": ("waits", {"value": "timer"})})
        parents = [await started(stage, "child") for _ in range(3)]
        await stage.work()
        children = {}
        for row, _ in (await stage.store.list("u", limit=100))[0]:
            if row.parent_id is not None:
                children[row.parent_id] = row.id
        woken, orphaned, nothing = parents
        done = stage.clock.now()
        await spoil(stage, children[woken], status=ExecutionStatus.COMPLETED, ended_at=done)
        await spoil(stage, orphaned, status=ExecutionStatus.FAILED, ended_at=done)
        await stage.database.write(lambda db: db.execute(execution.delete().where(execution.c.id == children[nothing])))
        held = await started(stage, "now")
        await spoil(stage, held, held="graph")
        ignored = await started(stage, "now")
        stage.clock.go(60)
        found = {finding.execution_id: finding for finding in faults((await told(stage)).values())}
        assert {name: finding.kind for name, finding in found.items()} == {
            lost: "worker_lost",
            unheard: "doorbell_lost",
            woken: "wake_lost",
            children[orphaned]: "orphan",
            nothing: "waits_for_nothing",
            held: "held_for_nothing",
            ignored: "no_worker",
        }
        assert "host-1" in found[lost].why
        assert children[woken] in found[woken].why
        assert orphaned in found[children[orphaned]].why
        await stage.store.pause("a new disk")
        assert (await told(stage))[ignored].kind == "paused"
        assert "a new disk" in (await told(stage))[ignored].why


async def test_back_off_overdue_and_stopping(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Waits()) as stage:
        tried, slow, stopping = [await started(stage, "now") for _ in range(3)]
        for _ in range(3):
            stage.clock.go(6)
            assert await stage.claim(tried) is not None
            await stage.store.recover(expired_before=None)
        assert (await told(stage))[tried].kind == "back_off"
        assert "3 times" in (await told(stage))[tried].why
        assert await stage.claim(slow) is not None
        assert await stage.claim(stopping) is not None
        await stage.store.request_cancel(stopping, user_id="u")
        await spoil(stage, slow, deadline_at=stage.clock.now() - timedelta(seconds=60))
        found = await told(stage)
        assert (found[slow].kind, found[stopping].kind) == ("overdue", "stopping")
