"""The loop from the queue to executors: slots, pauses, a queue or a database that is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from livetape.adapters.sql.executions import SqlExecutionStore
from livetape.clock import SystemClock
from livetape.engine.block import Block, BlockContext, BlockSchema, PinValue
from livetape.engine.executor import UNWRITTEN_BYTES
from livetape.engine.queue import Delivery, Doorbell, Queue
from livetape.engine.worker import Worker, WorkerOptions
from livetape.errors import QueueUnavailableError, StoreUnavailableError
from livetape.observability import NoMetrics
from livetape.store.executions import ExecutionRow, Step, Swept
from stage import Stage, on_stage


class AnyIn(BlockSchema):
    value: Any = None


class Gate(Block[AnyIn]):
    """Waits until it is let through."""

    id = "gate"
    Input = AnyIn

    class Output(BlockSchema):
        out: Any

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.inside = 0

    async def run(self, data: AnyIn, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.inside += 1
        await self.opened.wait()
        yield "out", data.value


class Bells(Queue):
    """Gives out what it is told, and remembers how many were asked for at once."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[str] = asyncio.Queue()
        self.asked: list[int] = []
        self.acked: list[str] = []
        self.nacked: list[tuple[str, float]] = []
        self.away = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def put(self, doorbell: Doorbell, *, delay_s: float = 0) -> None:
        self.waiting.put_nowait(doorbell.graph_exec_id)

    async def take(self, limit: int) -> list[Delivery]:
        self.asked.append(limit)
        first = await self.waiting.get()
        more = [self.waiting.get_nowait() for _ in range(min(limit - 1, self.waiting.qsize()))]
        return [Delivery(Doorbell(name), 0) for name in (first, *more)]

    async def ack(self, delivery: Delivery) -> None:
        await self.answers.wait()
        if self.away:
            raise QueueUnavailableError
        self.acked.append(delivery.doorbell.graph_exec_id)

    async def nack(self, delivery: Delivery, *, delay_s: float = 0) -> None:
        self.nacked.append((delivery.doorbell.graph_exec_id, delay_s))

    async def depth(self) -> int:
        return self.waiting.qsize()

    async def close(self) -> None:
        pass


@asynccontextmanager
async def working(stage: Stage, bells: Bells, **options: Any) -> AsyncIterator[Worker]:
    worker = Worker(
        name="here",
        queue=bells,
        store=stage.store,
        graphs=stage.graphs,
        blocks=stage.blocks,
        clock=SystemClock(),
        new_id=stage.new_id,
        metrics=NoMetrics(),
        options=WorkerOptions(**({"sweep_s": 0.05, "executor": stage.options} | options)),
    )
    task = asyncio.create_task(worker.run())
    try:
        await worker.ready.wait()
        yield worker
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(holds: Any) -> None:
    async with asyncio.timeout(20):
        while not await holds():
            await asyncio.sleep(0.01)


def ended(stage: Stage, execution_id: str) -> Any:
    async def is_over() -> bool:
        return (await stage.row(execution_id)).status.is_terminal

    return is_over


async def test_it_takes_no_more_than_it_has_slots_for(tmp_path: Path) -> None:
    gate, bells = Gate(), Bells()
    async with on_stage(tmp_path, gate) as stage:
        graph = await stage.graph("g", {"a": "gate"})
        ids = [await stage.start(graph) for _ in range(5)]
        async with working(stage, bells, concurrency=2):
            for execution_id in ids:
                bells.waiting.put_nowait(execution_id)

            async def full() -> bool:
                return gate.inside == 2

            await until(full)
            await asyncio.sleep(0.05)
            assert bells.waiting.qsize() == 3
            gate.opened.set()
            for execution_id in ids:
                await until(ended(stage, execution_id))
        assert max(bells.asked) <= 2


async def test_an_acknowledgement_that_is_lost_keeps_nothing_from_running(tmp_path: Path) -> None:
    gate, bells = Gate(), Bells()
    gate.opened.set()
    async with on_stage(tmp_path, gate) as stage:
        execution_id = await stage.start(await stage.graph("g", {"a": "gate"}))
        bells.away = True
        async with working(stage, bells):
            bells.waiting.put_nowait(execution_id)
            await until(ended(stage, execution_id))
        assert await stage.status(execution_id) == ("COMPLETED", None)


