"""Tokens leave in few events and in time, the text is whole whatever happens, and a tape grows with the text only."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livetape.errors import ClosedError, ConfigError, LogUnavailableError, NotFoundError
from livetape.events.log import Position
from livetape.events.result import Published
from livetape.events.text_assembler import TextAssembler
from livetape.events.tokens import EVENT_WEIGHT, TokenStream, onto_job
from livetape.testing.fakes import ManualClock


class Tape:
    """Takes events as a tape does, with keys that write once. `fail` holds what the next calls raise."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.keys: dict[str, int] = {}
        self.fail: list[BaseException | None] = []
        self.times: list[float] = []
        self.clock = ManualClock()

    async def __call__(self, event_type: str, data: dict[str, Any], /, *, idempotency_key: str) -> Position:
        await asyncio.sleep(0)
        error = self.fail.pop(0) if self.fail else None
        if isinstance(error, NotFoundError):
            raise error
        if idempotency_key not in self.keys:  # an error about which nothing is known: it has been written
            self.events.append((event_type, json.loads(json.dumps(data))))
            self.times.append(self.clock.monotonic())
            self.keys[idempotency_key] = len(self.events)
        if error is not None:
            raise error
        return Position("e", self.keys[idempotency_key])

    def stream(self, **options: Any) -> TokenStream:
        given = {"stream_id": "s", "clock": self.clock, "sleep": self.clock.sleep, **options}
        return TokenStream(self, **given)

    def of(self, event_type: str) -> list[dict[str, Any]]:
        return [data for name, data in self.events if name == event_type]

    def text(self) -> TextAssembler:
        assembler = TextAssembler("s")
        for event_type, data in self.events:
            assembler.feed(event_type, data)
        return assembler


@pytest.fixture
def tape() -> Tape:
    return Tape()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_twenty_tokens_are_one_event(tape: Tape):
    async with tape.stream() as stream:
        for n in range(45):
            await stream.write(f"{n} ")
    assert [data["text"].count(" ") for data in tape.of("token_delta")] == [20, 20, 5]
    (end,) = tape.of("token_end")
    assert end["text"] == "".join(f"{n} " for n in range(45))
    assert (end["finish_reason"], end["stream_id"]) == ("stop", "s")
    assert [data["index"] for _, data in tape.events] == [0, 1, 2, 3]


async def test_nothing_is_held_longer_than_the_delay(tape: Tape):
    chance = random.Random(7)
    written: dict[str, float] = {}
    async with tape.stream() as stream:
        for n in range(600):
            if chance.random() < 0.2:
                written[f"<{n}>"] = tape.clock.monotonic()
                await stream.write(f"<{n}>")
            await settle()
            tape.clock.advance(0.001)
            await settle()
    held = [
        at - written[token]
        for (name, data), at in zip(tape.events, tape.times, strict=True)
        if name == "token_delta"
        for token in written
        if token in data["text"]
    ]
    assert len(held) == len(written)
    assert max(held) <= 0.05 + 0.001  # the clock moves in steps
    assert len(tape.of("token_delta")) <= 12


async def test_the_delay_is_that_of_the_oldest_token_that_waits(tape: Tape):
    async with tape.stream(max_tokens=3) as stream:
        await stream.write("a")
        await settle()
        tape.clock.advance(0.04)
        await stream.write("b")
        await stream.write("c")  # published by count
        await stream.write("d")
        tape.clock.advance(0.04)
        await settle()
        assert [data["text"] for data in tape.of("token_delta")] == ["abc"]
        tape.clock.advance(0.01)
        await settle()
        assert [data["text"] for data in tape.of("token_delta")] == ["abc", "d"]


async def test_a_source_of_tokens_is_fed_in(tape: Tape):
    async def tokens() -> AsyncIterator[str]:
        for token in ("a", "", "b"):
            yield token

    async with tape.stream() as stream:
        await stream.feed(tokens())
        stream.finish_reason = "length"
    assert tape.of("token_end")[0] | {"run": 0} == {
        "stream_id": "s", "run": 0, "index": 1, "text": "ab", "finish_reason": "length"
    }  # fmt: skip


async def test_a_text_without_tokens_is_an_end(tape: Tape):
    async with tape.stream():
        pass
    assert [(name, data["text"], data["index"]) for name, data in tape.events] == [("token_end", "", 0)]


async def test_an_exception_ends_with_the_rest_and_an_abort(tape: Tape):
    async def write() -> None:
        async with tape.stream() as stream:
            await stream.write("half")
            raise ZeroDivisionError("secret")

    with pytest.raises(ZeroDivisionError):
        await write()
    assert [name for name, _ in tape.events] == ["token_delta", "token_abort"]
    assert (tape.events[1][1]["text"], tape.events[1][1]["error"]) == ("half", "ZeroDivisionError")
    text = tape.text()
    assert (text.text, text.finished, text.error, text.finish_reason) == ("half", True, "ZeroDivisionError", None)


@pytest.mark.parametrize("after", range(16))
async def test_a_cancellation_anywhere_leaves_the_whole_text(tape: Tape, after: int):
    written: list[str] = []

    async def write() -> None:
        async with tape.stream(max_tokens=2) as stream:
            for n in range(20):
                written.append(f"{n} ")
                await stream.write(f"{n} ")

    task = asyncio.create_task(write())
    for _ in range(after):
        await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):  # with many steps before, it was done
        await task
    if written:
        text = tape.text()
        assert (text.text, text.finished, text.complete) == ("".join(written), True, True)


