"""Reviews: an execution waits for a person without a worker, for as long as it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic_core import from_json

from livetape.engine.reviewing import Reviews
from livetape.errors import ConflictError, LeaseLostError, NotFoundError
from livetape.events.executions import ExecutionStatus
from livetape.store.executions import ClaimLimits
from unit.engine.waiting_blocks import inner, outer, stage_on


@pytest.mark.parametrize(
    ("approved", "edited", "out"),
    [(True, None, [True, {"n": 1}, "ok"]), (False, None, [False, {"n": 1}, "ok"]), (True, 9, [True, 9, "ok"])],
)
async def test_a_review_waits_for_a_person(tmp_path: Path, approved: bool, edited: Any, out: list[Any]) -> None:
    async with stage_on(tmp_path) as stage:
        reviews = Reviews(stage.store)
        execution_id = await stage.start(await outer(stage, "ask", {"n": 1}))
        await stage.work()
        assert await stage.status(execution_id) == ("REVIEW", "waiting")
        node = await stage.node(execution_id, "a")
        assert node.status is ExecutionStatus.REVIEW
        await stage.agree(execution_id)
        stage.clock.go(86_400 * 30)
        assert not (await stage.store.sweep()).recovered
        (asked,) = await reviews.waiting("u")
        assert (asked.node_exec_id, from_json(asked.payload), asked.instructions) == (node.id, {"n": 1}, "look at this")
        assert await reviews.waiting("v") == []
        with pytest.raises(NotFoundError):
            await reviews.decide("v", node.id, approved=approved)
        change = {} if edited is None else {"edited": edited, "is_edited": True}
        for _ in range(2):
            decided = await reviews.decide("u", node.id, approved=approved, message="ok", **change)
            assert decided.decided_by == "u"
        assert await stage.status(execution_id) == ("QUEUED", "reviewed")
        with pytest.raises(ConflictError):
            await reviews.decide("u", node.id, approved=not approved)
        assert await stage.work() == [execution_id]
        assert await stage.outputs(execution_id) == {"r": [out]}
        assert await reviews.waiting("u") == []
        await stage.agree(execution_id)


async def test_stop_while_in_review(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        reviews = Reviews(stage.store)
        execution_id = await stage.start(await outer(stage, "ask", 1))
        await stage.work()
        (asked,) = await reviews.of_execution("u", execution_id)
        await stage.executions.stop("u", execution_id)
        assert await stage.status(execution_id) == ("TERMINATED", "cancelled_by_user")
        assert await reviews.of_execution("u", execution_id) == []
        with pytest.raises(ConflictError):
            await reviews.decide("u", asked.node_exec_id, approved=True)
        await stage.agree(execution_id)


async def test_without_safe_mode_nobody_is_asked(tmp_path: Path) -> None:
    async with stage_on(tmp_path, safe_mode=False) as stage:
        execution_id = await stage.start(await outer(stage, "ask", 1))
        await stage.work()
        assert await stage.outputs(execution_id) == {"r": [[True, 1, "Auto-approved (safe mode disabled)"]]}


async def test_a_decision_is_followed_whatever_commit_its_worker_dies_after(tmp_path: Path) -> None:
    """The answer and what follows from it are one commit."""
    async with stage_on(tmp_path) as stage:
        graph = await stage.graph("g", {"a": ("ask", {"value": 1}), "t": "ticker"})
        execution_id = await stage.start(graph)
        await stage.work()
        reviews = Reviews(stage.store)
        (asked,) = await reviews.waiting("u")
        await reviews.decide("u", asked.node_exec_id, approved=True)
        commit, lived = stage.store.commit, 0
        for lives in range(1, 4):
            row = await stage.claim(execution_id)
            if row is None:
                break
            lived = 0

            async def mortal(step: Any, of: Any, lives: int = lives) -> None:
                nonlocal lived
                if lived == lives:
                    raise LeaseLostError
                await commit(step, of)
                lived += 1

            stage.store.commit = mortal  # type: ignore[method-assign]
            await (await stage.executor(row)).run()
            stage.store.commit = commit  # type: ignore[method-assign]
            stage.clock.go(15.1)
            await stage.store.sweep()
            stage.clock.go(10)
        stage.clock.go(200)
        await stage.work()
        node = await stage.node(execution_id, "a")
        assert node.status is ExecutionStatus.COMPLETED
        await stage.agree(execution_id)


async def test_two_reviews_in_one_execution_are_decided_one_after_the_other(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        reviews = Reviews(stage.store)
        graph = await stage.graph("g", {"a": ("ask", {"value": 1}), "b": ("ask", {"value": 2})})
        execution_id = await stage.start(graph)
        await stage.work()
        first, second = await reviews.of_execution("u", execution_id)
        await reviews.decide("u", first.node_exec_id, approved=True)
        await stage.work()
        assert await stage.status(execution_id) == ("REVIEW", "waiting")
        await reviews.decide("u", second.node_exec_id, approved=False)
        await stage.work()
        assert await stage.status(execution_id) == ("COMPLETED", None)
        await stage.agree(execution_id)


async def test_a_parked_parent_frees_its_slot_for_its_child(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        stage.limits = ClaimLimits(per_user=1)
        await inner(stage)
        execution_id = await stage.start(await outer(stage))
        await stage.work()
        assert await stage.status(execution_id) == ("COMPLETED", None)


async def test_a_time_limit_does_not_count_waits(tmp_path: Path) -> None:
    async with stage_on(tmp_path) as stage:
        stage.limits = ClaimLimits(run_seconds=10)
        execution_id = await stage.start(await outer(stage, "ask", 1))
        await stage.work()
        stage.clock.go(1000)
        assert not (await stage.store.sweep()).timed_out
        reviews = Reviews(stage.store)
        (asked,) = await reviews.waiting("u")
        await reviews.decide("u", asked.node_exec_id, approved=True)
        await stage.work()
        assert await stage.status(execution_id) == ("COMPLETED", None)
