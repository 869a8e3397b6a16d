"""Whoever joins a stream of tokens gets the text so far with few reads, then the rest, each character once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.events.channel import job_tape
from livetape.events.encrypted import encrypted
from livetape.events.keyring import KEY_BYTES, KeyRing
from livetape.events.log import NewEvent
from livetape.events.open import Backend
from livetape.events.reader import JobReader
from livetape.events.recorder import LogRecorder
from livetape.events.streams import RedisStreamPublisher
from livetape.events.token_text import TextPart, follow_text, read_text
from livetape.events.tokens import TokenStream, onto_job
from livetape.testing.fakes import FakeLog


class Room:
    def __init__(self, *, with_key: bool = False) -> None:
        self.store, self.memory = FakeLog(), MemoryBus()
        backend = Backend(self.memory, self.store, LogRecorder(self.store, self.memory))
        if with_key:
            backend = encrypted(backend, KeyRing({"k": b"k" * KEY_BYTES}, current="k"))
        assert backend.log is not None
        self.log, self.bus = backend.log, backend.bus
        self.reader = JobReader.of(backend)
        self.publisher = RedisStreamPublisher(backend=backend)

    def stream(self, stream_id: str = "s", **options: Any) -> TokenStream:
        given = {"max_tokens": 2, "segment_bytes": 256, "checkpoint_every": 64, **options}
        return TokenStream(onto_job(self.publisher, "j"), stream_id=stream_id, **given)

    async def progress(self, count: int) -> None:
        for n in range(count):
            await self.publisher.publish_task_progress("j", "write", n)

    def follow(self, stream_id: str = "s") -> AsyncGenerator[TextPart, None]:
        return follow_text(self.reader, "j", stream_id)


@pytest.fixture(params=[False, True], ids=["clear", "encrypted"])
async def room(request: pytest.FixtureRequest) -> AsyncIterator[Room]:
    room = Room(with_key=request.param)
    yield room
    await room.memory.close()


def tokens(count: int, seed: int = 1) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices("abcä 𝄞\n", k=chance.randint(1, 12))) for _ in range(count)]


async def test_the_text_so_far_at_any_moment(room: Room):
    written, wanted = "", tokens(60)
    assert (await read_text(room.reader, "j", "s")).position is None
    async with room.stream(max_tokens=1) as stream:
        for token in wanted:
            await stream.write(token)
            written += token
            text = await read_text(room.reader, "j", "s")
            assert (text.text, text.started, text.finished, text.complete) == (written, True, False, True)
    text = await read_text(room.reader, "j", "s")
    assert (text.text, text.finished, text.finish_reason) == (written, True, "stop")
    described = await room.log.describe(job_tape("j"))
    assert described is not None
    assert text.position == described.position


async def test_a_late_joiner_reads_the_end_of_a_long_tape_only(room: Room):
    await room.progress(1200)
    async with room.stream(segment_bytes=65_536, max_tokens=1) as stream:
        for _ in range(1500):
            await stream.write("word ")
    await room.progress(20)
    room.store.reads = 0
    assert (await read_text(room.reader, "j", "s")).text == "word " * 1500
    assert room.store.reads <= 2


async def test_segments_are_read_by_their_offsets(room: Room):
    async with room.stream() as stream:
        for _ in range(1000):
            await stream.write("word ")
            if stream._index % 50 == 0:
                await room.progress(5)
    room.store.reads = 0
    assert (await read_text(room.reader, "j", "s")).text == "word " * 1000
    segments = 5000 // 256 + 1
    assert room.store.reads <= segments + 2


async def test_segments_are_found_without_their_offsets(room: Room):
    class Mute:
        async def record(self, job_id, event_data, *, idempotency_key=None):
            await room.publisher.record(job_id, event_data, idempotency_key=idempotency_key)

    async with TokenStream(onto_job(Mute(), "j"), stream_id="s", segment_bytes=256, max_tokens=2) as stream:
        for n in range(800):
            await stream.write(f"{n} ")
    text = await read_text(room.reader, "j", "s")
    assert (text.text, text.complete) == ("".join(f"{n} " for n in range(800)), True)


async def test_streams_of_one_tape_do_not_mix(room: Room):
    wanted = {name: tokens(300, seed) for seed, name in enumerate(("a", "b", "c"))}

    async def write(name: str) -> None:
        async with room.stream(name) as stream:
            for token in wanted[name]:
                await stream.write(token)
                await asyncio.sleep(0)

    await asyncio.gather(*(write(name) for name in wanted))
    for name, words in wanted.items():
        assert (await read_text(room.reader, "j", name)).text == "".join(words)
    assert not (await read_text(room.reader, "j", "other")).started


async def test_a_trimmed_text_is_not_called_complete(room: Room):
    async with room.stream() as stream:
        for _ in range(200):
            await stream.write("word ")
    described = await room.log.describe(job_tape("j"))
    assert described is not None
    await room.log.trim(job_tape("j"), keep_after=described.offset - 3)
    text = await read_text(room.reader, "j", "s")
    assert (text.complete, text.finished) == (False, True)
    assert text.text == "word " * (len(text.text) // 5) or text.text.endswith("word ")


async def test_a_task_that_is_run_again_writes_the_text_anew(room: Room):
    for words in (["first ", "try"], ["second"]):
        async with room.stream() as stream:
            for word in words:
                await stream.write(word)
        await asyncio.sleep(0.002)  # a run is known by its millisecond
    assert (await read_text(room.reader, "j", "s")).text == "second"


async def test_a_mixed_tape_is_read_from_its_beginning(room: Room):
    async with room.stream() as stream:
        for _ in range(100):
            await stream.write("word ")
    reel = room.store.reels[job_tape("j")]
    reel.tape = replace(reel.tape, mixed=True)
    assert (await read_text(room.reader, "j", "s")).text == "word " * 100


async def test_rubbish_among_the_events_is_passed_over(room: Room):
    async with room.stream() as stream:
        await stream.write("a")
        for payload in (b"{", b"[]", b'{"data":7}', b'{"data":{"stream_id":"s"}}'):
            await room.log.append(job_tape("j"), NewEvent("token_delta", payload))
    assert (await read_text(room.reader, "j", "s")).text == "a"


async def shown(parts: AsyncGenerator[TextPart, None]) -> tuple[str, list[TextPart]]:
    """What somebody sees who shows the parts."""
    text, seen = "", []
    async for part in parts:
        text = part.text if part.replaces else text + part.text
        seen.append(part)
    return text, seen


@pytest.mark.parametrize("before", [0, 1, 37])
async def test_a_follower_sees_the_text_so_far_and_then_each_character_once(room: Room, before: int):
    wanted = tokens(80)
    async with room.stream() as stream:
        for token in wanted[:before]:
            await stream.write(token)
        follower = asyncio.create_task(shown(room.follow()))
        for token in wanted[before:]:
            await stream.write(token)
            await asyncio.sleep(0)
    text, parts = await asyncio.wait_for(follower, 5)
    assert text == "".join(wanted)
    assert (parts[-1].finished, parts[-1].finish_reason, parts[-1].complete) == (True, "stop", True)
    assert [part.replaces for part in parts][:1] == [True]


async def test_following_ends_with_the_job_even_without_an_end(room: Room):
    stream = room.stream()
    await stream.__aenter__()
    await stream.write("half")
    follower = asyncio.create_task(shown(room.follow()))
    while not (await read_text(room.reader, "j", "s")).started:
        await asyncio.sleep(0.01)
    await room.publisher.publish_task_failed("j", "write", "dead")
    text, parts = await asyncio.wait_for(follower, 5)
    assert (text, parts[-1].finished) == ("half", False)
    assert (await shown(room.follow()))[0] == "half"
    await stream.finish()


async def test_following_what_is_over_is_one_part(room: Room):
    async with room.stream() as stream:
        await stream.write("done")
    assert await shown(room.follow()) == ("done", [TextPart("done", True, True, True, "stop", None)])


async def test_a_lost_tape_is_told_by_what_is_left(room: Room):
    async with room.stream(checkpoint_every=10_000) as stream:
        await stream.write("gone ")
        await stream._flush()
        parts = room.follow()
        assert (await anext(parts)).text == "gone "
        pending = asyncio.ensure_future(anext(parts))
        await asyncio.sleep(0.01)
        room.store.lose(job_tape("j"))
        for word in ("but ", "not ", "forgotten"):
            await stream.write(word)
        await stream._flush()
        part = await asyncio.wait_for(pending, 10)
        assert part.replaces
        assert not part.complete
    text, _ = await shown(parts)
    final = await read_text(room.reader, "j", "s")
    assert (final.text, final.complete) == ("gone but not forgotten", True)
    assert text in final.text
