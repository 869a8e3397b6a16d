"""A tape that is lost and born again between two questions to the log: its events are never taken for the old ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic_core import from_json

from livetape.errors import NotFoundError
from livetape.events.channel import job_channel, job_tape
from livetape.events.log import Entry, NewEvent
from livetape.gateway.page import read_page
from livetape.testing.fakes import FakeLog
from unit.gateway.rig import Client, rigged

TAPE = job_tape("J")


class RebornLog(FakeLog):
    """Is lost just before the read that comes `after` so many others, and is filled again."""

    after: int | None = None
    owner = "U"

    async def read(self, tape: str, after: int = 0, *, limit: int = 1000, epoch: str | None = None) -> Sequence[Entry]:
        if self.after is not None:
            self.after -= 1
            if self.after < 0:
                self.after = None
                self.lose(tape)
                await self.fill(10, "new", self.owner)
        return await super().read(tape, after, limit=limit, epoch=epoch)

    async def fill(self, count: int, word: str, owner: str = "U") -> None:
        await self.create(TAPE, owner=owner, channel=job_channel("J"))
        for _ in range(count):
            await self.append(TAPE, NewEvent("task_progress", b'"%b"' % word.encode()))

    async def epoch(self) -> str:
        tape = await self.describe(TAPE)
        assert tape is not None
        return tape.epoch


async def subscribe(client: Client, **data: Any) -> dict[str, Any]:
    return await client.ask({"method": "subscribe_job", "data": {"job_id": "J", **data}})


async def test_during_a_replay() -> None:
    log = RebornLog()
    await log.fill(8, "old")
    old = await log.epoch()
    async with rigged(log=log, replay_chunk_events=4) as rig:
        client = rig.connect()
        log.after = 1
        assert (await subscribe(client, since="earliest"))["data"]["epoch"] == old
        heard = []
        while (body := await client.get())["method"] != "replay_complete":
            heard.append(body)
        new = await log.epoch()
        assert body["epoch"] == new != old
        first, gap, then = heard[:4], heard[4], heard[5:]
        assert [(body["data"], body["epoch"], body["offset"]) for body in first] == [
            ("old", old, number) for number in range(1, 5)
        ]
        assert (gap["method"], gap["data"]) == ("gap", {"from": 5, "to": None, "epoch": new})
        assert [(body["data"], body["epoch"], body["offset"]) for body in then] == [
            ("new", new, number) for number in range(1, 11)
        ]


async def test_while_what_was_missed_is_read() -> None:
    log = RebornLog()
    await log.fill(2, "old")
    old = await log.epoch()
    async with rigged(log=log) as rig:
        client = rig.connect()
        await subscribe(client)
        for _ in range(2):
            await log.append(TAPE, NewEvent("task_progress", b'"old"'))
        log.after = 0
        await rig.publisher.job("task_progress")  # number 5: it does not join on, the log is asked
        gap, *heard = await client.take(11)
        new = await log.epoch()
        assert (gap["method"], gap["data"]) == ("gap", {"from": 3, "to": None, "epoch": new})
        assert [(body["data"], body["epoch"], body["offset"]) for body in heard] == [
            ("new", new, number) for number in range(1, 11)
        ]
        assert new != old


async def test_a_page_shows_the_epoch_of_its_events() -> None:
    log = RebornLog()
    await log.fill(2, "old")
    tape = await log.describe(TAPE)
    assert tape is not None
    log.after = 0
    page = from_json(await read_page(log, tape, after=0, limit=100))
    assert (page["epoch"], page["offset"]) == (await log.epoch(), 10)
    assert {event["data"] for event in page["events"]} == {"new"}


@pytest.mark.parametrize("owner", ["V", None])
async def test_a_page_is_not_of_somebody_elses_tape(owner: Any) -> None:
    log = RebornLog()
    await log.fill(2, "old")
    tape = await log.describe(TAPE)
    assert tape is not None
    log.after, log.owner = 0, owner
    with pytest.raises(NotFoundError):
        await read_page(log, tape, after=0, limit=100)


async def test_the_beginning_by_time_of_a_tape_that_is_born_again_just_then() -> None:
    log = RebornLog()
    await log.fill(4, "old")
    async with rigged(log=log) as rig:
        client = rig.connect()
        log.after = 0
        answer = await subscribe(client, since={"seconds": 60})
        assert answer["data"]["recovered"] is False
        assert (await client.get())["method"] == "replay_complete"