async def test_use_outside_its_life_is_refused(tape: Tape):
    stream = tape.stream()
    with pytest.raises(ClosedError):
        await stream.write("a")
    async with stream:
        await stream.finish("tool_calls")
        with pytest.raises(ClosedError):
            await stream.write("a")
    await stream.finish()
    assert [data["finish_reason"] for data in tape.of("token_end")] == ["tool_calls"]
    with pytest.raises(ConfigError):
        tape.stream(segment_bytes=10)


async def test_each_stream_has_an_id_of_its_own(tape: Tape):
    assert TokenStream(tape).stream_id != TokenStream(tape).stream_id


async def test_a_failure_that_passes_costs_nothing(tape: Tape):
    tape.fail = [LogUnavailableError(), LogUnavailableError(), None, LogUnavailableError()]

    async def write() -> None:
        async with tape.stream(max_tokens=1) as stream:
            for n in range(5):
                await stream.write(str(n))

    task = asyncio.create_task(write())
    while not task.done():
        await settle()
        tape.clock.advance(1)
    await task
    assert [data["text"] for data in tape.of("token_delta")] == list("01234")
    assert tape.text().duplicates == 0


async def test_a_failure_that_stays_is_raised_at_the_next_write(tape: Tape):
    async def write() -> None:
        async with tape.stream() as stream:
            await stream.write("lost ")
            await settle()
            tape.fail = [NotFoundError()]
            tape.clock.advance(0.05)
            await settle()
            await stream.write("never")

    with pytest.raises(NotFoundError):
        await write()
    assert [name for name, _ in tape.events] == ["token_abort"]
    assert (tape.text().text, tape.text().complete) == ("lost ", True)


async def test_a_failure_at_the_end_is_raised(tape: Tape):
    async def write() -> None:
        async with tape.stream(tries=1) as stream:
            await stream.write("a")
            tape.fail = [None, LogUnavailableError()]

    with pytest.raises(LogUnavailableError):
        await write()
    assert tape.text().text == "a"


async def test_a_publisher_that_only_says_that_it_failed_is_heard():
    async def publish(event_type: str, data: dict[str, Any], /, *, idempotency_key: str) -> Published:
        return Published(error=LogUnavailableError())

    with pytest.raises(LogUnavailableError):
        async with TokenStream(publish, tries=1) as stream:
            await stream.write("a")


async def test_a_publisher_that_hangs_does_not_hold_up_the_end(tape: Tape):
    async def publish(event_type: str, data: dict[str, Any], /, *, idempotency_key: str) -> object:
        return await asyncio.Event().wait()

    async def write() -> None:
        async with TokenStream(publish, abort_timeout_s=0.01) as stream:
            await stream.write("a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await write()


async def test_a_slow_publisher_gets_few_large_events(tape: Tape):
    async with tape.stream(max_delay_s=0) as stream:
        for n in range(19):
            await stream.write(f"{n} ")
    assert len(tape.events) <= 3


@settings(max_examples=40)
@given(
    st.lists(st.text(max_size=40) | st.text(alphabet="ä𝄞x", min_size=200, max_size=400), max_size=40),
    st.integers(1, 5),
    st.integers(256, 700),
    st.integers(0, 400),
)
def test_what_was_written_is_read_whatever_the_sizes(tokens, max_tokens, segment_bytes, checkpoint_every):
    tape = Tape()

    async def write() -> None:
        stream = tape.stream(max_tokens=max_tokens, segment_bytes=segment_bytes, checkpoint_every=checkpoint_every)
        async with stream:
            for token in tokens:
                await stream.write(token)

    asyncio.run(write())
    text = tape.text()
    wanted = "".join(tokens).encode("utf-8", "backslashreplace").decode()
    assert (text.text, text.complete, text.finished, text.holes, text.duplicates) == (wanted, True, True, 0, 0)
    assert all(len(data["text"].encode()) <= segment_bytes for _, data in tape.events)
    assert [data["index"] for _, data in tape.events] == list(range(len(tape.events)))


async def test_the_tape_grows_with_the_text_and_not_with_its_square(tape: Tape):
    weights = []
    for size in (1_000, 10_000, 100_000):
        tape.events.clear()
        tape.keys.clear()
        async with tape.stream(max_tokens=20, segment_bytes=8192) as stream:
            for n in range(size):
                await stream.write(f"{n % 1000:03} ")
        weight = sum(len(data["text"]) + EVENT_WEIGHT for _, data in tape.events)
        weights.append(weight / (4 * size))
        tail = 0
        for name, data in tape.events:
            tail = tail + len(data["text"]) if name == "token_delta" else 0
            assert tail <= 8192
        assert len(stream._text) < 8192
    assert all(weight < 8 for weight in weights), weights
    assert weights[2] < weights[0] * 2


async def test_events_go_onto_a_job_with_their_type_and_key():
    calls = []

    class Publisher:
        async def record(self, job_id, event_data, *, idempotency_key=None):
            calls.append((job_id, event_data, idempotency_key))

    async with TokenStream(onto_job(Publisher(), "j"), stream_id="s") as stream:
        await stream.write("a")
    assert [(job, data["event_type"], data["text"]) for job, data, _ in calls] == [
        ("j", "token_delta", "a"),
        ("j", "token_end", "a"),
    ]
    assert len({key for *_, key in calls}) == 2
