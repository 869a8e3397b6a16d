"""The log, the recorder and the groups on Redis keep their contracts: on Redis and Valkey, on disk, in a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from livetape.adapters.redis.groups import RedisGroups
from livetape.adapters.redis.log import RedisLog
from livetape.events.log import EventLog
from livetape.events.open import Backend, open_backend
from livetape.testing.conformance.groups import (
    ConsumerGroupsSuite,
    DurableConsumerGroupsSuite,
    ReopenGroups,
    Sharing,
)
from livetape.testing.conformance.log import DurableEventLogSuite, EventLogSuite, Reopen
from livetape.testing.conformance.recorder import RecorderSuite, Recording
from redis_commands import PlainClusterCommands, plain
from servers import RedisServer, running

DURABLE = {"appendonly": "yes", "appendfsync": "always"}


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Backend]:
    backend = open_backend(url)
    try:
        yield backend
    finally:
        await backend.close()


@pytest.fixture
def durable_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """It writes each command to the disk before it answers."""
    with running(RedisServer("redis", tmp_path / "redis", **DURABLE)) as server:
        yield server


class TestRedisLog(EventLogSuite):
    @pytest.fixture
    async def log(self, redis_url: str) -> AsyncIterator[EventLog]:
        async with opened(redis_url) as backend:
            assert backend.log is not None
            yield backend.log


@pytest.mark.slow
@pytest.mark.needs("redis")
class TestDurableRedisLog(DurableEventLogSuite):
    @pytest.fixture
    async def log(self, durable_redis: RedisServer) -> AsyncIterator[EventLog]:
        async with plain(durable_redis.port) as commands:
            log = RedisLog(commands)
            yield log
            await log.close()

    @pytest.fixture
    async def reopen_log(self, durable_redis: RedisServer) -> AsyncIterator[Reopen]:
        async with AsyncExitStack() as stack:

            async def reopen() -> EventLog:
                durable_redis.kill()
                durable_redis.start()
                return RedisLog(await stack.enter_async_context(plain(durable_redis.port)))

            yield reopen


@pytest.fixture
async def on_cluster(redis_cluster: list[RedisServer]) -> AsyncIterator[Backend]:
    nodes = ",".join(f"127.0.0.1:{node.port}" for node in redis_cluster)
    async with opened(f"redis+cluster://{nodes}") as backend:
        yield backend
    commands = PlainClusterCommands(redis_cluster)
    for node in commands.nodes:  # other tests use it too, and it has one database only
        for key in await node.send(("KEYS", "*suite*")):
            await node.send(("DEL", key))
    await commands.close()


@pytest.mark.needs("redis")
class TestRedisClusterLog(EventLogSuite):
    @pytest.fixture
    async def log(self, on_cluster: Backend) -> EventLog:
        assert on_cluster.log is not None
        return on_cluster.log


class TestRedisRecorder(RecorderSuite):
    @pytest.fixture
    async def recording(self, redis_url: str) -> AsyncIterator[Recording]:
        async with opened(redis_url) as backend:
            yield Recording.of(backend)


@pytest.mark.needs("redis")
class TestRedisClusterRecorder(RecorderSuite):
    @pytest.fixture
    async def recording(self, on_cluster: Backend) -> Recording:
        return Recording.of(on_cluster)


@asynccontextmanager
async def sharing_on(server: RedisServer) -> AsyncIterator[Sharing]:
    async with plain(server.port) as commands:
        groups, log = RedisGroups(commands), RedisLog(commands)
        yield Sharing(groups, log)
        await groups.close()
        await log.close()


class TestRedisGroups(ConsumerGroupsSuite):
    @pytest.fixture
    async def sharing(self, redis_url: str) -> AsyncIterator[Sharing]:
        async with opened(redis_url) as backend:
            yield Sharing.of(backend)


@pytest.mark.needs("redis")
class TestRedisClusterGroups(ConsumerGroupsSuite):
    @pytest.fixture
    async def sharing(self, on_cluster: Backend) -> Sharing:
        return Sharing.of(on_cluster)


@pytest.mark.slow
@pytest.mark.needs("redis")
class TestDurableRedisGroups(DurableConsumerGroupsSuite):
    @pytest.fixture
    async def sharing(self, durable_redis: RedisServer) -> AsyncIterator[Sharing]:
        async with sharing_on(durable_redis) as sharing:
            yield sharing

    @pytest.fixture
    async def reopen_groups(self, durable_redis: RedisServer) -> AsyncIterator[ReopenGroups]:
        async with AsyncExitStack() as stack:

            async def reopen() -> Sharing:
                durable_redis.kill()
                durable_redis.start()
                return await stack.enter_async_context(sharing_on(durable_redis))

            yield reopen
