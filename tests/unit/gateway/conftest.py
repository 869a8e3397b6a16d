"""A running gateway for each test, with the metadata of execution E of graph G of user U."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from unit.gateway.rig import Rig, rigged


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with rigged() as made:
        await made.publisher.create()
        yield made
