"""The log on Redis when things go wrong: broken links, restarts, refusals."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import RedisServers
from integration.redis_events import JOB, SAFE, said, step
from livetape.adapters.redis.commands import Word
from livetape.adapters.redis.log import RedisLog
from livetape.adapters.redis.recorder import RedisRecorder
from livetape.adapters.redis.scripts import NAMES, header, text_of
from livetape.errors import LogUnavailableError, PositionLostError
from livetape.events.log import NewEvent, Position
from redis_commands import PlainCommands, plain
from servers import RedisServer, running

pytestmark = pytest.mark.needs("redis")


async def seed_publishes(commands: PlainCommands, event: dict[str, Any]) -> bytes:
    """As the seed's RedisStreamPublisher does."""
    entry_id: bytes = await commands.send(
        (
            "XADD",
            JOB,
            "*",
            "data",
            json.dumps(event, ensure_ascii=False),
            "timestamp",
            event.get("timestamp", ""),
            "event_type",
            event.get("event_type", "unknown"),
        )
    )
    return entry_id


@pytest.mark.parametrize("where", ["before", "after"])
async def test_a_batch_over_a_broken_link_is_written_once(commands: PlainCommands, where: str) -> None:
    breaks = iter([where, None, where, where])
    commands.cut = lambda words: next(breaks, None) if words[0] == "EVALSHA" else None
    recorder = RedisRecorder(commands)
    made = await asyncio.gather(*(recorder.record("t", "c/x", said(str(n))) for n in range(5)))
    more = await asyncio.gather(*(recorder.record("t", "c/x", said(str(n))) for n in range(5, 8)))
    assert [one.position.offset for one in made + more] == list(range(1, 9))
    assert not any(one.repeated or one.mixed for one in made + more)
    assert {one.receivers for one in made + more} == {0}
    assert [entry.payload for entry in await RedisLog(commands).read("t")] == [said(str(n)).payload for n in range(8)]


async def test_a_mixed_batch_over_a_broken_link_is_written_once(commands: PlainCommands) -> None:
    await seed_publishes(commands, {})
    breaks = iter(["after"])
    commands.cut = lambda words: next(breaks, None) if words[0] == "EVALSHA" else None
    log = RedisLog(commands)
    positions = await asyncio.gather(*(log.append(JOB, step(n=n)) for n in range(3)))
    assert [entry.offset for entry in await log.read(JOB)][1:] == [position.offset for position in positions]


async def test_an_absent_server_is_told_after_the_time_out(free_port: int) -> None:
    commands = PlainCommands(free_port)
    log = RedisLog(commands, timeout_s=0.3)
    for call in (log.append("t", said("a")), log.read("t"), log.describe("t"), log.create("t", owner=None, channel="")):
        with pytest.raises(LogUnavailableError):
            await call
    await log.close()


