"""Work beside the rest of a process: when it ends by itself, that is said, and the process ends with it."""

from __future__ import annotations

import asyncio

import pytest

from livetape.runtime.service import service


async def test_work_that_ends_by_itself_is_told_and_fails_the_process(caplog: pytest.LogCaptureFixture) -> None:
    ready, failed = asyncio.Event(), asyncio.get_running_loop().create_future()
    error, begun = KeyError("nobody foresaw this"), asyncio.Event()

    async def work() -> None:
        ready.set()
        await begun.wait()
        raise error

    async with service(work(), ready, "relay", failed):
        begun.set()
        with pytest.raises(KeyError):
            await failed
    assert [(record.__dict__["action"], record.exc_info and record.exc_info[1]) for record in caplog.records] == [
        ("service_ended", error)
    ]


async def test_work_that_cannot_begin_is_told_to_who_opens_it_alone(caplog: pytest.LogCaptureFixture) -> None:
    failed = asyncio.get_running_loop().create_future()

    async def work() -> None:
        raise KeyError("begin")

    with pytest.raises(KeyError):
        async with service(work(), asyncio.Event(), "relay", failed):
            raise AssertionError("it never was ready")
    assert caplog.records == []


async def test_work_that_is_stopped_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    ready, failed = asyncio.Event(), asyncio.get_running_loop().create_future()
    ready.set()
    async with service(asyncio.sleep(60), ready, "relay", failed):
        pass
    assert (failed.done(), caplog.records) == (False, [])
