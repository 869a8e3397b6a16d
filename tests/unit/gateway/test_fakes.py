"""The stand-ins of the tests keep the contracts of what they stand for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from livetape.events.log import EventLog
from livetape.testing.conformance.log import EventLogSuite
from livetape.testing.fakes import FakeLog, ManualClock


class TestFakeLog(EventLogSuite):
    @pytest.fixture
    async def log(self) -> AsyncIterator[EventLog]:
        log = FakeLog()
        yield log
        await log.close()


async def test_a_manual_clock_stands_still_until_it_is_told() -> None:
    clock = ManualClock(datetime(2030, 1, 1, tzinfo=UTC))
    woken: list[str] = []

    async def sleep(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(name)

    tasks = [asyncio.create_task(sleep("late", 2)), asyncio.create_task(sleep("early", 1))]
    await clock.sleeper()
    await asyncio.sleep(0)
    before = clock.monotonic()
    clock.advance(1)
    await tasks[1]
    assert woken == ["early"]
    clock.advance(5)
    await tasks[0]
    assert woken == ["early", "late"]
    assert clock.now() == datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=6)
    assert clock.monotonic() - before == 6
