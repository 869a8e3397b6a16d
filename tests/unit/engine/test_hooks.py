"""Moderation, reports of errors, costs and figures of nodes."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic_core import from_json, to_json

from livetape.engine import moderating
from livetape.engine.block import Block, BlockContext, BlockSchema, PinValue
from livetape.engine.hooks import Hooks, NodeIdentity
from livetape.engine.runner import RunStats
from livetape.errors import LimitError
from livetape.events.executions import ExecutionStatus
from stage import Stage, on_stage

WHOSE: contextvars.ContextVar[Mapping[str, str] | None] = contextvars.ContextVar("whose", default=None)


class AnyIn(BlockSchema):
    value: Any = None


class AnyOut(BlockSchema):
    out: Any


class Words(Block[AnyIn]):
    """Gives each word of its value, counts them, and fails at `fail`."""

    id = "words"
    Input, Output = AnyIn, AnyOut

    def __init__(self) -> None:
        self.seen: list[str | None] = []

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        who = WHOSE.get()
        self.seen.append(None if who is None else who["node_id"])
        for word in str(data.value).split():
            if word == "fail":
                raise ValueError("failed")
            ctx.usage.add("word_count", 1)
            yield "out", word


class Burn(Words):
    """Uses the processor in a thread."""

    id = "burn"

    def run(self, data: AnyIn, ctx: BlockContext) -> Iterator[PinValue]:  # type: ignore[override]
        total = sum(number * number for number in range(300_000))
        yield "out", total


class Judge:
    def __init__(self) -> None:
        self.broken = False

    async def start(self, user_id: str, graph_id: str, inputs: dict[str, Any]) -> str | None:
        if self.broken:
            raise RuntimeError("away")
        return "not for you" if user_id == "mallory" else None

    async def output(self, who: NodeIdentity, name: str, value: Any) -> str | None:
        return f"{value} of {who.block} may not be told" if value == "secret" else None


class Reporter:
    def report(self, error: BaseException, context: Mapping[str, Any]) -> None:
        """Logs are not listened to here."""

    @contextmanager
    def scope(self, tags: Mapping[str, str]) -> Iterator[None]:
        token = WHOSE.set(tags)
        try:
            yield
        finally:
            WHOSE.reset(token)


class Purse:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    async def before(self, who: NodeIdentity, block: Block[Any], inputs: dict[str, Any]) -> None:
        if self.cents < 10:
            raise LimitError(f"Insufficient balance of {self.cents}")

    async def after(self, who: NodeIdentity, block: Block[Any], inputs: dict[str, Any], stats: RunStats) -> int:
        self.cents -= 10
        return 10


async def words(stage: Stage, *values: str, user: str = "u") -> str:
    """A chain that gives each word of the first value on; the others are run beside."""
    nodes = {f"n{i}": ("words", {"value": value}) for i, value in enumerate(values)}
    graph = await stage.graph(f"g{user}", {**nodes, "next": "words"}, "n0.out>next.value", user=user)
    execution_id = await stage.start(graph, user=user)
    await stage.work()
    return execution_id


async def test_moderation_of_starts_and_outputs(tmp_path: Path) -> None:
    judge, block = Judge(), Words()
    async with on_stage(tmp_path, block) as stage:
        stage.hooks = Hooks(moderation=judge)
        refused = await words(stage, "a", user="mallory")
        assert (await stage.status(refused), block.seen) == (("FAILED", "moderation"), [])
        assert from_json((await stage.row(refused)).stats)["error"] == "not for you"
        await stage.agree(refused)
        told = await words(stage, "a secret b")
        node = await stage.node(told, "n0")
        assert (node.status, node.status_reason) == (ExecutionStatus.FAILED, "moderation")
        assert [name for name, _ in node.outputs] == ["out", "error"]
        assert not any(b'"secret"' in event.payload for commit in stage.committed for event in commit.events[1:])
        assert await stage.status(told) == ("FAILED", "block_error")
        await stage.agree(told)
        judge.broken = True
        assert await stage.status(await words(stage, "a", user="v")) == ("FAILED", "moderation")


class Away(Judge):
    """Does not answer until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.answer = asyncio.Event()

    async def start(self, user_id: str, graph_id: str, inputs: dict[str, Any]) -> str | None:
        self.asked += 1
        await self.answer.wait()
        return "not this" if "bad" in inputs else None