async def test_nothing_waits_for_the_acknowledgement_but_the_slot(tmp_path: Path) -> None:
    gate, bells = Gate(), Bells()
    gate.opened.set()
    bells.answers.clear()
    async with on_stage(tmp_path, gate) as stage:
        graph = await stage.graph("g", {"a": "gate"})
        first, second = [await stage.start(graph) for _ in range(2)]
        async with working(stage, bells, concurrency=1):
            bells.waiting.put_nowait(first)
            bells.waiting.put_nowait(second)
            await until(ended(stage, first))
            await asyncio.sleep(0.05)
            assert (bells.acked, gate.inside) == ([], 1)
            bells.answers.set()
            await until(ended(stage, second))
        assert bells.acked == [first, second]


async def test_a_doorbell_is_given_back_while_the_database_is_away(tmp_path: Path) -> None:
    bells = Bells()
    async with on_stage(tmp_path, Gate()) as stage:
        execution_id = await stage.start(await stage.graph("g", {"a": "gate"}))

        async def away(*_: Any, **__: Any) -> None:
            raise StoreUnavailableError

        stage.store.claim = away  # type: ignore[method-assign]
        async with working(stage, bells) as worker:
            bells.waiting.put_nowait(execution_id)

            async def back() -> bool:
                return bool(bells.nacked)

            await until(back)
            assert (bells.acked, worker.running) == ([], 0)


async def test_a_paused_queue_is_not_taken_from_until_it_goes_on(tmp_path: Path) -> None:
    gate, bells = Gate(), Bells()
    gate.opened.set()
    async with on_stage(tmp_path, gate) as stage:
        graph = await stage.graph("g", {"a": "gate"})
        first, second = [await stage.start(graph) for _ in range(2)]
        await stage.store.pause("a new disk")
        async with working(stage, bells):
            bells.waiting.put_nowait(first)

            async def back() -> bool:
                return [name for name, _ in bells.nacked] == [first]

            await until(back)
            bells.waiting.put_nowait(second)
            await stage.store.resume()
            await until(ended(stage, second))


class GoesOn(SqlExecutionStore):
    """Its pause ends just before anybody asks for it."""

    async def paused(self) -> str | None:
        await self.resume()
        return await super().paused()


async def test_a_pause_that_ends_between_two_looks_takes_no_doorbell(tmp_path: Path) -> None:
    gate, bells = Gate(), Bells()
    gate.opened.set()
    async with on_stage(tmp_path, gate) as stage:
        stage.store = GoesOn(stage.database, on_commit=stage.committed.append, ring=lambda: None, clock=stage.clock)
        execution_id = await stage.start(await stage.graph("g", {"a": "gate"}))
        await stage.store.pause("a new disk")
        async with working(stage, bells, sweep_s=60):
            bells.waiting.put_nowait(execution_id)

            async def back() -> bool:
                return bool(bells.nacked)

            await until(back)
            assert bells.acked == []
            bells.waiting.put_nowait(execution_id)
            await until(ended(stage, execution_id))
        assert bells.acked == [execution_id]


