"""The Redis bus keeps the Bus contract: on Redis and Valkey, in a cluster, and through callers' clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis.asyncio

from livetape.adapters.redis.borrow import endpoint_of
from livetape.adapters.redis.bus import RedisBus
from livetape.adapters.redis.client import ClientCommands, ClusterCommands
from livetape.adapters.redis.commands import Commands
from livetape.adapters.redis.dial import Dialer
from livetape.adapters.redis.endpoint import Endpoint
from livetape.adapters.redis.locate import locator_of
from livetape.events.bus import Bus
from livetape.events.open import open_backend, open_client
from livetape.testing.conformance.bus import BusSuite
from servers import RedisServer


@asynccontextmanager
async def small(endpoint: Endpoint, commands: Commands) -> AsyncIterator[Bus]:
    """With a small buffer, where publishing takes long."""
    bus = RedisBus(commands, Dialer(endpoint, locator_of(endpoint)), max_messages=200)
    if endpoint.kind == "cluster":
        # A message takes its time from node to node: all of a case shall go through the one that listens.
        await (await bus.subscribe("suite/first")).close()
    yield bus
    await bus.close()
    await commands.close()


class TestByUrl(BusSuite):
    flood = 12_000

    @pytest.fixture
    async def bus(self, redis_url: str) -> AsyncIterator[Bus]:
        backend = open_backend(redis_url)
        yield backend.bus
        await backend.close()


@pytest.mark.needs("redis")
class TestInACluster(BusSuite):
    flood = 600

    @pytest.fixture
    async def bus(self, redis_cluster: list[RedisServer]) -> AsyncIterator[Bus]:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in redis_cluster)
        endpoint = Endpoint.from_url(f"redis+cluster://{hosts}")
        async with small(endpoint, ClusterCommands.at(endpoint)) as bus:
            yield bus


class TestThroughAnAsynchronousClient(BusSuite):
    flood = 600

    @pytest.fixture
    async def bus(self, redis_url: str) -> AsyncIterator[Bus]:
        # Decoded replies are the caller's affair, not ours.
        async with (
            redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as client,
            small(endpoint_of(client), ClientCommands(client)) as bus,
        ):
            yield bus


class TestWithTheSettingsOfASynchronousClient(BusSuite):
    flood = 12_000

    @pytest.fixture
    async def bus(self, redis_url: str) -> AsyncIterator[Bus]:
        with redis.Redis.from_url(redis_url) as client:
            backend = open_client(client)
            yield backend.bus
            await backend.close()


@pytest.mark.needs("redis")
class TestThroughAClusterClient(BusSuite):
    flood = 600

    @pytest.fixture
    async def bus(self, redis_cluster: list[RedisServer]) -> AsyncIterator[Bus]:
        async with (
            redis.asyncio.RedisCluster(host="127.0.0.1", port=redis_cluster[0].port) as client,
            small(endpoint_of(client), ClusterCommands(client, owned=False)) as bus,
        ):
            yield bus
