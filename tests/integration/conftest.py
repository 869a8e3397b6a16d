"""A served application with the job router, on every log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conftest import RedisServers
from integration.job_site import Site, served


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
