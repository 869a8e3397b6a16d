"""One run of a block: whatever it does, it ends, and nothing of it reaches the worker but its outputs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from livetape.clock import SystemClock
from livetape.engine.block import Block, BlockContext, BlockCost, BlockSchema, PinValue, Retries
from livetape.engine.block_cost import cost_of
from livetape.engine.block_threads import BlockThreads
from livetape.engine.output_values import MAX_OUTPUT
from livetape.engine.runner import Attempt, Outcome, RunStats, run_to_end
from livetape.errors import BlockExecutionError


class Kept:
    def __init__(self) -> None:
        self.outputs: list[PinValue] = []

    def give(self, name: str, value: Any, size: int = 0) -> None:
        self.outputs.append((name, value))

    async def room(self) -> None:
        await asyncio.sleep(0)


class Pauses:
    def __init__(self) -> None:
        self.asked: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await asyncio.sleep(0)


def context(sleep: Any = asyncio.sleep) -> BlockContext:
    return BlockContext(
        user_id="u", graph_id="g", graph_version=1, graph_exec_id="e", node_id="n", node_exec_id="ne",
        files=Path("none"), clock=SystemClock(), sleep=sleep,
    )  # fmt: skip


@pytest.fixture
def threads() -> Iterator[BlockThreads]:
    threads = BlockThreads(2)
    yield threads
    threads.shutdown(cancel_futures=True)


class Anything(BlockSchema):
    value: Any = None


class OnLoop(Block[Anything]):
    """Does on the loop what it is given."""

    id = "loop"
    Input = Anything
    Output = Anything
    limit: ClassVar[float | None] = None

    def __init__(self, work: Callable[[BlockContext], AsyncIterator[PinValue]]) -> None:
        self.work = work

    async def run(self, data: Anything, ctx: BlockContext) -> AsyncIterator[PinValue]:
        async for output in self.work(ctx):
            yield output


class InThread(Block[Anything]):
    """Does in a thread what it is given."""

    id = "thread"
    Input = Anything
    Output = Anything

    def __init__(self, work: Callable[[], Iterator[PinValue]]) -> None:
        self.work = work

    def run(self, data: Anything, ctx: BlockContext) -> Iterator[PinValue]:
        yield from self.work()


class Retried(OnLoop):
    id = "retried"
    retries = Retries(on=(ConnectionError,), attempts=4, base_s=1.0, cap_s=3.0)


def raising(error: BaseException) -> Callable[[BlockContext], AsyncIterator[PinValue]]:
    async def work(ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "value", 1
        raise error

    return work


def failure(outcome: Outcome) -> str:
    assert outcome.failure is not None
    return outcome.failure.message


ERRORS = [
    (ValueError("meant"), "meant"),
    (BlockExecutionError("said"), "said"),
    (KeyError("x"), "KeyError: 'x'"),
    (SystemExit(3), "SystemExit: 3"),
    (KeyboardInterrupt(), "KeyboardInterrupt: KeyboardInterrupt"),
    (asyncio.CancelledError(), "CancelledError: CancelledError"),
    (TimeoutError(), "TimeoutError: TimeoutError"),
    (MemoryError(), "MemoryError: MemoryError"),
    (ValueError("\ud800"), "\\ud800"),
]


@pytest.mark.parametrize(("error", "said"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])
async def test_what_it_raises_on_the_loop_is_its_failure(
    error: BaseException, said: str, threads: BlockThreads
) -> None:
    kept = Kept()
    outcome = await run_to_end(OnLoop(raising(error)), {}, context(), kept, threads)
    assert failure(outcome) == said
    assert kept.outputs == [("value", 1)]
    outcome = await run_to_end(OnLoop(raising(error)), {"_timeout": 60}, context(), kept, threads)
    assert failure(outcome) == said


@pytest.mark.parametrize(("error", "said"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])
async def test_what_it_raises_in_a_thread_is_its_failure(
    error: BaseException, said: str, threads: BlockThreads
) -> None:
    def work() -> Iterator[PinValue]:
        yield "value", 1
        raise error

    kept = Kept()
    outcome = await run_to_end(InThread(work), {}, context(), kept, threads)
    assert failure(outcome) == said
    assert kept.outputs == [("value", 1)]


async def test_an_exception_that_cannot_tell_its_text_is_told_by_its_name(threads: BlockThreads) -> None:
    class DumbError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    outcome = await run_to_end(OnLoop(raising(DumbError())), {}, context(), Kept(), threads)
    assert failure(outcome) == "DumbError: DumbError"


async def test_cancelling_reaches_the_block_and_waits_for_its_end(threads: BlockThreads) -> None:
    for pins in ({}, {"_timeout": 60}):
        said: list[str] = []
        begun = asyncio.Event()

        async def work(
            ctx: BlockContext, begun: asyncio.Event = begun, said: list[str] = said
        ) -> AsyncIterator[PinValue]:
            try:
                begun.set()
                await asyncio.get_running_loop().create_future()
                yield "never", 1
            finally:
                await asyncio.sleep(0.01)
                said.append("cleaned up")

        running = asyncio.create_task(run_to_end(OnLoop(work), pins, context(), Kept(), threads))
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert said == ["cleaned up"]


async def test_a_node_may_set_its_own_limit(threads: BlockThreads) -> None:
    async def work(ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "value", 1
        await asyncio.get_running_loop().create_future()

    kept = Kept()
    outcome = await run_to_end(OnLoop(work), {"_timeout": 0.05}, context(), kept, threads)
    assert outcome.failure is not None
    assert (outcome.failure.message, outcome.failure.reason) == ("OnLoop took longer than 0.05 s", "timeout")
    assert kept.outputs == [("value", 1)]
    for wrong in (0, -1, float("nan"), float("inf"), True, "soon"):
        outcome = await run_to_end(OnLoop(work), {"_timeout": wrong}, context(), kept, threads)
        assert failure(outcome) == "_timeout: not a number of seconds above 0"


@pytest.mark.slow
async def test_a_block_that_ignores_its_limit_is_left_behind_and_heard_no_more(threads: BlockThreads) -> None:
    going = True

    async def work(ctx: BlockContext) -> AsyncIterator[PinValue]:
        while going:
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                continue
            yield "value", 1

    kept = Kept()
    outcome = await run_to_end(OnLoop(work), {"_timeout": 0.1}, context(), kept, threads)
    given = len(kept.outputs)
    assert failure(outcome) == "OnLoop took longer than 0.1 s"
    await asyncio.sleep(0.1)
    assert len(kept.outputs) == given
    going = False
    await asyncio.sleep(0.05)


async def test_a_thread_that_is_stuck_gives_its_place_and_is_heard_no_more(threads: BlockThreads) -> None:
    free = threading.Event()

    def stuck() -> Iterator[PinValue]:
        free.wait()
        yield "late", 1

    kept = Kept()
    runs = [run_to_end(InThread(stuck), {"_timeout": 0.05}, context(), kept, threads) for _ in range(4)]
    outcomes = await asyncio.gather(*runs)
    assert {failure(outcome) for outcome in outcomes} == {"InThread took longer than 0.05 s"}

    def quick() -> Iterator[PinValue]:
        yield "value", 1

    outcome = await run_to_end(InThread(quick), {}, context(), kept, threads)
    assert outcome.failure is None
    assert threads.stuck >= 2
    free.set()
    async with asyncio.timeout(5):
        while threads.stuck:
            await asyncio.sleep(0.01)
    assert kept.outputs == [("value", 1)]


async def test_a_thread_that_waits_for_room_is_let_go_when_its_run_is_cancelled(threads: BlockThreads) -> None:
    class Full(Kept):
        async def room(self) -> None:
            await asyncio.get_running_loop().create_future()

    ended = threading.Event()

    def work() -> Iterator[PinValue]:
        try:
            for number in range(1000):
                yield "value", number
        finally:
            ended.set()

    kept = Full()
    running = asyncio.create_task(run_to_end(InThread(work), {}, context(), kept, threads))
    async with asyncio.timeout(5):
        while len(kept.outputs) < 64:
            await asyncio.sleep(0.005)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        while not ended.is_set():
            await asyncio.sleep(0.005)
    assert len(kept.outputs) == 64


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (("", 1), "an output needs a pin name"),
        ((5, 1), "an output needs a pin name"),
        (("error", "no"), "no"),
        (("value", object()), "an output of type object is not JSON"),
        (("value", "x" * (MAX_OUTPUT + 1)), "an output is larger than 50 MiB"),
        (("value", ["x" * 1024] * (51 * 1024)), "an output is larger than 50 MiB"),
    ],
)
async def test_outputs_that_are_none(output: Any, said: str, threads: BlockThreads) -> None:
    async def work(ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield output

    outcome = await run_to_end(OnLoop(work), {}, context(), Kept(), threads)
    assert failure(outcome) == said


async def test_values_that_json_has_no_words_for(threads: BlockThreads) -> None:
    deep: Any = "end"
    for _ in range(5000):
        deep = [deep]

    async def work(ctx: BlockContext) -> AsyncIterator[PinValue]:
        yield "value", [float("nan"), float("inf"), "\udcff", {"\ud800": 1}]
        yield "value", [float("nan"), {"a": float("inf")}]
        yield "value", float("-inf")
        yield "value", deep

    kept = Kept()
    outcome = await run_to_end(OnLoop(work), {}, context(), kept, threads)
    assert kept.outputs == [
        ("value", [None, None, "\\udcff", {"\\ud800": 1}]),
        ("value", [None, {"a": None}]),
        ("value", None),
    ]
    assert failure(outcome) == "an output of type list is not JSON"


# --- retries -----------------------------------------------------------------------------------------------------


def attempts(*runs: list[Any]) -> Callable[[BlockContext], AsyncIterator[PinValue]]:
    """One list for each attempt: values to give, and an exception where it fails."""
    left = list(runs)

    async def work(ctx: BlockContext) -> AsyncIterator[PinValue]:
        for item in left.pop(0):
            if isinstance(item, BaseException):
                raise item
            yield "value", item

    return work


async def test_it_is_tried_again_with_growing_pauses_and_says_so(threads: BlockThreads) -> None:
    pauses, tries = Pauses(), list[Attempt]()
    lost = ConnectionResetError("lost")
    block = Retried(attempts([lost], [lost], [lost], ["done"]))
    kept = Kept()
    outcome = await run_to_end(block, {}, context(pauses), kept, threads, tried=tries.append)
    assert outcome.failure is None
    assert outcome.stats.attempts == 4
    assert kept.outputs == [("value", "done")]
    assert [attempt.number for attempt in tries] == [1, 2, 3]
    assert {attempt.failure.message for attempt in tries} == {"ConnectionResetError: lost"}
    assert pauses.asked == [attempt.pause_s for attempt in tries]
    for pause, step in zip(pauses.asked, (1, 2, 3), strict=True):
        assert step / 2 <= pause <= step


async def test_the_last_attempt_fails_for_good_and_other_errors_at_once(threads: BlockThreads) -> None:
    lost = ConnectionResetError("lost")
    outcome = await run_to_end(Retried(attempts(*[[lost]] * 4)), {}, context(Pauses()), Kept(), threads)
    assert (failure(outcome), outcome.stats.attempts) == ("ConnectionResetError: lost", 4)
    outcome = await run_to_end(Retried(attempts([KeyError("x")])), {}, context(Pauses()), Kept(), threads)
    assert outcome.stats.attempts == 1


async def test_what_an_attempt_repeats_is_not_given_twice(threads: BlockThreads) -> None:
    lost = ConnectionResetError("lost")
    for runs, given in (
        ([["a", "b", lost], ["a", "b", "c"]], ["a", "b", "c"]),
        ([["a", "b", lost], ["a", lost], ["a", "b", "c"]], ["a", "b", "c"]),
        ([["a", "b", lost], ["a", "x", "b"]], ["a", "b", "x", "b"]),
        ([["a", lost], ["x", lost], ["x", "y"]], ["a", "x", "y"]),
        ([[lost], ["a", "a"]], ["a", "a"]),
    ):
        kept = Kept()
        outcome = await run_to_end(Retried(attempts(*runs)), {}, context(Pauses()), kept, threads)
        assert outcome.failure is None
        assert [value for _, value in kept.outputs] == given


async def test_an_error_may_ask_for_a_longer_pause_up_to_the_cap(threads: BlockThreads) -> None:
    class BusyError(ConnectionError):
        def __init__(self, retry_after: Any) -> None:
            self.retry_after = retry_after

    pauses = Pauses()
    block = Retried(attempts([BusyError(2.5)], [BusyError(100)], [BusyError(float("nan"))], ["x"]))
    assert (await run_to_end(block, {}, context(pauses), Kept(), threads)).failure is None
    assert pauses.asked[0] == 2.5
    assert pauses.asked[1] == 3
    assert 1.5 <= pauses.asked[2] <= 3


# --- threads -----------------------------------------------------------------------------------------------------


def test_threads_take_no_more_than_their_number_at_once() -> None:
    threads = BlockThreads(3)
    lock, running, most = threading.Lock(), 0, 0

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.002)
        with lock:
            running -= 1

    for future in [threads.submit(work) for _ in range(60)]:
        future.result(5)
    assert most == 3
    threads.shutdown(cancel_futures=True)
    with pytest.raises(RuntimeError, match="after shutdown"):
        threads.submit(work)


def test_calls_that_wait_are_dropped_at_the_shutdown() -> None:
    threads = BlockThreads(1)
    begun, free = threading.Event(), threading.Event()

    def work() -> bool:
        begun.set()
        return free.wait(5)

    first, second = threads.submit(work), threads.submit(work)
    assert begun.wait(5)
    threads.shutdown(cancel_futures=True)
    assert second.cancelled()
    free.set()
    assert first.result(5)


def test_a_second_call_does_not_wait_for_a_thread_that_was_just_woken() -> None:
    threads = BlockThreads(2)
    for _ in range(50):
        threads.submit(int).result(5)
        meet = threading.Barrier(2)
        for future in [threads.submit(meet.wait, 5) for _ in range(2)]:
            future.result(5)
    threads.shutdown()


# --- costs -------------------------------------------------------------------------------------------------------


def test_costs_are_those_of_the_first_filter_that_matches() -> None:
    class Priced(OnLoop):
        costs = (
            BlockCost(5, {"model": "large", "options": {"deep": True}}),
            BlockCost(2, {"model": "slow"}, "second"),
            BlockCost(3, {"model": "wide"}, "byte"),
            BlockCost(1),
        )

    block, stats = Priced(raising(ValueError())), RunStats(2.1, 1, 1, {"bytes": 10})
    assert cost_of(block, {"model": "large", "options": {"deep": True, "more": 1}}) == 5
    assert cost_of(block, {"model": "large", "options": {}}) == 1
    assert cost_of(block, {"model": "slow"}) == 0
    assert cost_of(block, {"model": "slow"}, stats) == 6
    assert cost_of(block, {"model": "wide"}, stats) == 30
    assert cost_of(OnLoop(raising(ValueError())), {}) == 0
