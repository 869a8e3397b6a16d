from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from unit.api.fakes import World, bearer


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx2.AsyncClient]:
    """Signed in as alice."""
    async with connect(world, headers=bearer()) as http:
        yield http


@pytest.fixture
async def stranger(world: World) -> AsyncIterator[httpx2.AsyncClient]:
    """Not signed in."""
    async with connect(world) as http:
        yield http


@pytest.fixture
def connected() -> Callable[..., httpx2.AsyncClient]:
    """Makes a client for a world of the test's own."""
    return connect


def connect(world: World, *, peer: str = "127.0.0.1", **kwargs: Any) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(world.app, client=(peer, 50000))
    return httpx2.AsyncClient(transport=transport, base_url=kwargs.pop("base_url", "http://localhost:8420"), **kwargs)
