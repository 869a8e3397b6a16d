"""Both ephemeral stores keep the contract, and the suite notices every store that does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from livetape.adapters.memory.ephemeral import MemoryEphemeral
from livetape.adapters.redis.dial import Dialer
from livetape.adapters.redis.endpoint import Endpoint
from livetape.adapters.redis.ephemeral import RedisEphemeral
from livetape.adapters.redis.locate import locator_of
from livetape.adapters.redis.pipeline import PipelinedCommands
from livetape.errors import ClosedError
from livetape.store.ephemeral import Ephemeral
from livetape.testing.broken_ephemeral import BROKEN_EPHEMERALS, SoftEphemeral
from livetape.testing.conformance.ephemeral import EphemeralSuite
from livetape.testing.conformance.runner import cases, run_suite
from livetape.testing.fakes import ManualClock


class TestMemoryEphemeral(EphemeralSuite):
    async def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @pytest.fixture
    def ephemeral(self) -> Ephemeral:
        self.clock = ManualClock()
        return MemoryEphemeral(clock=self.clock)


class TestRedisEphemeral(EphemeralSuite):
    @pytest.fixture
    async def ephemeral(self, redis_url: str) -> AsyncIterator[Ephemeral]:
        commands = commands_of(redis_url)
        yield RedisEphemeral(commands)
        await commands.close()


def commands_of(url: str) -> PipelinedCommands:
    endpoint = Endpoint.from_url(url)
    return PipelinedCommands(Dialer(endpoint, locator_of(endpoint)))


@asynccontextmanager
async def made(make: Callable[[], Ephemeral]) -> AsyncIterator[Ephemeral]:
    yield make()


@pytest.mark.parametrize(
    ("make", "case"), BROKEN_EPHEMERALS.items(), ids=lambda value: getattr(value, "__name__", "in")
)
async def test_a_broken_store_fails(make: Callable[[], Ephemeral], case: str) -> None:
    failures = await run_suite(EphemeralSuite, lambda: made(make), only=[case])
    assert [failure.case for failure in failures] == [case]


async def test_the_broken_stores_are_broken_in_nothing_else() -> None:
    assert await run_suite(EphemeralSuite, lambda: made(SoftEphemeral)) == []


def test_every_case_is_failed_by_some_broken_store() -> None:
    assert set(cases(EphemeralSuite)) == set(BROKEN_EPHEMERALS.values())


async def test_the_memory_store_is_bounded_and_drops_what_ends_first() -> None:
    store = MemoryEphemeral(clock=ManualClock(), max_entries=3)
    for number, ttl_s in enumerate((40, 10, 30, 20)):
        await store.put(f"k{number}", b"", ttl_s=ttl_s)
    assert [await store.get(f"k{number}") for number in range(4)] == [b"", None, b"", b""]
    for ttl_s in range(1, 50):  # setting one key again and again fills nothing
        await store.put("k0", b"again", ttl_s=ttl_s)
    assert await store.get("k0") == b"again"
    await store.close()
    with pytest.raises(ClosedError):
        await store.get("k0")
