"""A served application with the job router, on every log; and the log on Redis over the plainest commands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conftest import RedisServers
from integration.job_site import Site, served
from livetape.adapters.redis.log import RedisLog
from livetape.adapters.redis.recorder import RedisRecorder
from redis_commands import PlainCommands, plain


@pytest.fixture(
    params=["sqlite", pytest.param("redis", marks=pytest.mark.needs("redis")), "valkey"],
)
def url(request: pytest.FixtureRequest, tmp_path: Path, redis_servers: RedisServers) -> str:
    """An empty log."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tapes.db"
    return redis_servers.get(request.param).url(redis_servers.new_db())


@pytest.fixture
async def site(url: str) -> AsyncIterator[Site]:
    async with served(url) as made:
        yield made


@pytest.fixture
async def commands(redis_servers: RedisServers) -> AsyncIterator[PlainCommands]:
    """An empty database; for tests marked `needs("redis")`."""
    async with plain(redis_servers.get("redis").port, redis_servers.new_db()) as commands:
        yield commands


@pytest.fixture
def log(commands: PlainCommands) -> RedisLog:
    return RedisLog(commands)


@pytest.fixture
def recorder(commands: PlainCommands) -> RedisRecorder:
    return RedisRecorder(commands)
