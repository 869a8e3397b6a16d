"""An old client's next socket goes on with what an earlier one watched, also when it is itself lost at a bad moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from livetape.adapters.memory.ephemeral import MemoryEphemeral
from livetape.auth import Principal
from livetape.errors import LogUnavailableError
from livetape.events.log import Entry, Position, Tape
from livetape.gateway.compat import CompatResume, Kept, Record
from livetape.gateway.old_clients import PATIENCE_S, SAVE_EVERY_S, OldClients
from livetape.gateway.subjects import Kind, Subject
from livetape.testing.fakes import FakeLog, ManualClock
from unit.gateway.rig import Client, Rig, offsets, rigged


async def at_once(seconds: float) -> None:
    """Time stands still."""
    await asyncio.sleep(0)


class AwayLog(FakeLog):
    """Of some tapes nothing can be had."""

    away: frozenset[str] = frozenset()

    async def describe(self, tape: str) -> Tape | None:
        self._check(tape)
        return await super().describe(tape)

    async def read(self, tape: str, after: int = 0, *, limit: int = 1000, epoch: str | None = None) -> Sequence[Entry]:
        self._check(tape)
        return await super().read(tape, after, limit=limit, epoch=epoch)

    def _check(self, tape: str) -> None:
        if any(name in tape for name in self.away):
            raise LogUnavailableError


@pytest.fixture
def log() -> AwayLog:
    return AwayLog(ManualClock())


@pytest.fixture
def store() -> MemoryEphemeral:
    return MemoryEphemeral(clock=ManualClock())


@pytest.fixture
async def rig(log: AwayLog, store: MemoryEphemeral) -> AsyncIterator[Rig]:
    compat = CompatResume(store, clock=ManualClock(), sleep=at_once)
    async with rigged(log=log, parts={"compat": compat}) as rig:
        for execution in ("E", "F"):
            await rig.publisher.create(execution)
            await rig.publisher.nodes(3, execution)
        yield rig


async def kept(store: MemoryEphemeral, rig: Rig) -> dict[str, int]:
    """What another process would give to this user's next socket, now that this one is dead."""
    clients = rig.gateway._old_clients
    assert clients is not None
    other = CompatResume(store, clock=ManualClock(), sleep=at_once)
    return {one.subject.id: one.position.offset for one in await other.take(other.slot("U"))}


async def leave_behind(store: MemoryEphemeral, rig: Rig, *executions: str) -> None:
    """A socket of another process watched these, and was lost after the first event of each."""
    rows = []
    for execution in executions:
        tape = await FakeLog.describe(rig.log, f"execution_events:{execution}")
        assert tape is not None
        rows.append(Kept(Subject(Kind.EXECUTION, execution), Position(tape.epoch, 1)))
    await CompatResume(store, clock=ManualClock()).slot("U").leave(rows)


async def come_back(rig: Rig) -> Client:
    """An old client's socket, when its patience is over."""
    client = rig.connect()
    await rig.sleeper()
    rig.clock.advance(PATIENCE_S)
    return client


async def test_it_goes_on_where_the_last_one_was(rig: Rig, store: MemoryEphemeral) -> None:
    await leave_behind(store, rig, "E", "F")
    client = await come_back(rig)
    assert sorted(offsets(await client.take(4))) == [2, 2, 3, 3]
    await rig.publisher.node()
    assert (await client.get())["offset"] == 4


async def test_what_cannot_be_gone_on_with_yet_is_kept_when_the_socket_is_lost(
    rig: Rig, store: MemoryEphemeral, log: AwayLog
) -> None:
    await leave_behind(store, rig, "E", "F")
    log.away = frozenset({"F"})
    client = await come_back(rig)
    assert offsets(await client.take(2)) == [2, 3]
    await client.expect_silence()
    await client.hang_up()
    log.away = frozenset()
    again = await come_back(rig)
    bodies = await again.take(4)
    assert {body["channel"] for body in bodies} == {"U|graph_exec#E", "U|graph_exec#F"}
    assert sorted(offsets(bodies)) == [2, 2, 3, 3], "nothing shows that the client has more"


