"""Many sockets that come back together with positions cost the log one look and one read a tape."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest

from livetape.events.log import Entry, Tape
from livetape.testing.fakes import FakeLog, ManualClock
from unit.gateway.rig import Rig, offsets, rigged


class CountingLog(FakeLog):
    """Knows how often it was asked."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.asked: Counter[str] = Counter()

    async def describe(self, tape: str) -> Tape | None:
        self.asked["describe"] += 1
        return await super().describe(tape)

    async def read(self, tape: str, after: int = 0, *, limit: int = 1000, epoch: str | None = None) -> Sequence[Entry]:
        self.asked["read"] += 1
        return await super().read(tape, after, limit=limit, epoch=epoch)


@pytest.fixture
def log() -> CountingLog:
    return CountingLog(ManualClock())


@pytest.fixture
async def rig(log: CountingLog) -> AsyncIterator[Rig]:
    async with rigged(log=log) as rig:
        await rig.publisher.create("E")
        await rig.publisher.nodes(50)
        yield rig


async def since(rig: Rig, offset: int) -> dict[str, object]:
    tape = await FakeLog.describe(rig.log, "execution_events:E")
    assert tape is not None
    return {"epoch": tape.epoch, "offset": offset}


async def test_each_gets_all_and_the_log_is_asked_once(rig: Rig, log: CountingLog) -> None:
    first = rig.connect()
    await first.subscribe(since=await since(rig, 1))
    assert offsets(await first.take(49)) == list(range(2, 51))
    second = rig.connect()
    await second.subscribe(since=await since(rig, 1))
    log.asked.clear()
    for _ in range(8):
        client = rig.connect()
        reply = await client.subscribe(since=await since(rig, 1))
        assert reply["data"]["recovered"] is True
        assert reply["data"]["count"] == 49
        assert offsets(await client.take(49)) == list(range(2, 51))
        assert (await client.get())["method"] == "replay_complete"
    assert log.asked == {}
    await rig.publisher.node()
    assert (await client.get())["offset"] == 51


@pytest.mark.parametrize("offset", [50, 51, 60])
async def test_a_position_that_nobody_here_has_reached_is_looked_up(rig: Rig, log: CountingLog, offset: int) -> None:
    for _ in range(2):
        await rig.connect().subscribe(since=await since(rig, 1))
    await rig.publisher.node(live=False)
    log.asked.clear()
    reply = await rig.connect().subscribe(since=await since(rig, offset))
    assert reply["data"]["recovered"] is (offset <= 51)
    assert log.asked["describe"] == (offset > 50)


async def test_after_a_second_it_is_looked_up_again(rig: Rig, log: CountingLog) -> None:
    for _ in range(2):
        await rig.connect().subscribe(since=await since(rig, 1))
    rig.clock.advance(1.0)
    log.asked.clear()
    await rig.connect().subscribe(since=await since(rig, 1))
    assert log.asked["describe"] == 1


async def test_a_tape_that_is_somebody_elses_is_not_shown(rig: Rig, log: CountingLog) -> None:
    for _ in range(2):
        await rig.connect().subscribe(since=await since(rig, 1))
    other = rig.connect(user="V")
    reply = await other.subscribe(since=await since(rig, 1))
    assert reply["data"]["recovered"] is False
    assert (await other.get())["method"] == "replay_complete"
    await other.expect_silence()
