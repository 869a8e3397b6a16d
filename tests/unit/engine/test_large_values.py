"""Values that are too large for rows and events, through whole executions: where they are kept and who sees what."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic_core import from_json

from livetape.adapters.memory.blobs import MemoryBlobs
from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.clock import SystemClock
from livetape.engine import blob_sweep
from livetape.engine.blob_sweep import BlobSweep
from livetape.engine.blobs import Place, Shelf
from livetape.engine.block import BlockContext, PinValue
from livetape.engine.block_ports import ChildCall, ReviewRequest
from livetape.engine.hooks import Hooks, NodeIdentity
from livetape.engine.large_values import BlobLimits
from livetape.engine.pointers import Pointer, pointer_of, pointers_in
from livetape.engine.reviewing import Reviews
from livetape.engine.start_options import StartOptions
from livetape.errors import BlobUnavailableError, LimitError, NotFoundError
from livetape.observability import NoMetrics
from livetape.store.executions import ExecutionRow, Step
from stage import Stage, on_stage
from unit.engine.waiting_blocks import INPUT, OUTPUT, AnyIn, Many, Sub, children_of, inner, outer
from unit.engine.waiting_blocks import Step as Copy

BIG = "é" * 1000
LIMITS = BlobLimits(inline=1024, value=100_000, execution=500_000)
FORGED = Pointer("ab" * 32, 5).to_json()


class Grow(Copy):
    """Gives as many characters as it is told; then what it was given."""

    id = "grow"

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.runs += 1
        yield "out", "x" * data.value


class Parts(Copy):
    """Gives a list of large and small things."""

    id = "parts"

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "out", [BIG, "small", FORGED, {"deep": BIG}]


class Moody(Copy):
    """Fails the first time."""

    id = "moody"

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.runs += 1
        if self.runs == 1:
            raise ValueError("not now")
        yield "out", data.value


def stage_of(folder: Path, **options: Any) -> AbstractAsyncContextManager[Stage]:
    return on_stage(folder, Copy(), Grow(), Parts(), Moody(), Sub(), Many(), blob_limits=LIMITS, **options)


async def big(stage: Stage, execution_id: str, value: Any) -> Any:
    """What a pointer of this execution leads to."""
    pointer = pointer_of(value)
    assert pointer is not None, value
    return from_json(await stage.executions.blob("u", execution_id, pointer.sha256))


async def events_of(stage: Stage, execution_id: str) -> list[bytes]:
    return [entry.payload for entry in await stage.log.read(f"execution_events:{execution_id}")]


async def line(stage: Stage, *blocks: str) -> str:
    """INPUT x -> these blocks, one after the other -> OUTPUT r."""
    nodes: dict[str, Any] = {"i": (INPUT, {"name": "x"}), "r": (OUTPUT, {"name": "r"})}
    links, before = [], "i.result"
    for number, block in enumerate(blocks):
        nodes[f"n{number}"] = block
        links.append(f"{before}>n{number}.value")
        before = f"n{number}.out"
    return await stage.graph("line", nodes, *links, f"{before}>r.value")


async def test_a_large_value_goes_through_and_only_its_pointer_is_told(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        execution_id = await stage.start(await line(stage, "step", "step"), x=BIG)
        await stage.work()
        assert await stage.status(execution_id) == ("COMPLETED", None)
        assert await big(stage, execution_id, (await stage.outputs(execution_id))["r"][0]) == BIG
        row = await stage.row(execution_id)
        assert await big(stage, execution_id, from_json(row.inputs)["x"]) == BIG
        for node in await stage.store.nodes(execution_id):
            for text in (node.inputs, *(value for _, value in node.outputs)):
                assert len(text) < 1024
        for payload in await events_of(stage, execution_id):
            assert BIG.encode()[:200] not in payload
        await stage.agree(execution_id)
        assert len(await stage.blobs.sizes(Place("u", execution_id))) == 1, "the same value is kept once"


@pytest.mark.parametrize("given", [FORGED, {"a": [FORGED]}, [FORGED], {"$livetape.blob": 1}])
async def test_what_looks_like_a_pointer_is_data(tmp_path: Path, given: Any) -> None:
    async with stage_of(tmp_path) as stage:
        execution_id = await stage.start(await line(stage, "step"), x=given)
        await stage.work()
        assert await stage.status(execution_id) == ("COMPLETED", None)
        assert await big(stage, execution_id, (await stage.outputs(execution_id))["r"][0]) == given
        await stage.agree(execution_id)


@pytest.mark.parametrize("given", [BIG, FORGED])
async def test_defaults_and_masks_are_kept_too(tmp_path: Path, given: Any) -> None:
    async with stage_of(tmp_path) as stage:
        graph = await stage.graph(
            "d",
            {
                "i": (INPUT, {"name": "x", "value": given}),
                "a": ("step", {"value": given}),
                "b": "step",
                "r": (OUTPUT, {"name": "r"}),
                "s": (OUTPUT, {"name": "s"}),
                "t": (OUTPUT, {"name": "t"}),
            },
            "a.out>r.value",
            "b.out>s.value",
            "i.result>t.value",
        )
        started = await stage.executions.start(
            "u", graph, None, {}, options=StartOptions(masks={"b": {"value": [given]}})
        )
        execution_id = started.execution.id
        await stage.work()
        outputs = await stage.outputs(execution_id)
        assert await big(stage, execution_id, outputs["r"][0]) == given
        assert await big(stage, execution_id, outputs["s"][0]) == [given]
        assert await big(stage, execution_id, outputs["t"][0]) == given
        second = await stage.start(graph, x=1)
        await stage.work()
        assert (await stage.outputs(second))["t"] == [1], "what is given goes before the default"
        for payload in await events_of(stage, execution_id):
            assert len(payload) < 6000
        await stage.agree(execution_id)


async def test_links_take_large_values_apart(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        nodes: dict[str, Any] = {"p": "parts"} | {name: (OUTPUT, {"name": name}) for name in "abcdef"}
        await stage.graph(
            "g",
            nodes,
            "p.out_$_0>a.value",
            "p.out_$_1>b.value",
            "p.out_$_2>c.value",
            "p.out_$_3_#_deep>d.value",
            "p.out_$_9>e.value",
            "p.out>f.value",
        )
        execution_id = await stage.start("g")
        await stage.work()
        outputs = await stage.outputs(execution_id)
        assert outputs["b"] == ["small"]
        assert "e" not in outputs
        assert await big(stage, execution_id, outputs["a"][0]) == BIG
        assert await big(stage, execution_id, outputs["c"][0]) == FORGED
        assert await big(stage, execution_id, outputs["d"][0]) == BIG
        assert (await big(stage, execution_id, outputs["f"][0]))[2] == FORGED
        await stage.agree(execution_id)


async def test_limits_fail_the_node_and_say_why(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        graph = await stage.graph(
            "g", {"a": ("grow", {"value": 100_000}), "r": (OUTPUT, {"name": "r"})}, "a.out>r.value"
        )
        execution_id = await stage.start(graph)
        await stage.work()
        assert await stage.status(execution_id) == ("FAILED", "block_error")
        stats = from_json((await stage.row(execution_id)).stats)
        assert "the output out cannot be kept: it has 100002 bytes of JSON; a value may have 100000" in stats["error"]
        await stage.agree(execution_id)
        many = {f"n{n}": ("grow", {"value": 90_000 + n}) for n in range(6)}
        second = await stage.start(await stage.graph("many", many))
        await stage.work()
        assert await stage.status(second) == ("FAILED", "block_error")
        assert "they may have 500000" in from_json((await stage.row(second)).stats)["error"]
        await stage.agree(second)


async def test_inputs_that_are_too_large_start_nothing(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        graph = await line(stage, "step")
        with pytest.raises(LimitError):
            await stage.start(graph, x="x" * 200_000)
        assert (await stage.executions.list("u"))[1] == 0


async def test_a_folder_that_cannot_be_written_fails_the_node(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        graph = await stage.graph("g", {"a": ("grow", {"value": 5000})})
        (tmp_path / "blobs").write_text("in the way")
        execution_id = await stage.start(graph)
        await stage.work()
        assert await stage.status(execution_id) == ("FAILED", "block_error")
        assert "folder of large values cannot be used" in from_json((await stage.row(execution_id)).stats)["error"]
        with pytest.raises(BlobUnavailableError):
            await stage.start(await line(stage, "step"), x=BIG)


async def test_a_value_that_is_gone_fails_the_node_that_needs_it(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        execution_id = await stage.start(await line(stage, "step"), x=BIG)
        await stage.blobs.delete(Place("u", execution_id))
        await stage.work()
        assert (await stage.status(execution_id))[0] == "FAILED"
        assert "is gone" in from_json((await stage.row(execution_id)).stats)["error"]
        await stage.agree(execution_id)


async def test_others_do_not_get_it(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        execution_id = await stage.start(await line(stage, "step"), x=BIG)
        pointer = pointer_of(from_json((await stage.row(execution_id)).inputs)["x"])
        assert pointer is not None
        for user, of, sha256 in (
            ("v", execution_id, pointer.sha256),
            ("u", "another", pointer.sha256),
            ("u", execution_id, "0" * 64),
            ("u", execution_id, "../../a.db"),
        ):
            with pytest.raises(NotFoundError):
                await stage.executions.blob(user, of, sha256)


async def test_children_are_given_and_give_large_values(tmp_path: Path) -> None:
    class Send(Sub):
        id = "send"

        async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
            result = await ctx.children.run(ChildCall("inner", {"x": BIG}))
            assert result.outputs == {"r": [BIG]}
            yield "out", result.outputs["r"][0]

    async with on_stage(tmp_path, Copy(), Send(), blob_limits=LIMITS) as stage:
        await inner(stage)
        execution_id = await stage.start(await outer(stage, "send"))
        await stage.work()
        assert await stage.status(execution_id) == ("COMPLETED", None)
        assert await big(stage, execution_id, (await stage.outputs(execution_id))["r"][0]) == BIG
        (child,) = await children_of(stage, execution_id)
        assert await big(stage, child, from_json((await stage.row(child)).inputs)["x"]) == BIG
        for payload in await events_of(stage, child):
            assert BIG.encode()[:200] not in payload
        journal = (await stage.node(execution_id, "a")).waits or b""
        assert len(journal) < 1024, "what it waits for is written each time it goes on"
        await stage.agree(execution_id)
        await stage.agree(child)


LETTER = "8b2a7b3c-6e9d-4a5f-8c1b-2e3f4a5b6c7d"
OTHER = "ü" * 1000


@pytest.mark.parametrize(
    ("shown", "left", "given"),
    [
        (BIG, None, BIG),
        (BIG, "the pointer", BIG),
        (BIG, BIG, BIG),
        (BIG, OTHER, OTHER),
        (BIG, "short", "short"),
        ("short", OTHER, OTHER),
        ("short", FORGED, FORGED),
        (FORGED, None, FORGED),
    ],
)
async def test_a_person_is_shown_a_pointer_and_the_block_given_what_it_leads_to(
    tmp_path: Path, shown: Any, left: Any, given: Any
) -> None:
    async with stage_of(tmp_path) as stage:
        nodes = {"i": (INPUT, {"name": "x"}), "h": (LETTER, {"name": "letter"}), "r": (OUTPUT, {"name": "r"})}
        graph = await stage.graph("g", nodes, "i.result>h.data", "h.approved_data>r.value")
        execution_id = await stage.start(graph, x=shown)
        await stage.work()
        reviews = Reviews(stage.store, stage.keeping)
        (asked,) = await reviews.waiting("u")
        payload = from_json(asked.payload)
        assert shown == ("short" if payload == "short" else await big(stage, execution_id, payload))
        change = {} if left is None else {"edited": payload if left == "the pointer" else left, "is_edited": True}
        for _ in range(2):
            decided = await reviews.decide("u", asked.node_exec_id, approved=True, **change)
        await stage.work()
        assert await stage.status(execution_id) == ("COMPLETED", None)
        (result,) = (await stage.outputs(execution_id))["r"]
        assert (result if result == "short" else await big(stage, execution_id, result)) == given
        node = await stage.node(execution_id, "h")
        assert len(asked.payload) < 1024
        assert len(decided.payload) < 1024
        assert len(node.waits or b"") < 1024
        for event in await events_of(stage, execution_id):
            assert BIG.encode()[:200] not in event
            assert OTHER.encode()[:200] not in event
        grow_old(stage, execution_id)
        kept = await stage.blobs.sizes(Place("u", execution_id))
        sweep = BlobSweep(stage.blobs, stage.store, clock=SystemClock(), metrics=NoMetrics())
        await sweep.sweep()
        left_over = await stage.blobs.sizes(Place("u", execution_id))
        assert pointers_in([asked.payload, decided.payload]) <= left_over.keys() <= kept.keys()


async def test_data_that_cannot_be_kept_fails_the_node_and_as_an_answer_is_refused(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        nodes = {"h": (LETTER, {"name": "letter"}), "i": (INPUT, {"name": "x"})}
        graph = await stage.graph("g", nodes, "i.result>h.data")
        execution_id = await stage.start(graph, x="short")
        await stage.work()
        reviews = Reviews(stage.store, stage.keeping)
        (asked,) = await reviews.waiting("u")
        with pytest.raises(LimitError, match="a value may have 100000"):
            await reviews.decide("u", asked.node_exec_id, approved=True, edited="x" * 100_001, is_edited=True)
        await reviews.decide("u", asked.node_exec_id, approved=True)
        await stage.work()
        assert await stage.status(execution_id) == ("COMPLETED", None)

    class Asks(Copy):
        id = "asks"

        async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
            answer = await ctx.review.ask(ReviewRequest("x" * 100_001, "letter"))
            yield "out", answer.data

    (tmp_path / "other").mkdir()
    async with on_stage(tmp_path / "other", Asks(), blob_limits=LIMITS) as stage:
        execution_id = await stage.start(await stage.graph("g", {"a": "asks"}))
        await stage.work()
        assert await stage.status(execution_id) == ("FAILED", "block_error")
        assert await Reviews(stage.store, stage.keeping).waiting("u") == []


async def test_a_fork_has_everything_of_its_own(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        graph = await stage.graph(
            "g",
            {
                "i": (INPUT, {"name": "x"}),
                "a": "step",
                "p": ("parts", {"value": BIG}),
                "m": "moody",
                "q": "moody",
                "r": (OUTPUT, {"name": "r"}),
                "s": (OUTPUT, {"name": "s"}),
            },
            "i.result>a.value",
            "a.out>m.value",
            "m.out>r.value",
            "p.out_$_0>q.value",
            "q.out>s.value",
        )
        first = await stage.start(graph, x=FORGED)
        await stage.work()
        assert (await stage.status(first))[0] == "FAILED"
        fork = (await stage.executions.retry("u", first)).execution.id
        await stage.blobs.delete(Place("u", first))
        await stage.work()
        assert await stage.status(fork) == ("COMPLETED", None)
        outputs = await stage.outputs(fork)
        assert await big(stage, fork, outputs["r"][0]) == FORGED
        assert await big(stage, fork, outputs["s"][0]) == BIG
        copy = stage.blocks.get("step")
        assert isinstance(copy, Copy)
        assert copy.runs == 1, "what completed is taken over"
        await stage.agree(fork)
        again = (await stage.executions.rerun("u", fork)).execution.id
        await stage.blobs.delete(Place("u", fork))
        await stage.work()
        assert await big(stage, again, (await stage.outputs(again))["r"][0]) == FORGED


async def test_an_interrupted_node_goes_on_with_large_values(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        execution_id = await stage.start(await line(stage, "step", "step"), x=BIG)
        stage.store, whole = cast("SqlExecutionStore", _DiesAt(stage.store, 4)), stage.store
        with pytest.raises(ConnectionError):
            await stage.work()
        stage.store = whole
        stage.clock.go(60)
        assert list((await stage.store.sweep()).recovered) == [execution_id]
        await stage.work()
        assert await stage.status(execution_id) == ("COMPLETED", None)
        assert await big(stage, execution_id, (await stage.outputs(execution_id))["r"][0]) == BIG
        await stage.agree(execution_id)


async def test_moderation_sees_the_whole_value(tmp_path: Path) -> None:
    class Judge:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        async def start(self, user_id: str, graph_id: str, inputs: dict[str, Any]) -> str | None:
            self.seen.append(inputs["x"])
            return None

        async def output(self, who: NodeIdentity, name: str, value: Any) -> str | None:
            self.seen.append(value)
            return None

    judge = Judge()
    async with stage_of(tmp_path) as stage:
        stage.hooks = Hooks(moderation=judge)
        await stage.start(await line(stage, "step"), x=BIG)
        await stage.work()
        assert len(judge.seen) >= 3
        assert all(value in (BIG, "r") for value in judge.seen)


# ---- what is left over ---------------------------------------------------------------------------------------------


class _DiesAt:
    """The store of a process that is gone at its commit with this number."""

    def __init__(self, store: Any, number: int) -> None:
        self._store = store
        self._left = number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, step: Step, row: ExecutionRow) -> None:
        self._left -= 1
        if self._left <= 0:
            raise ConnectionError("gone")
        await self._store.commit(step, row)


def grow_old(stage: Stage, execution_id: str) -> None:
    """A day later."""
    before = time.time() - 25 * 3600
    for path in (stage.folder / "blobs" / "u" / execution_id).iterdir():
        os.utime(path, (before, before))


async def test_a_crash_between_file_and_commit_leaves_what_is_swept_after_a_day(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        moody = await stage.graph("g", {"a": ("grow", {"value": 5000}), "b": ("grow", {"value": 6000})})
        execution_id = await stage.start(moody)
        place = Place("u", execution_id)
        stage.store, whole = cast("SqlExecutionStore", _DiesAt(stage.store, 2)), stage.store
        with pytest.raises(ConnectionError):
            await stage.work()
        stage.store = whole
        assert len(await stage.blobs.sizes(place)) >= 1, "the file came before the commit that was never made"
        sweep = BlobSweep(stage.blobs, stage.store, clock=SystemClock(), metrics=NoMetrics())
        grow_old(stage, execution_id)
        assert await sweep.sweep() == 0, "it may still be needed: the execution goes on"
        await stage.blobs.put(place, b'"of the life that was lost"')
        stage.clock.go(60)
        await stage.store.sweep()
        await stage.work()
        assert await stage.status(execution_id) == ("COMPLETED", None)
        assert await sweep.sweep() == 0, "it is not a day old"
        grow_old(stage, execution_id)
        assert await sweep.sweep() == 1
        assert await sweep.sweep() == 0
        kept = await stage.blobs.sizes(place)
        assert sorted(kept.values()) == [5002, 6002]
        for node in await stage.store.nodes(execution_id):
            for _, value in node.outputs:
                assert len(await big(stage, execution_id, from_json(value))) >= 5000


async def test_what_belongs_to_no_execution_goes_after_a_day(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        await stage.blobs.put(Place("u", "never"), b"x")
        sweep = BlobSweep(stage.blobs, stage.store, clock=SystemClock(), metrics=NoMetrics())
        assert await sweep.sweep() == 0
        grow_old(stage, "never")
        assert await sweep.sweep() == 1
        assert not (tmp_path / "blobs" / "u" / "never").exists()


async def test_a_sweep_that_fails_is_counted_and_the_next_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_sweep, "EVERY_S", 0.0)
    metrics, twice = PrometheusMetrics("t"), asyncio.Event()

    class Torn(MemoryBlobs):
        async def shelves(self) -> AsyncIterator[Shelf]:
            if metrics.render()[0].count(b't_internal_errors_total{part="blobs"} 2.0'):
                twice.set()
            raise TypeError("nobody foresaw it")
            yield

    async with stage_of(tmp_path) as stage:
        sweeping = asyncio.create_task(BlobSweep(Torn(), stage.store, clock=SystemClock(), metrics=metrics).run())
        async with asyncio.timeout(10):
            await twice.wait()
        sweeping.cancel()
        await asyncio.wait({sweeping})


async def test_a_start_that_is_repeated_leaves_nothing(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        graph = await line(stage, "step")
        for _ in range(2):
            started = await stage.executions.start("u", graph, None, {"x": BIG}, idempotency_key="k", request_hash="h")
        assert [shelf.execution_id async for shelf in stage.blobs.shelves()] == [started.execution.id]


@pytest.mark.slow
async def test_a_block_waits_until_its_large_outputs_are_written(tmp_path: Path) -> None:
    class Hose(Copy):
        id = "hose"

        async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
            for _ in range(20):
                self.runs += 1
                yield "out", "x" * 6_000_000

    class Gated:
        def __init__(self, store: Any) -> None:
            self._store = store
            self.opened = asyncio.Event()
            self.commits = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        async def commit(self, step: Step, row: ExecutionRow) -> None:
            self.commits += 1
            if self.commits == 2:
                await self.opened.wait()
            await self._store.commit(step, row)

    async with on_stage(tmp_path, Hose()) as stage:
        gated = Gated(stage.store)
        stage.store = cast("SqlExecutionStore", gated)
        hose = stage.blocks.get("hose")
        assert isinstance(hose, Hose)
        await stage.start(await stage.graph("g", {"a": "hose"}))
        working = asyncio.create_task(stage.work())
        async with asyncio.timeout(20):
            while gated.commits < 2 or hose.runs < 3:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert hose.runs < 10, "it does not fill the memory"
        gated.opened.set()
        async with asyncio.timeout(30):
            await working
        assert hose.runs == 20