async def test_a_worker_that_is_lost_before_the_answer_leaves_nothing_unasked(tmp_path: Path) -> None:
    judge, block = Away(), Words()
    async with on_stage(tmp_path, block) as stage:
        stage.hooks = Hooks(moderation=judge)
        execution_id = await stage.start(await stage.graph("g", {"a": "words"}), bad=1)
        row = await stage.claim(execution_id)
        assert row is not None
        lost = asyncio.create_task((await stage.executor(row)).run())
        while not judge.asked:
            await asyncio.sleep(0)
        lost.cancel()
        await asyncio.wait({lost})
        await stage.store.recover(expired_before=None)
        judge.answer.set()
        await stage.work()
        assert await stage.status(execution_id) == ("FAILED", "moderation")
        assert (judge.asked, block.seen) == (2, [])
        await stage.agree(execution_id)


async def test_what_has_begun_is_not_asked_for_again_but_a_retry_is(tmp_path: Path) -> None:
    judge, block = Away(), Words()
    judge.answer.set()
    async with on_stage(tmp_path, block) as stage:
        stage.hooks = Hooks(moderation=judge)
        execution_id = await stage.start(await stage.graph("g", {"a": ("words", {"value": "fail"})}))
        await stage.work()
        assert judge.asked == 1
        fork = (await stage.executions.retry("u", execution_id)).execution.id
        await stage.work()
        assert (judge.asked, await stage.status(fork)) == (2, ("FAILED", "block_error"))


async def test_a_judge_that_hangs_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moderating, "ANSWER_S", 0.01)
    async with on_stage(tmp_path, Words()) as stage:
        stage.hooks = Hooks(moderation=Away())
        execution_id = await stage.start(await stage.graph("g", {"a": "words"}))
        await stage.work()
        assert await stage.status(execution_id) == ("FAILED", "moderation")
        assert from_json((await stage.row(execution_id)).stats)["error"] == "the moderation cannot be asked"


async def test_errors_are_reported_with_their_node_and_only_there(tmp_path: Path) -> None:
    block = Words()
    async with on_stage(tmp_path, block) as stage:
        stage.hooks = Hooks(reporter=Reporter())
        await words(stage, "a", "fail")
        assert sorted(str(seen) for seen in block.seen) == ["n0", "n1", "next"]
        assert WHOSE.get() is None


async def test_costs_are_taken_per_node_and_an_empty_purse_ends_the_execution(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Words()) as stage:
        stage.hooks = Hooks(costs=Purse(1000))
        rich = await words(stage, "a b")
        assert ((await stage.row(rich)).cost, from_json((await stage.row(rich)).stats)["cost"]) == (30, 30)
        stage.hooks = Hooks(costs=Purse(15))
        poor = await words(stage, "a b", user="v")
        assert await stage.status(poor) == ("FAILED", "insufficient_credits")
        stats = from_json((await stage.row(poor)).stats)
        assert (stats["cost"], stats["error"]) == (10, "Insufficient balance of 5")
        await stage.agree(poor)


async def test_figures_are_kept_on_failure_too_with_what_blocks_count(tmp_path: Path) -> None:
    async with on_stage(tmp_path, Words(), Burn()) as stage:
        execution_id = await words(stage, "a b fail", "c")
        stats = from_json((await stage.row(execution_id)).stats)
        assert (stats["node_exec_count"], stats["node_error_count"], stats["word_count"]) == (4, 1, 3)
        node = from_json((await stage.node(execution_id, "n0")).stats or b"")
        assert {"walltime", "cputime", "input_size", "output_size", "cost", "attempts", "word_count"} <= node.keys()
        assert (node["input_size"], node["attempts"]) == (len(b'{"value":"a b fail"}'), 1)
        burnt = await stage.start(await stage.graph("burn", {"b": "burn"}))
        await stage.work()
        assert from_json((await stage.row(burnt)).stats)["node_exec_time_cpu_only"] > 0.001


async def test_the_sizes_of_a_node_are_those_of_what_its_row_has(tmp_path: Path) -> None:
    """Also where a block ends before the first of its outputs is recorded, and of the message of one that failed."""
    async with on_stage(tmp_path, Words()) as stage:
        execution_id = await words(stage, "a bc fail", "d")
        ran = [node for node in await stage.store.nodes(execution_id) if node.stats is not None]
        assert {node.node_id for node in ran} >= {"n0", "n1"}
        for node in ran:
            given: dict[str, list[Any]] = {}
            for name, value in node.outputs:
                given.setdefault(name, []).append(from_json(value))
            stats = from_json(node.stats or b"")
            assert (stats["input_size"], stats["output_size"]) == (len(node.inputs), len(to_json(given)))
        failed = await stage.node(execution_id, "n0")
        assert [name for name, _ in failed.outputs] == ["out", "out", "error"]