async def test_who_waits_behind_a_stuck_call_is_told_in_time_too() -> None:
    """And a link that never answers does not keep the events for ever."""

    class Silent(PlainCommands):
        async def send(self, words: Sequence[Word], key: str = "") -> Any:
            await asyncio.get_running_loop().create_future()

    recorder = RedisRecorder(Silent(1), timeout_s=0.3)
    before = time.monotonic()
    results = await asyncio.gather(*(recorder.record("t", "c", said("a")) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [LogUnavailableError] * 3
    assert time.monotonic() - before < 2
    await recorder.close()


async def test_too_much_waiting_is_refused_at_once(commands: PlainCommands) -> None:
    log = RedisLog(commands)
    large = NewEvent("large", b'"' + b"x" * (20 << 20) + b'"')
    results = await asyncio.gather(*(log.append("t", large) for _ in range(4)), return_exceptions=True)
    assert [type(result) for result in results] == [Position] * 3 + [LogUnavailableError]
    assert [entry.payload == large.payload for entry in await log.read("t")] == [True] * 3


# ---- the server's life -----------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_restart_that_lost_nothing_keeps_the_epoch(tmp_path: Path) -> None:
    with running(RedisServer("redis", tmp_path / "redis", **SAFE)) as server:
        async with plain(server.port) as commands:
            log = RedisLog(commands)
            first = await log.append("t", said("a"))
            server.kill()
            server.start()
            assert await log.append("t", said("b")) == Position(first.epoch, 2)


@pytest.mark.slow
async def test_a_restart_that_may_have_lost_events_begins_a_new_epoch(tmp_path: Path) -> None:
    with running(RedisServer("redis", tmp_path / "redis", appendonly="yes", appendfsync="everysec")) as server:
        async with plain(server.port) as commands:
            log = RedisLog(commands)
            first = await log.append("t", said("a"))
            await log.create("copy", owner=None, channel="", epoch="theirs")
            await log.put("copy", Position("theirs", 1), said("a"))
            await asyncio.sleep(1.5)
            server.kill()
            server.start()
            assert len(await log.read("t", epoch=first.epoch)) == 1
            second = await log.append("t", said("b"))
            assert second.offset == 2
            assert second.epoch != first.epoch
            with pytest.raises(PositionLostError):
                await log.read("t", 1, epoch=first.epoch)
            assert len(await log.read("t", epoch=second.epoch)) == 2
            assert (await log.append("t", said("c"))).epoch == second.epoch, "once is enough"
            assert await log.put("copy", Position("theirs", 2), said("b")) == "stored"


@pytest.mark.slow
async def test_a_restart_without_persistence_is_noticed(tmp_path: Path) -> None:
    with running(RedisServer("redis", tmp_path / "redis")) as server:
        async with plain(server.port) as commands:
            log = RedisLog(commands)
            first = await log.append("t", said("a"))
            server.kill()
            server.start()
            with pytest.raises(PositionLostError):
                await log.read("t", 1, epoch=first.epoch)
            again = await log.append("t", said("b"))
            assert again.offset == 1
            assert again.epoch != first.epoch


@pytest.mark.slow
async def test_a_promoted_replica_begins_a_new_epoch(tmp_path: Path) -> None:
    with (
        running(RedisServer("redis", tmp_path / "one", **SAFE)) as one,
        running(RedisServer("redis", tmp_path / "two", **SAFE)) as two,
    ):
        assert two.cli("REPLICAOF", "127.0.0.1", one.port) == "+OK"
        async with plain(one.port) as old, plain(two.port) as new:
            first = await RedisLog(old).append("t", said("a"))
            deadline = time.monotonic() + 20
            while await new.send(("EXISTS", "t")) == 0:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            # A replica refuses, and nothing is lost or invented.
            with pytest.raises(LogUnavailableError):
                await RedisLog(new, timeout_s=0.3).append("t", said("x"))
            assert [entry.offset for entry in await RedisLog(new).read("t")] == [1]
            assert two.cli("REPLICAOF", "NO", "ONE") == "+OK"
            second = await RedisLog(new).append("t", said("b"))
            assert second.offset == 2
            assert second.epoch != first.epoch


async def test_a_server_without_memory_refuses_and_takes_it_later(tmp_path: Path) -> None:
    with running(RedisServer("redis", tmp_path / "redis", maxmemory_policy="noeviction")) as server:
        async with plain(server.port) as commands:
            log = RedisLog(commands, timeout_s=0.4)
            await log.append("t", said("a"))
            await commands.send(("CONFIG", "SET", "maxmemory", "1"))
            with pytest.raises(LogUnavailableError):
                await log.append("t", said("b"))
            assert len(await log.read("t")) == 1
            late = asyncio.create_task(RedisLog(commands).append("t", said("c")))
            await asyncio.sleep(0.1)
            await commands.send(("CONFIG", "SET", "maxmemory", "0"))
            assert (await late).offset == 2


async def test_scripts_that_the_server_forgot_are_loaded_again(commands: PlainCommands, log: RedisLog) -> None:
    await log.append("t", said("a"))
    await commands.send(("SCRIPT", "FLUSH"))
    positions = await asyncio.gather(*(log.append(f"t{n}", said("b")) for n in range(20)), log.append("t", said("c")))
    assert [position.offset for position in positions] == [1] * 20 + [2]
    assert await log.describe("t") is not None


async def test_no_other_run_of_the_server_keeps_a_script_of_this_one(redis_servers: RedisServers) -> None:
    """The server was started again between the question who it is and the loading of the scripts."""
    gone = "f" * 40

    class StartedAgain(PlainCommands):
        asked = 0

        async def send(self, words: Sequence[Word], key: str = "") -> Any:
            reply = await super().send(words, key)
            if tuple(words) == ("INFO", "server"):
                self.asked += 1
                if self.asked == 1:
                    return b"run_id:" + gone.encode()
            return reply

    commands = StartedAgain(redis_servers.get("redis").port, redis_servers.new_db())
    await RedisLog(commands).append("t", said("a"))
    assert commands.asked == 4
    stale = [header(gone, safe=False, promoted=False) + text_of(name) for name in NAMES]
    digests = [hashlib.sha1(text.encode()).hexdigest() for text in stale]
    assert await commands.send(("SCRIPT", "EXISTS", *digests)) == [0] * len(NAMES)
    run = await commands.send(("HGET", "{t}:meta", "run"))
    assert gone.encode() not in run
    await commands.close()