async def test_also_when_it_is_closed_by_the_server(rig: Rig, store: MemoryEphemeral, log: AwayLog) -> None:
    await leave_behind(store, rig, "E", "F")
    log.away = frozenset({"F"})
    client = await come_back(rig)
    await client.take(2)
    rig.gateway.drain()
    assert await client.until_closed() == 1012
    assert rig.gateway._old_clients is not None
    await rig.gateway._old_clients.settled()
    assert await kept(store, rig) == {"E": 3, "F": 1}


async def test_what_the_client_says_meanwhile_does_not_overwrite_it(
    rig: Rig, store: MemoryEphemeral, log: AwayLog
) -> None:
    await leave_behind(store, rig, "F")
    log.away = frozenset({"F"})
    client = await come_back(rig)
    for _ in range(50):
        await asyncio.sleep(0)
    await client.subscribe()
    assert rig.gateway._old_clients is not None
    await rig.gateway._old_clients.settled()
    await client.hang_up()
    assert await kept(store, rig) == {"E": 3, "F": 1}


async def test_what_it_subscribes_to_before_it_is_given_more_is_kept_too(rig: Rig, store: MemoryEphemeral) -> None:
    await leave_behind(store, rig, "F")
    client = rig.connect()
    await client.subscribe()
    await rig.sleeper()
    rig.clock.advance(PATIENCE_S)
    assert offsets(await client.take(2)) == [2, 3]
    assert rig.gateway._old_clients is not None
    await rig.gateway._old_clients.settled()
    await client.hang_up()
    assert await kept(store, rig) == {"E": 3, "F": 1}
    assert await kept(store, rig) == {}, "it stands once"


async def test_who_knows_how_to_continue_is_given_nothing(rig: Rig, store: MemoryEphemeral) -> None:
    await leave_behind(store, rig, "E")
    client = rig.connect()
    await client.ask({"method": "heartbeat", "id": 1})
    await rig.sleeper()
    rig.clock.advance(PATIENCE_S)
    for _ in range(50):
        await asyncio.sleep(0)
    await client.expect_silence()
    await client.hang_up()
    assert await kept(store, rig) == {"E": 1}


async def test_a_socket_that_changes_fast_is_written_down_seldom() -> None:
    written: list[str] = []

    class Store(MemoryEphemeral):
        async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
            written.append(key)
            await super().put(key, value, ttl_s=ttl_s)

    store, clock = Store(clock=ManualClock()), ManualClock()
    compat = CompatResume(store, clock=clock, sleep=at_once)
    clients = OldClients(compat, sleep=clock.sleep, clock=clock)
    running = asyncio.create_task(clients.run())
    connection: Any = Socket(compat)

    async def change(offset: int) -> None:
        connection.arrived[Subject(Kind.EXECUTION, "E")] = Position("e", offset)
        clients.changed(connection)
        for _ in range(20):
            await asyncio.sleep(0)

    async def stands() -> int:
        other = CompatResume(store, clock=ManualClock())
        data = await store.get(other.slot("U").prefix + ":0")
        record = None if data is None else Record.decode(data)
        return 0 if record is None else record.kept[0].position.offset

    await change(1)
    assert await stands() == 1, "the first change at once"
    for offset in range(2, 100):
        await change(offset)
    assert await stands() == 1
    clock.advance(SAVE_EVERY_S)
    await settle()
    assert await stands() == 99, "and the last one soon"
    assert len([key for key in written if key.endswith(":0")]) == 1, "after the first, which makes the slot"
    clock.advance(SAVE_EVERY_S)
    await settle()
    await change(100)
    assert await stands() == 100, "a change after a while at once again"
    await change(101)
    await clients.settled()
    assert await stands() == 101
    await change(102)
    clients.lost(connection, clean=False, left=False)
    await clients.settled()
    assert await stands() == 102
    running.cancel()
    await asyncio.wait({running})


class Socket:
    """As much of a `Connection` as is asked here."""

    def __init__(self, compat: CompatResume) -> None:
        self.session = self
        self.is_plain, self.is_barred = True, False
        self.principal = Principal("U")
        self.slot = None
        self.arrived: dict[Subject, Position | None] = {}


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
