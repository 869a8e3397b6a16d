"""Long waits: a block is ended and run again, and finds each wait as it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from livetape.engine.block import Block, BlockContext, BlockSchema, PinValue
from livetape.engine.block_ports import ChildCall, ChildResult, ReviewAnswer, ReviewRequest, Suspended, Wait
from livetape.engine.block_services import ABSENT
from livetape.engine.block_threads import BlockThreads
from livetape.engine.blocks.countdown import CountdownTimerBlock
from livetape.engine.blocks.delay import DelayBlock
from livetape.engine.blocks.review import HumanInTheLoopBlock
from livetape.engine.blocks.sub_graphs import AgentExecutorBlock, MapGraphBlock
from livetape.engine.durable_waits import DurableWaits, waits_from_json, waits_to_json
from livetape.engine.runner import Outcome, run_block, run_to_end
from livetape.errors import BlockExecutionError

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Clock:
    """Goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return (self.time - START).total_seconds()

    async def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        await asyncio.sleep(0)


class Kept:
    def __init__(self) -> None:
        self.outputs: list[PinValue] = []

    def give(self, name: str, value: Any, size: int = 0) -> None:
        self.outputs.append((name, value))

    async def room(self) -> None:
        pass


@pytest.fixture
def threads() -> Iterator[BlockThreads]:
    threads = BlockThreads(1)
    yield threads
    threads.shutdown()


class Journal:
    """What the engine does with the waits of one node execution, without an engine. Kept as bytes in between."""

    def __init__(self, block: Block[Any], threads: BlockThreads, **pins: Any) -> None:
        self.block = block
        self.threads = threads
        self.pins = pins
        self.clock = Clock()
        self.kept = waits_to_json([])
        self.runs = 0
        self.outputs: list[PinValue] = []

    @property
    def waits(self) -> dict[int, Wait]:
        return {wait.number: wait for wait in waits_from_json(self.kept)}

    async def run(self, *, auto_approve: bool = False) -> Outcome:
        """Run it again from the start, with what is known."""
        self.runs += 1
        waits = DurableWaits(self.waits.values(), clock=self.clock, sleep=self.clock.sleep, auto_approve=auto_approve)
        ctx = BlockContext(
            user_id="u", graph_id="g", graph_version=1, graph_exec_id="e", node_id="n", node_exec_id="ne",
            files=Path("none"), clock=self.clock, sleep=self.clock.sleep,
            timers=waits, children=waits, review=waits,
        )  # fmt: skip
        kept = Kept()
        outcome = await run_to_end(self.block, self.pins, ctx, kept, self.threads)
        assert kept.outputs[: len(self.outputs)] == self.outputs, "a run that goes on repeats what it gave"
        self.outputs = kept.outputs
        merged = {**self.waits, **{wait.number: wait for wait in outcome.waits}}
        self.kept = waits_to_json(merged.values())
        return outcome

    def answer(self, number: int, answer: dict[str, Any]) -> None:
        waits = self.waits
        last = max(wait.answered_no for wait in waits.values())
        waits[number] = replace(waits[number], answer=answer, answered_no=last + 1)
        self.kept = waits_to_json(waits.values())


def result(value: Any, status: str = "COMPLETED", error: str | None = None) -> dict[str, Any]:
    return asdict(ChildResult(f"child-{value}", status, {"out": [value]}, error))


async def test_a_long_delay_is_kept_and_its_first_due_time_counts(threads: BlockThreads) -> None:
    journal = Journal(DelayBlock(), threads, value="x", seconds=3600)
    outcome = await journal.run()
    assert outcome.failure is None
    assert [(wait.kind, wait.due) for wait in outcome.waits] == [("timer", START + timedelta(hours=1))]
    journal.clock.time += timedelta(minutes=30)  # another worker, half way
    assert (await journal.run()).waits[0].due == START + timedelta(hours=1)
    journal.clock.time = START + timedelta(hours=1)
    assert (await journal.run()).waits == ()
    assert journal.outputs == [("value", "x")]


async def test_a_short_delay_is_waited_for_in_place(threads: BlockThreads) -> None:
    journal = Journal(DelayBlock(), threads, value="x", seconds=4)
    assert (await journal.run()).waits == ()
    assert journal.clock.monotonic() == 4


async def test_the_last_seconds_of_a_kept_timer_are_waited_for_in_place(threads: BlockThreads) -> None:
    journal = Journal(DelayBlock(), threads, value="x", seconds=100)
    await journal.run()
    journal.clock.time = START + timedelta(seconds=97)
    assert (await journal.run()).waits == ()
    assert journal.clock.monotonic() == 100


async def test_a_countdown_goes_on_where_it_was(threads: BlockThreads) -> None:
    journal = Journal(CountdownTimerBlock(), threads, minutes=10, repeat=3)
    for number in range(3):
        outcome = await journal.run()
        (wait,) = outcome.waits
        assert wait.number == number
        assert len(journal.outputs) == number
        assert wait.due is not None
        journal.clock.time = wait.due
        journal.answer(number, {})
    assert (await journal.run()).waits == ()
    assert journal.outputs == [("output_message", "timer finished")] * 3
    assert journal.clock.monotonic() == 1800


