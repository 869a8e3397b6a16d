"""The recorder on Redis when its server comes back empty or another one takes its place, and beside a second one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from livetape.adapters.redis.commands import RedisLinkError, Word
from livetape.adapters.redis.dial import Dialer
from livetape.adapters.redis.endpoint import Endpoint
from livetape.adapters.redis.locate import locator_of
from livetape.adapters.redis.log import RedisLog
from livetape.adapters.redis.pipeline import PipelinedCommands
from livetape.adapters.redis.recorder import RedisRecorder
from livetape.errors import PositionLostError
from livetape.events.log import NewEvent
from livetape.events.open import open_backend
from livetape.events.recorder import Recorded, Recorder
from servers import RedisServer, guarded_pair

Happening = Callable[[], Awaitable[None]]


def said(text: str) -> NewEvent:
    return NewEvent("said", b'{"event_type":"said","text":"%s"}' % text.encode())


class LosesAnAnswer(PipelinedCommands):
    """The server carries a batch out; then something `happens` to the server, and the answer is lost with the link.

    With `before` the batch is lost too, and nobody can know.
    """

    def __init__(self, url: str) -> None:
        endpoint = Endpoint.from_url(url)
        super().__init__(Dialer(endpoint, locator_of(endpoint)))
        self.happens: Happening | None = None
        self.before = False
        self.batches = 0

    def send(self, words: Sequence[Word], key: str = "") -> Awaitable[Any]:
        happens = self.happens
        if words[0] != "EVALSHA" or happens is None:
            return super().send(words, key)
        self.happens = None
        return asyncio.ensure_future(self._lose(words, key, happens))

    async def _lose(self, words: Sequence[Word], key: str, happens: Happening) -> Any:
        if not self.before:
            answer = await super().send(words, key)
            assert answer[0] == 1
        await happens()
        raise RedisLinkError("the connection broke", sent=True)


@asynccontextmanager
async def losing(url: str) -> AsyncIterator[tuple[LosesAnAnswer, RedisRecorder, RedisLog]]:
    commands = LosesAnAnswer(url)
    recorder, log = RedisRecorder(commands, timeout_s=30), RedisLog(commands, timeout_s=30)
    try:
        yield commands, recorder, log
    finally:
        await recorder.close()
        await log.close()
        await commands.close()


async def recorded(recorder: RedisRecorder, *texts: str, **more: Any) -> list[Recorded]:
    return await asyncio.gather(*(recorder.record("t", "c/x", said(text), **more) for text in texts))


def offsets(made: Sequence[Recorded]) -> list[int]:
    return [one.position.offset for one in made]


async def texts_of(log: RedisLog, epoch: str) -> list[bytes]:
    return [entry.payload for entry in await log.read("t", epoch=epoch)]


@pytest.mark.needs("redis")
@pytest.mark.parametrize("before", [False, True], ids=["carried_out", "lost"])
async def test_a_batch_whose_server_came_back_empty_is_new_there(own_redis: RedisServer, before: bool) -> None:
    async with losing(own_redis.url()) as (commands, recorder, log):
        old = await recorded(recorder, "a", "b", owner="u")
        epoch = old[0].position.epoch

        async def restart() -> None:
            own_redis.kill()
            own_redis.start()

        commands.happens, commands.before = restart, before
        under_way = asyncio.ensure_future(recorded(recorder, "c", "d", "e", owner="u"))
        await asyncio.sleep(0)
        behind = asyncio.ensure_future(recorded(recorder, "f", owner="u"))
        made = await under_way + await behind
        assert offsets(made) == [1, 2, 3, 4]
        assert {one.position.epoch for one in made} == {made[0].position.epoch} != {epoch}
        assert not any(one.repeated or one.mixed for one in made)
        assert {one.receivers for one in made} == {0}
        assert await texts_of(log, made[0].position.epoch) == [said(text).payload for text in "cdef"]
        with pytest.raises(PositionLostError):
            await log.read("t", 2, epoch=epoch)
        tape = await log.describe("t")
        assert tape is not None
        assert (tape.owner, tape.offset, tape.mixed) == ("u", 4, False)


@pytest.mark.needs("redis")
async def test_keys_of_a_batch_whose_server_came_back_empty_are_new_there(own_redis: RedisServer) -> None:
    async with losing(own_redis.url()) as (commands, recorder, log):

        async def restart() -> None:
            own_redis.kill()
            own_redis.start()
            # Somebody else was there first.
            await RedisLog(commands, timeout_s=30).append("t", said("x"), idempotency_key="k")

        commands.happens = restart
        made = await asyncio.gather(
            recorder.record("t", "c/x", said("a"), idempotency_key="k"), recorder.record("t", "c/x", said("b"))
        )
        assert [(one.position.offset, one.repeated) for one in made] == [(1, True), (2, False)]
        tape = await log.describe("t")
        assert tape is not None
        assert {one.position.epoch for one in made} == {tape.epoch}
        assert await texts_of(log, tape.epoch) == [said("x").payload, said("b").payload]


@pytest.mark.slow
@pytest.mark.needs("redis")
@pytest.mark.parametrize("own_redis", [{"appendonly": "yes", "appendfsync": "always"}], indirect=True)
async def test_a_batch_whose_server_came_back_with_it_is_written_once(own_redis: RedisServer) -> None:
    async with losing(own_redis.url()) as (commands, recorder, log):
        old = await recorded(recorder, "a")

        async def restart() -> None:
            own_redis.kill()
            own_redis.start()

        commands.happens = restart
        made = await recorded(recorder, "b", "c")
        more = await recorded(recorder, "d")
        assert offsets(made + more) == [2, 3, 4]
        assert {one.position.epoch for one in old + made + more} == {old[0].position.epoch}
        assert await texts_of(log, old[0].position.epoch) == [said(text).payload for text in "abcd"]


@pytest.mark.slow
@pytest.mark.needs("redis")
@pytest.mark.serial
async def test_a_batch_that_the_new_master_never_got_is_new_there(tmp_path: Path) -> None:
    with guarded_pair(tmp_path) as (first, second, port):
        url = f"redis+sentinel://127.0.0.1:{port}/svc/0?sentinel_password=guard&socket_timeout=1"
        async with losing(url) as (commands, recorder, log):
            old = await recorded(recorder, "a", "b")
            assert await commands.send(("WAIT", 1, 5000)) == 1

            async def fail_over() -> None:
                first.kill()
                second.resume()

            second.pause()
            first.cli("CLIENT", "KILL", "TYPE", "replica")  # from here on the other one gets nothing
            commands.happens = fail_over
            made = await recorded(recorder, "c", "d", "e")
            more = await recorded(recorder, "f")
            assert offsets(made + more) == [3, 4, 5, 6], "the numbers go on"
            epoch = made[0].position.epoch
            assert epoch != old[0].position.epoch, "somebody may have seen another number 3"
            assert {one.position.epoch for one in made + more} == {epoch}
            assert not any(one.repeated for one in made)
            assert await texts_of(log, epoch) == [said(text).payload for text in "abcdef"]


@pytest.mark.slow
@pytest.mark.needs("redis")
@pytest.mark.serial
async def test_a_batch_that_the_new_master_got_is_written_once(tmp_path: Path) -> None:
    with guarded_pair(tmp_path) as (first, _, port):
        url = f"redis+sentinel://127.0.0.1:{port}/svc/0?sentinel_password=guard&socket_timeout=1"
        async with losing(url) as (commands, recorder, log):
            old = await recorded(recorder, "a", "b")

            async def fail_over() -> None:
                assert await commands.send(("WAIT", 1, 5000)) == 1
                first.kill()

            commands.happens = fail_over
            made = await recorded(recorder, "c", "d", "e")
            more = await recorded(recorder, "f")
            assert offsets(made + more) == [3, 4, 5, 6]
            assert {one.position.epoch for one in made} == {old[0].position.epoch}
            assert more[0].position.epoch != old[0].position.epoch, "what came after it may be lost"
            assert await texts_of(log, more[0].position.epoch) == [said(text).payload for text in "abcdef"]


@pytest.mark.parametrize("tape", ["t", "job_events:j1"])
async def test_two_recorders_of_one_tape_keep_the_order_of_their_calls(redis_url: str, tape: str) -> None:
    backends = [open_backend(redis_url) for _ in range(2)]
    log = backends[0].log
    assert log is not None
    async with await backends[0].bus.subscribe("c/x") as subscription:

        async def write(name: str, recorder: Recorder | None) -> list[Recorded]:
            assert recorder is not None
            calls: list[asyncio.Future[Recorded]] = []
            for number in range(500):
                calls.append(asyncio.ensure_future(recorder.record(tape, "c/x", said(f"{name}{number}"))))
                if number % 7 == 0:
                    await asyncio.sleep(0)
            return await asyncio.gather(*calls)

        made = await asyncio.gather(*(write(name, b.recorder) for name, b in zip("ab", backends, strict=True)))
        for one in made:
            assert offsets(one) == sorted(offsets(one)), "as they were called"
        assert sorted(offsets(made[0] + made[1])) == list(range(1, 1001))
        assert {one.position.epoch for one in made[0] + made[1]} == {made[0][0].position.epoch}
        assert not any(one.repeated or one.mixed for one in made[0] + made[1])
        assert {one.receivers for one in made[0] + made[1]} == {1}
        expected: dict[int, bytes] = {}
        for name, one in zip("ab", made, strict=True):
            expected |= {r.position.offset: said(f"{name}{n}").payload for n, r in enumerate(one)}
        entries = await log.read(tape)
        assert [(entry.offset, entry.payload) for entry in entries] == sorted(expected.items())
        messages = aiter(subscription)
        pushed = [(await anext(messages)).data for _ in range(1000)]
        assert [data.count(b'"offset":%d,' % (n + 1)) for n, data in enumerate(pushed)] == [1] * 1000
    for backend in backends:
        await backend.close()
