"""The SQLite groups keep the ConsumerGroups contract, and the suite notices all groups that do not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.adapters.sqlite.open import from_url
from livetape.observability import NoMetrics
from livetape.testing.broken_groups import BROKEN_GROUPS, SoftGroups
from livetape.testing.conformance.groups import (
    ConsumerGroupsSuite,
    DurableConsumerGroupsSuite,
    ReopenGroups,
    Sharing,
)
from livetape.testing.conformance.runner import cases, run_suite
from livetape.testing.fakes import ManualClock


@asynccontextmanager
async def opened(path: Path, clock: ManualClock) -> AsyncIterator[Sharing]:
    backend = from_url(f"sqlite:///{path}", bus=MemoryBus(), metrics=NoMetrics(), clock=clock)

    async def elapse(seconds: float) -> None:
        clock.advance(seconds)

    try:
        yield Sharing.of(backend, elapse)
    finally:
        await backend.close()


class TestSqliteGroups(DurableConsumerGroupsSuite):
    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    async def sharing(self, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Sharing]:
        async with opened(tmp_path / "tapes.db", clock) as sharing:
            yield sharing

    @pytest.fixture
    async def reopen_groups(self, tmp_path: Path, clock: ManualClock) -> AsyncIterator[ReopenGroups]:
        # A second process on the file while the first never got to close it.
        async with opened(tmp_path / "tapes.db", clock) as again:

            async def reopen() -> Sharing:
                return again

            yield reopen


@asynccontextmanager
async def made(make: Callable[[], SoftGroups]) -> AsyncIterator[Sharing]:
    groups = make()

    async def elapse(seconds: float) -> None:
        groups.clock.advance(seconds)

    yield Sharing(groups, groups.log, elapse)


@pytest.mark.parametrize(("make", "case"), BROKEN_GROUPS.items(), ids=lambda value: getattr(value, "__name__", "in"))
async def test_broken_groups_fail(make: Callable[[], SoftGroups], case: str) -> None:
    failures = await run_suite(ConsumerGroupsSuite, lambda: made(make), only=[case], timeout_s=2, patience_s=0.5)
    assert [failure.case for failure in failures] == [case]


async def test_the_broken_groups_are_broken_in_nothing_else() -> None:
    assert await run_suite(ConsumerGroupsSuite, lambda: made(SoftGroups)) == []


def test_every_case_is_failed_by_some_broken_groups() -> None:
    assert set(cases(ConsumerGroupsSuite)) == set(BROKEN_GROUPS.values())