class SlowToTell(SqlExecutionStore):
    """Its first answer to "are you paused?" is on its way for long; sweeps come when the test lets them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked = 0
        self.arrives = asyncio.Event()
        self.sweeps = asyncio.Semaphore(0)

    async def paused(self) -> str | None:
        self.asked += 1
        first = self.asked == 1
        answer = await super().paused()
        if first:
            await self.arrives.wait()
        return answer

    async def sweep(self, *, grace_seconds: float = 0) -> Swept:
        await self.sweeps.acquire()
        return await super().sweep(grace_seconds=grace_seconds)


async def test_a_pause_that_is_told_late_counts_no_more_after_the_queue_goes_on(tmp_path: Path) -> None:
    gate, bells = Gate(), Bells()
    gate.opened.set()
    async with on_stage(tmp_path, gate) as stage:
        store = SlowToTell(stage.database, on_commit=stage.committed.append, ring=lambda: None, clock=stage.clock)
        stage.store = store
        graph = await stage.graph("g", {"a": "gate"})
        first, *others = [await stage.start(graph) for _ in range(3)]
        await store.pause("a new disk")
        async with working(stage, bells):
            bells.waiting.put_nowait(first)

            def asked(times: int) -> Any:
                async def has() -> bool:
                    return store.asked >= times

                return has

            async def back() -> bool:
                return bool(bells.nacked)

            await until(asked(1))
            await store.resume()
            store.sweeps.release()
            await until(asked(2))
            await asyncio.sleep(0.05)  # that answer has arrived
            store.arrives.set()
            await until(back)
            for other in others:  # no sweep comes any more that could see that the queue goes on
                bells.waiting.put_nowait(other)
                await until(ended(stage, other))


async def test_pause_and_resume_take_effect_in_the_order_in_which_they_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_stage(tmp_path) as stage:
        write, back, begun = stage.database.write, asyncio.Event(), asyncio.Event()

        async def slow(*args: Any, **kwargs: Any) -> Any:
            if not begun.is_set():
                begun.set()
                await back.wait()  # it was away when it was asked first
            return await write(*args, **kwargs)

        monkeypatch.setattr(stage.database, "write", slow)
        pausing = asyncio.create_task(stage.store.pause("a new disk"))
        await begun.wait()
        resuming = asyncio.create_task(stage.store.resume())
        await asyncio.sleep(0.05)
        back.set()
        await asyncio.gather(pausing, resuming)
        assert await stage.store.paused() is None


class Lists(Block[AnyIn]):
    """Gives lists of 1 MiB of JSON from a thread."""

    id = "lists"
    Input = AnyIn

    class Output(BlockSchema):
        out: Any

    def __init__(self) -> None:
        self.given = 0

    def run(self, data: AnyIn, ctx: BlockContext) -> Iterator[PinValue]:  # type: ignore[override]
        for _ in range(40):
            self.given += 1
            yield "out", ["x" * 2**20]


class Stuck(SqlExecutionStore):
    """Its second commit takes until the test lets it go on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commits = 0
        self.goes_on = asyncio.Event()

    async def commit(self, step: Step, row: ExecutionRow) -> None:
        self.commits += 1
        if self.commits == 2:
            await self.goes_on.wait()
        await super().commit(step, row)


@pytest.mark.slow
async def test_a_thread_with_large_outputs_waits_until_they_are_written(tmp_path: Path) -> None:
    block, bells = Lists(), Bells()
    async with on_stage(tmp_path, block) as stage:
        store = Stuck(stage.database, on_commit=stage.committed.append, ring=lambda: None, clock=stage.clock)
        stage.store = store
        execution_id = await stage.start(await stage.graph("g", {"a": "lists"}))
        async with working(stage, bells):
            bells.waiting.put_nowait(execution_id)
            seen = -1
            while store.commits < 2 or seen != block.given:  # until no more come
                seen = block.given
                await asyncio.sleep(0.4)
            assert UNWRITTEN_BYTES // 2**20 <= seen <= UNWRITTEN_BYTES // 2**20 + 8
            store.goes_on.set()
            await until(ended(stage, execution_id))
        assert block.given == 40


async def test_a_hint_makes_it_look_at_the_row(tmp_path: Path) -> None:
    gate, bells = Gate(), Bells()
    async with on_stage(tmp_path, gate) as stage:
        execution_id = await stage.start(await stage.graph("g", {"a": "gate"}))
        async with working(stage, bells, renew_s=5) as worker:
            bells.waiting.put_nowait(execution_id)

            async def inside() -> bool:
                return gate.inside == 1

            await until(inside)
            worker.hint(execution_id)
            worker.hint("nothing here")
            await asyncio.sleep(0.05)
            assert await stage.status(execution_id) == ("RUNNING", None), "a hint alone stops nothing"
            await stage.store.request_cancel(execution_id, user_id="u")
            worker.hint(execution_id)
            await until(ended(stage, execution_id))
        assert await stage.status(execution_id) == ("TERMINATED", "cancelled_by_user")


async def test_stopping_hands_back_what_runs(tmp_path: Path) -> None:
    gate, bells = Gate(), Bells()
    async with on_stage(tmp_path, gate) as stage:
        execution_id = await stage.start(await stage.graph("g", {"a": "gate"}))
        async with working(stage, bells):
            bells.waiting.put_nowait(execution_id)

            async def inside() -> bool:
                return gate.inside == 1

            await until(inside)
        assert await stage.status(execution_id) == ("QUEUED", "worker_stopping")
        assert (await stage.row(execution_id)).recoveries == 0
