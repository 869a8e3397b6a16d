"""The lane of lease renewals: what it is given is done in time or given up, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator
from typing import cast

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from livetape.adapters.sql.postgres.lane import Lane
from livetape.errors import ClosedError, CommitUnknownError, StoreError


class Engine:
    async def dispose(self) -> None:
        pass


@pytest.fixture
def lane() -> Iterator[Lane]:
    made = Lane(lambda: cast("AsyncEngine", Engine()))
    yield made
    made.close()


def test_what_it_gives_and_raises_goes_to_the_caller(lane: Lane) -> None:
    async def gives(_: AsyncEngine) -> int:
        return 7

    async def fails(_: AsyncEngine) -> int:
        raise StoreError("no")

    async def is_late_itself(_: AsyncEngine) -> int:
        raise TimeoutError("its own")

    assert lane.run(gives, 5) == 7
    with pytest.raises(StoreError, match="no"):
        lane.run(fails, 5)
    with pytest.raises(TimeoutError, match="its own"):
        lane.run(is_late_itself, 5)


def test_what_is_given_up_leaves_no_error_behind(lane: Lane, caplog: pytest.LogCaptureFixture) -> None:
    async def hangs_at_its_commit(_: AsyncEngine) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            raise CommitUnknownError("the server did not answer to the commit") from error

    async def nothing(_: AsyncEngine) -> None:
        await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR, "asyncio"):
        with pytest.raises(CommitUnknownError, match=r"within 0\.05 s"):
            lane.run(hangs_at_its_commit, 0.05)
        for _ in range(3):
            lane.run(nothing, 5)
            gc.collect()
    assert caplog.records == []


def test_after_close_it_says_so(lane: Lane) -> None:
    lane.close()

    async def nothing(_: AsyncEngine) -> None:
        pass

    work = nothing
    with pytest.raises(ClosedError):
        lane.run(work, 1)
