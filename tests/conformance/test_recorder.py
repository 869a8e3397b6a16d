"""The embedded recorders keep the Recorder contract, and the suite notices every recorder that does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.events.open import open_backend
from livetape.events.recorder import LogRecorder
from livetape.testing.broken_recorder import BROKEN_RECORDERS, SoftRecorder
from livetape.testing.conformance.recorder import RecorderSuite, Recording
from livetape.testing.conformance.runner import cases, run_suite
from livetape.testing.fakes import FakeLog


class TestSqliteRecorder(RecorderSuite):
    @pytest.fixture
    async def recording(self, tmp_path: Path) -> AsyncIterator[Recording]:
        backend = open_backend(f"sqlite:///{tmp_path}/tapes.db")
        try:
            yield Recording.of(backend)
        finally:
            await backend.close()


class TestLogRecorderOnSqlite(RecorderSuite):
    @pytest.fixture
    async def recording(self, tmp_path: Path) -> AsyncIterator[Recording]:
        backend = open_backend(f"sqlite:///{tmp_path}/tapes.db")
        try:
            assert backend.log is not None
            yield Recording(LogRecorder(backend.log, backend.bus), backend.log, backend.bus)
        finally:
            await backend.close()


class TestLogRecorderInMemory(RecorderSuite):
    @pytest.fixture
    async def recording(self) -> AsyncIterator[Recording]:
        log, bus = FakeLog(), MemoryBus()
        yield Recording(LogRecorder(log, bus), log, bus)
        await bus.close()


@asynccontextmanager
async def made(make: Callable[[], SoftRecorder]) -> AsyncIterator[Recording]:
    recorder = make()
    try:
        yield Recording(recorder, recorder.log, recorder.bus)
    finally:
        await recorder.bus.close()


@pytest.mark.parametrize(("make", "case"), BROKEN_RECORDERS.items(), ids=lambda value: getattr(value, "__name__", "in"))
async def test_a_broken_recorder_fails(make: Callable[[], SoftRecorder], case: str) -> None:
    failures = await run_suite(RecorderSuite, lambda: made(make), only=[case], timeout_s=2, patience_s=0.2)
    assert [failure.case for failure in failures] == [case]


async def test_the_broken_recorders_are_broken_in_nothing_else() -> None:
    assert await run_suite(RecorderSuite, lambda: made(SoftRecorder)) == []


def test_every_case_is_failed_by_some_broken_recorder() -> None:
    assert set(cases(RecorderSuite)) == set(BROKEN_RECORDERS.values())
