"""What many ask at the same time is asked once; and what was read a moment ago is kept for a moment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from livetape.events.tape_event import TapeEvent
from livetape.gateway.chunks import Chunk, ChunkCache
from livetape.gateway.flights import Flights
from livetape.gateway.forms import Form, LinesForm, SseForm
from livetape.gateway.messages import Push


class Question:
    """Answers with how often it was asked, when the test says so."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers: list[asyncio.Future[None]] = []

    async def __call__(self) -> int:
        self.asked += 1
        number, answer = self.asked, asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        await answer
        return number


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def begin(*work: Any) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(one) for one in work]
    await turns()
    return tasks


async def test_who_asks_the_same_is_given_the_same_answer() -> None:
    flights, question = Flights[int](), Question()
    tasks = await begin(*(flights.join("a", question) for _ in range(5)), flights.join("b", question))
    assert question.asked == 2
    for answer in question.answers:
        answer.set_result(None)
    assert await asyncio.gather(*tasks) == [1, 1, 1, 1, 1, 2]
    assert not flights._flights


async def test_an_answer_is_never_from_before_the_question() -> None:
    flights, question = Flights[int](), Question()
    first, *late = await begin(flights.after("a", question), *(flights.after("a", question) for _ in range(5)))
    assert question.asked == 1
    question.answers[0].set_result(None)
    await turns()
    (later,) = await begin(flights.after("a", question))
    question.answers[1].set_result(None)
    await turns()
    question.answers[2].set_result(None)
    assert await asyncio.gather(first, *late, later) == [1, 2, 2, 2, 2, 2, 3]


async def test_an_error_is_everybodys() -> None:
    flights, question = Flights[int](), Question()
    tasks = await begin(*(flights.join("a", question) for _ in range(3)))
    question.answers[0].set_exception(ZeroDivisionError())
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError] * 3
    (again,) = await begin(flights.join("a", question))
    question.answers[1].set_result(None)
    assert await again == 2


async def test_when_the_first_is_cancelled_another_asks() -> None:
    flights, question = Flights[int](), Question()
    tasks = await begin(*(flights.join("a", question) for _ in range(3)))
    tasks[0].cancel()
    tasks[1].cancel()
    await turns()
    assert question.asked == 2
    question.answers[1].set_result(None)
    assert await tasks[2] == 2
    assert not flights._flights


# ---- chunks ---------------------------------------------------------------------------------------------------------


def events(first: int, count: int, size: int = 10) -> list[TapeEvent]:
    return [TapeEvent("node_execution_update", b"x" * size, first + n, "e") for n in range(count)]


class Encoder:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, event: TapeEvent, form: Form) -> Push | None:
        self.calls += 1
        return Push(b"%d" % (event.offset or 0))


def test_a_chunk_is_encoded_once_for_each_form() -> None:
    chunk, encode = Chunk([*events(1, 2), TapeEvent("out", b"", 3, "e")]), Encoder()
    pushes = [chunk.push(LinesForm(), each=True, encode=encode, left_out="out") for _ in range(3)]
    assert pushes[0] is pushes[1] is pushes[2]
    assert pushes[0] is not None
    assert (pushes[0].data, encode.calls) == (b"123", 3)
    plain = chunk.push(LinesForm(), each=False, encode=encode, left_out="out")
    assert plain is not None
    assert plain.data == b"12"
    assert chunk.push(SseForm(), each=True, encode=encode, left_out="out") is not pushes[0]
    assert Chunk([TapeEvent("out", b"", 3, "e")]).push(LinesForm(), each=False, encode=encode, left_out="out") is None


def test_what_follows_without_a_hole() -> None:
    assert Chunk(events(4, 3)).follows(3)
    assert not Chunk(events(4, 3)).follows(2)
    assert not Chunk([*events(4, 1), *events(6, 1)]).follows(3)
    assert not Chunk(()).follows(3)


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def cache(now: list[float]) -> ChunkCache:
    return ChunkCache(10_000, 5, lambda: now[0])


def test_chunks_are_kept_for_a_moment(cache: ChunkCache, now: list[float]) -> None:
    chunk = Chunk(events(1, 2))
    cache.put("a", "tape", chunk, cache.era)
    assert cache.get("a") is chunk
    assert cache.get("b") is None
    now[0] = 5
    assert cache.get("a") is None
    assert len(cache) == 0


def test_nothing_is_kept_as_it_may_be_more_the_next_time(cache: ChunkCache) -> None:
    cache.put("a", "tape", Chunk(()), cache.era)
    assert len(cache) == 0


def test_the_bytes_are_bounded(cache: ChunkCache) -> None:
    for number in range(20):
        cache.put(number, "tape", Chunk(events(1, 1, 1000)), cache.era)
    assert len(cache) == 10_000 // 1512
    assert cache.get(19) is not None
    cache.put("large", "tape", Chunk(events(1, 1, 9_000)), cache.era)
    assert cache.get("large") is None


def test_a_tape_that_is_not_what_it_was_is_forgotten(cache: ChunkCache) -> None:
    era = cache.era
    cache.put("a", "tape", Chunk(events(1, 1)), era)
    cache.put("b", "other", Chunk(events(1, 1)), era)
    cache.forget("tape")
    assert (cache.get("a"), len(cache)) == (None, 1)
    cache.put("a", "tape", Chunk(events(1, 1)), era)
    assert cache.get("a") is None, "it was read before that"


def test_what_it_weighs_is_counted_as_it_changes(cache: ChunkCache, now: list[float]) -> None:
    form = SseForm()

    def encode(event: TapeEvent, form: Form) -> Push:
        return Push(b"x" * 500)

    def total() -> int:
        return cache._scale.total

    def weights() -> int:
        return sum(kept.chunk.weight for kept in cache._chunks.values())

    chunks = [Chunk(events(1, 1)) for _ in range(12)]
    for number, chunk in enumerate(chunks):
        cache.put(number % 9, f"tape{number % 3}", chunk, cache.era)
        chunk.push(form, each=False, encode=encode, left_out="")
        assert total() == weights()
    cache.put("more", "tape", Chunk(events(1, 1)), cache.era)
    assert total() == weights() <= 10_000
    cache.forget("tape1")
    assert total() == weights() > 0
    chunks[10].push(form, each=True, encode=encode, left_out="")  # is kept no longer
    assert total() == weights()
    now[0] = 6.0
    cache.tidy()
    assert (total(), len(cache)) == (0, 0)
    era = cache.era
    cache.put("a", "tape", Chunk(events(1, 1)), era)
    cache.clear()
    cache.put("b", "tape", Chunk(events(1, 1)), era)
    assert (total(), len(cache)) == (0, 0)