async def test_another_graph_is_asked_for_once(threads: BlockThreads) -> None:
    journal = Journal(AgentExecutorBlock(), threads, user_id="evil", graph_id="other", graph_version=2, x=1)
    outcome = await journal.run()
    (wait,) = outcome.waits
    assert wait.kind == "child"
    assert wait.request["graph_id"] == "other"
    assert wait.request["inputs"] == {"x": 1}
    assert (await journal.run()).waits == (wait,)
    journal.answer(0, result(7))
    assert (await journal.run()).waits == ()
    assert journal.outputs == [("out", 7)]


async def test_a_map_has_no_more_than_its_limit_open_and_gives_results_as_they_end(threads: BlockThreads) -> None:
    items = [10, 11, 12, 13]
    journal = Journal(MapGraphBlock(), threads, items=items, graph_id="other", input_name="x", concurrency=2)
    assert [wait.number for wait in (await journal.run()).waits] == [0, 1]
    journal.answer(1, result(1))
    assert [wait.number for wait in (await journal.run()).waits] == [0, 2]
    assert [value["index"] for _, value in journal.outputs] == [1]
    journal.answer(2, result(2))
    journal.answer(0, result(0))  # two at once
    assert [wait.number for wait in (await journal.run()).waits] == [3]
    journal.answer(3, result(3))
    assert (await journal.run()).waits == ()
    assert [value["index"] for name, value in journal.outputs if name == "item"] == [1, 2, 0, 3]
    assert journal.outputs[-1] == ("results", [{"out": 0}, {"out": 1}, {"out": 2}, {"out": 3}])


async def test_a_map_ends_with_the_first_failure_or_goes_on(threads: BlockThreads) -> None:
    pins = {"items": [1, 2], "graph_id": "other", "input_name": "x"}
    journal = Journal(MapGraphBlock(), threads, **pins)
    await journal.run()
    journal.answer(1, result(2, "FAILED", "no luck"))
    outcome = await journal.run()
    assert outcome.failure is not None
    assert outcome.failure.message == "item 1: the execution child-2 of the other graph ended FAILED: no luck"
    journal = Journal(MapGraphBlock(), threads, **pins, on_error="continue")
    await journal.run()
    journal.answer(1, result(2, "TERMINATED"))
    await journal.run()
    journal.answer(0, result(1))
    assert (await journal.run()).failure is None
    assert journal.outputs[-1] == ("results", [{"out": 1}, None])


async def test_a_person_is_asked_once_or_not_at_all(threads: BlockThreads) -> None:
    journal = Journal(HumanInTheLoopBlock(), threads, data={"a": 1}, name="check")
    (wait,) = (await journal.run()).waits
    assert wait.request == {"data": {"a": 1}, "name": "check", "editable": True}
    journal.answer(0, asdict(ReviewAnswer(True, {"a": 2}, "better")))
    await journal.run()
    assert journal.outputs == [("approved_data", {"a": 2}), ("review_message", "better")]
    journal = Journal(HumanInTheLoopBlock(), threads, data=1, name="check")
    assert (await journal.run(auto_approve=True)).waits == ()
    assert journal.outputs == [("approved_data", 1), ("review_message", "Auto-approved (safe mode disabled)")]


class Fickle(Block[BlockSchema]):
    """Asks for something else when it is run again, and swallows every Exception."""

    id = "fickle"

    class Input(BlockSchema):
        pass

    class Output(BlockSchema):
        out: Any

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, data: BlockSchema, ctx: BlockContext) -> AsyncIterator[PinValue]:
        self.runs += 1
        try:
            if self.runs == 1:
                await ctx.sleep_until(ctx.clock.now() + timedelta(days=1))
            else:
                await ctx.review.ask(ReviewRequest(1, "other"))
        except BlockExecutionError as error:
            yield "out", str(error)
        except Exception:
            yield "out", "caught"


async def test_a_block_that_asks_for_something_else_is_told_so(threads: BlockThreads) -> None:
    journal = Journal(Fickle(), threads)
    assert len((await journal.run()).waits) == 1  # `except Exception` did not stop it
    await journal.run()
    assert journal.outputs == [("out", "asked for a review where it had asked for a timer before")]


async def test_a_moment_needs_its_zone() -> None:
    clock = Clock()
    waits = DurableWaits((), clock=clock, sleep=clock.sleep)
    with pytest.raises(ValueError, match="time zone"):
        await waits.sleep_until(datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(Suspended) as caught:
        await waits.sleep_until(datetime(2030, 1, 1, tzinfo=UTC))
    assert caught.value.waits[0].number == 0


async def test_where_nothing_can_be_kept_waits_are_in_place_and_the_rest_is_refused(threads: BlockThreads) -> None:
    clock = Clock()
    ctx = BlockContext(
        user_id="u", graph_id="g", graph_version=1, graph_exec_id="e", node_id="n", node_exec_id="ne",
        files=Path("none"), clock=clock, sleep=clock.sleep,
    )  # fmt: skip
    await ctx.sleep_until(START + timedelta(hours=1))
    assert clock.monotonic() == 3600
    for refused in (
        ABSENT.run(ChildCall("g", {})),
        ABSENT.ask(ReviewRequest(1, "x")),
        ABSENT.get("u", "k"),
        ABSENT.set("u", "k", 1),
        ABSENT.transaction(lambda connection: connection),
    ):
        with pytest.raises(BlockExecutionError, match="this engine"):
            await refused
    failure = await run_block(
        AgentExecutorBlock(), {"user_id": "u", "graph_id": "g", "graph_version": 1}, ctx, Kept(), threads
    )
    assert failure is not None
    assert failure.message == "this engine cannot run other graphs"
