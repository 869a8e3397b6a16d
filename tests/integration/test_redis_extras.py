"""Encryption, streams of tokens and alerts on real servers: the whole way from a publisher to a reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import pytest

from livetape.errors import DecryptionError
from livetape.events.alert_watcher import AlertWatcher, to_owner
from livetape.events.alerts import Alert, Failed
from livetape.events.buses import AsyncRedisNotificationEventBus
from livetape.events.encrypted import encrypted
from livetape.events.keyring import KEY_BYTES, KeyRing
from livetape.events.log import EventLog
from livetape.events.notifications import NotificationEvent
from livetape.events.open import Backend, open_backend
from livetape.events.reader import JobReader
from livetape.events.recovery import Gap
from livetape.events.streams import RedisStreamPublisher
from livetape.events.token_text import follow_text, read_text
from livetape.events.tokens import TokenStream, onto_job
from livetape.testing.conformance.groups import ConsumerGroupsSuite, Sharing
from livetape.testing.conformance.log import EventLogSuite
from livetape.testing.conformance.recorder import RecorderSuite, Recording
from servers import RedisServer

RING = KeyRing({"k": b"k" * KEY_BYTES}, current="k")

Opener = Callable[[], Backend]


@pytest.fixture
async def opener(redis_url: str) -> AsyncIterator[Opener]:
    """Backends on one empty database, closed in the end."""
    backends: list[Backend] = []

    def make() -> Backend:
        backends.append(open_backend(redis_url))
        return backends[-1]

    yield make
    for backend in backends:
        await backend.close()


@pytest.fixture
def job_id() -> str:
    """Channels are common to all databases of a server."""
    return f"job-{uuid4()}"


class TestEncryptedRedisLog(EventLogSuite):
    @pytest.fixture
    async def log(self, opener: Opener) -> EventLog:
        log = encrypted(opener(), RING).log
        assert log is not None
        return log


class TestEncryptedRedisRecorder(RecorderSuite):
    @pytest.fixture
    async def recording(self, opener: Opener) -> Recording:
        return Recording.of(encrypted(opener(), RING))


class TestEncryptedRedisGroups(ConsumerGroupsSuite):
    @pytest.fixture
    async def sharing(self, opener: Opener) -> Sharing:
        return Sharing.of(encrypted(opener(), RING))


async def test_an_encrypted_job_is_read_and_followed_with_the_key_only(opener: Opener, job_id: str) -> None:
    sealed = encrypted(opener(), RING)
    publisher, reader = RedisStreamPublisher(backend=sealed, user_id="u"), JobReader.of(sealed)
    await publisher.publish_task_started(job_id, "write", secret="whisper")
    said: list[object] = []

    async def follow() -> None:
        async for item in reader.follow(job_id, until_final=True):
            assert not isinstance(item, Gap)
            said.append(item.data["secret"])

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.1)
    await publisher.publish_task_completed(job_id, "write", {}, secret="whispered")
    await asyncio.wait_for(following, 10)
    assert said == ["whisper", "whispered"]
    below = opener()
    assert below.log is not None
    entries = await below.log.read(f"job_events:{job_id}")
    assert [entry.event_type for entry in entries] == ["task_started", "task_completed"]
    assert not any(b"whisper" in entry.payload for entry in entries)
    other = encrypted(opener(), KeyRing({"k": b"o" * KEY_BYTES}, current="k"))
    with pytest.raises(DecryptionError):
        await JobReader.of(other).read(job_id)


async def test_nothing_readable_is_in_the_server(opener: Opener, redis_url: str, job_id: str) -> None:
    import redis.asyncio

    publisher = RedisStreamPublisher(backend=encrypted(opener(), RING), user_id="u")
    await publisher.publish_task_started(job_id, "write", secret="whisper")
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        stored = b"".join([await client.dump(key) or b"" for key in await client.keys("*")])
        (((_, fields),),) = [entries for _, entries in await client.xread({f"job_events:{job_id}": "0"})]
    assert stored
    assert b"whisper" not in stored
    assert fields[b"event_type"] == b"task_started"
    assert b'"encrypted"' in fields[b"data"]


@pytest.mark.parametrize("with_key", [False, True])
async def test_a_stream_of_tokens_is_followed_from_another_link(opener: Opener, job_id: str, with_key: bool) -> None:
    writing, reading = opener(), opener()
    if with_key:
        writing, reading = encrypted(writing, RING), encrypted(reading, RING)
    publisher, reader = RedisStreamPublisher(backend=writing, user_id="u"), JobReader.of(reading)
    wanted = [f"wörd-{n} " for n in range(400)]

    async def follow() -> str:
        text = ""
        async for part in follow_text(reader, job_id, "s"):
            text = part.text if part.replaces else text + part.text
        return text

    followers = []
    async with TokenStream(onto_job(publisher, job_id), stream_id="s", segment_bytes=512) as stream:
        for n, word in enumerate(wanted):
            if n % 100 == 50:
                followers.append(asyncio.create_task(follow()))
            await stream.write(word)
            await asyncio.sleep(0.0005)
    assert await asyncio.wait_for(asyncio.gather(*followers), 20) == ["".join(wanted)] * 4
    text = await read_text(reader, job_id, "s")
    assert (text.text, text.complete, text.finish_reason) == ("".join(wanted), True, "stop")


async def test_a_failed_job_is_told_to_its_owner(opener: Opener, redis_url: str, job_id: str) -> None:
    user_id = f"user-{uuid4()}"
    backend = opener()
    publisher = RedisStreamPublisher(backend=opener(), user_id=user_id)
    async with AsyncRedisNotificationEventBus(url=redis_url) as notifications:
        heard: asyncio.Future[NotificationEvent] = asyncio.get_running_loop().create_future()

        async def listen() -> None:
            async for event in notifications.listen(user_id):
                if not heard.done() and isinstance(event, NotificationEvent):
                    heard.set_result(event)

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0.2)
        async with AlertWatcher(backend.bus, [Failed()], to_owner(notifications), log=backend.log):
            await publisher.publish_task_failed(job_id, "write", "no paper")
            event = await asyncio.wait_for(heard, 10)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    assert (event.user_id, event.payload.type, event.payload.event) == (user_id, "alert", "failed")


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.needs("redis")
async def test_what_happened_while_the_link_was_cut_is_alerted(own_redis: RedisServer, job_id: str) -> None:
    told: list[Alert] = []

    async def deliver(alert: Alert) -> None:
        told.append(alert)

    watching, writing = open_backend(own_redis.url()), open_backend(own_redis.url())
    publisher = RedisStreamPublisher(backend=writing, user_id="u")

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)

    async with AlertWatcher(watching.bus, [Failed(("bad",), cooldown_s=0)], deliver, log=watching.log):
        await publisher.publish_event(job_id, {"event_type": "bad"})
        await until(lambda: len(told) == 1)
        for _ in range(5):
            await _kill_subscribers(own_redis)
            await publisher.publish_event(job_id, {"event_type": "bad"})
        await until(lambda: len(told) == 6)
    await watching.close()
    await writing.close()
    assert {alert.owner for alert in told} == {"u"}


async def _kill_subscribers(server: RedisServer) -> None:
    import redis.asyncio

    async with redis.asyncio.Redis.from_url(server.url()) as client:
        await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
