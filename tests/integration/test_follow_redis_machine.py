"""Followers over the deaths of a real Redis, in any order that Hypothesis finds: with its data and without."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from livetape.events.channel import job_channel, job_tape
from livetape.events.follow import FollowOptions, follow
from livetape.events.log import NewEvent, Position
from livetape.events.open import Backend, open_backend
from livetape.events.recovery import Item
from servers import RedisServer
from unit.events.transcripts import Truth, check

T = TypeVar("T")

TAPE, CHANNEL = job_tape("j"), job_channel("j")
PATIENCE_S = 30.0
FAST = FollowOptions(chunk_events=20, tail_events=10, sweep_s=1.0, poll_s=0.2)


class Follower:
    """Has connections of its own; goes and comes back with its position."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: list[Item] = []
        self.reached = Position("", 0)
        self.task: asyncio.Task[None] | None = None

    def come(self) -> None:
        self.task = asyncio.ensure_future(self._run(self.reached))

    async def go(self, truth: Truth) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None
            self.reached = check(self.seen, Position("", 0), truth)

    async def _run(self, after: Position) -> None:
        backend = open_backend(self.url)
        assert backend.log is not None
        try:
            items = follow(backend.log, backend.bus, TAPE, CHANNEL, after=after, options=FAST)
            async with aclosing(items):
                async for item in items:
                    self.seen.append(item)
        finally:
            await backend.close()


class RedisMachine(RuleBasedStateMachine):
    """`durable`: the server writes each command to its disk before it answers; otherwise a death loses everything."""

    durable = True

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory(prefix="livetape-machine-")
        persistence = {"appendonly": "yes", "appendfsync": "always"} if self.durable else {}
        self.server = RedisServer("redis", Path(self.folder.name) / "redis", **persistence)
        self.truth = Truth()
        self.numbers = itertools.count(1)
        self.followers: list[Follower] = []
        self.backend: Backend | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, PATIENCE_S))

    @initialize()
    def start(self) -> None:
        self.server.start()
        self.run(self._open())

    async def _open(self) -> None:
        self.backend = open_backend(self.server.url())

    @rule(count=st.integers(1, 60))
    def append(self, count: int) -> None:
        async def work() -> None:
            assert self.backend is not None
            assert self.backend.recorder is not None
            payloads = [b'{"event_type":"step","n":%d}' % next(self.numbers) for _ in range(count)]
            recorded = await asyncio.gather(
                *(self.backend.recorder.record(TAPE, CHANNEL, NewEvent("step", payload)) for payload in payloads)
            )
            for one, payload in zip(recorded, payloads, strict=True):
                self.truth.append(one.position, payload)

        self.run(work())

    @rule(share=st.floats(0, 1))
    def trim(self, share: float) -> None:
        async def work() -> None:
            assert self.backend is not None
            assert self.backend.log is not None
            keep_after = int(self.truth.offset * share)
            await self.backend.log.trim(TAPE, keep_after=keep_after)
            self.truth.trim(keep_after)

        self.run(work())

    @precondition(lambda self: len(self.followers) < 3)
    @rule()
    def subscribe(self) -> None:
        self.followers.append(Follower(self.server.url()))
        self.run(self._toggle(self.followers[-1]))

    @rule(number=st.integers(0, 2))
    def leave_or_come_back(self, number: int) -> None:
        if number < len(self.followers):
            self.run(self._toggle(self.followers[number]))

    async def _toggle(self, follower: Follower) -> None:
        if follower.task is None:
            follower.come()
            await asyncio.sleep(0.02)
        else:
            await follower.go(self.truth)

    @rule(pause_s=st.sampled_from([0, 0.1]))
    def kill(self, pause_s: float) -> None:
        self.server.kill()
        if not self.durable:
            self.truth.epoch = ""
        self.run(asyncio.sleep(pause_s))
        self.server.start()

    @rule(seconds=st.sampled_from([0.01, 0.2]))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    def teardown(self) -> None:
        try:
            if self.backend is not None:
                self.run(self._until_level())
                for follower in self.followers:
                    check(follower.seen, Position("", 0), self.truth)
        finally:
            self.run(self._end())
            self.loop.close()
            self.server.stop()
            self.folder.cleanup()

    async def _until_level(self) -> None:
        if not self.truth.epoch:
            return
        wanted = Position(self.truth.epoch, self.truth.offset)
        for follower in self.followers:
            while follower.task is not None and check(follower.seen, Position("", 0), self.truth) != wanted:
                assert not follower.task.done()
                await asyncio.sleep(0.02)

    async def _end(self) -> None:
        for follower in self.followers:
            if follower.task is not None:
                follower.task.cancel()
                await asyncio.gather(follower.task, return_exceptions=True)
        if self.backend is not None:
            await self.backend.close()


class ForgetfulMachine(RedisMachine):
    durable = False


MARKS = [pytest.mark.slow, pytest.mark.needs("redis"), pytest.mark.timeout(600)]
LIMITS = settings(max_examples=12, stateful_step_count=12, deadline=None, print_blob=True)


class TestDurable(RedisMachine.TestCase):
    pytestmark = MARKS
    settings = LIMITS


class TestForgetful(ForgetfulMachine.TestCase):
    pytestmark = MARKS
    settings = LIMITS
