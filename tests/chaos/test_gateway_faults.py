"""Deaths and pauses of Redis and of gateways while hundreds watch: nothing lost, doubled or changed, or it is told.

Every watcher keeps a running hash of (number, bytes) and comes back with its position. Afterwards it must equal the
hash of the log, which a reader of its own takes from Redis. Publishing never stops while something is broken.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from chaos import faults
from chaos.site import Site, whole
from chaos.watchers import until

pytestmark = [pytest.mark.slow, pytest.mark.heavy, pytest.mark.needs("redis"), pytest.mark.timeout(120)]

SOCKETS = 200


async def test_redis_is_killed_and_comes_back_with_its_data(tmp_path: Path) -> None:
    async with Site(tmp_path, gateways=2) as site:
        await site.busy(SOCKETS)
        for _ in range(2):
            async with site.fault("Redis was dead") as window:
                await faults.redis_killed(site, random.Random(1))
            assert window.begun > 0
            await site.some_are_acknowledged()
        await site.goes_on()
        whole(site)
        assert len({epoch for source in site.sources for epoch in source.truth.events}) == len(site.sources)
        assert all(watcher.connections == 1 for watcher in site.watchers), "no socket is closed because of Redis"


async def test_redis_is_paused(tmp_path: Path) -> None:
    async with Site(tmp_path, gateways=2) as site:
        await site.busy(SOCKETS)
        async with site.fault("Redis was paused") as window:
            site.redis.pause()
            await asyncio.sleep(5)
            site.redis.resume()
        assert window.begun > 0
        await site.goes_on()
        whole(site)


async def test_redis_comes_back_empty_and_everybody_is_told(tmp_path: Path) -> None:
    """Jobs get new epochs; an execution's tape is made again with the old one and all its numbers."""
    async with Site(tmp_path, gateways=2, durable=False) as site:
        await site.busy(SOCKETS)
        async with site.fault("Redis lost everything") as window:
            await faults.redis_emptied(site, random.Random(1))
        assert window.begun > 0
        await site.goes_on()
        whole(site, may_lose=True)
        for watcher in site.watchers:
            source = site.source_of(watcher.subject)
            if watcher.subject.kind == "job":
                assert len(source.truth.events) == 2, "the tape was born again"
                assert watcher.chain.losses, f"{watcher.chain.name} was not told"
                assert [stretch.epoch for stretch in watcher.chain.stretches] == list(source.truth.events)
            else:  # told perhaps, by a gateway that looked while it was made again, but with all events in the end
                assert {stretch.epoch for stretch in watcher.chain.stretches} == {source.truth.epoch}
                assert len(source.truth.events) == 1


async def test_a_client_that_comes_back_after_the_loss_is_told(tmp_path: Path) -> None:
    """It was away while Redis came back empty."""
    async with Site(tmp_path, gateways=2, durable=False) as site:
        await site.busy(40, executions=0)
        async with site.fault("Redis lost everything, and so did the gateways"):
            await asyncio.gather(*(asyncio.to_thread(gateway.kill) for gateway in site.gateways))
            await faults.redis_emptied(site, random.Random(1))
            await asyncio.gather(*(asyncio.to_thread(gateway.start) for gateway in site.gateways))
        await site.goes_on()
        whole(site, may_lose=True)
        for watcher in site.watchers:
            assert watcher.chain.losses, f"{watcher.chain.name} was not told"


@pytest.mark.parametrize("how", ["killed", "terminated"])
async def test_a_gateway_ends_under_load_and_clients_resume_on_another(tmp_path: Path, how: str) -> None:
    async with Site(tmp_path, gateways=2) as site:
        await site.busy(SOCKETS)
        rng = random.Random(1)
        for gateway in site.gateways:
            async with site.fault(f"a gateway was {how}") as window:
                if how == "killed":
                    await asyncio.to_thread(gateway.kill)
                else:
                    assert await asyncio.to_thread(gateway.stop) in (0, -15)
                await asyncio.sleep(rng.uniform(0.5, 1.0))
            assert window.acknowledged > 0
            await until(lambda: all(w.is_live for w in site.watchers), "all are live on the other one", within_s=30)
            await asyncio.to_thread(gateway.start)
        await site.goes_on()
        whole(site)
        closes = [code for watcher in site.watchers for code in watcher.closes.elements()]
        assert len(closes) >= SOCKETS
        if how == "terminated":
            asked = sum(watcher.methods["reconnect"] > 0 for watcher in site.watchers)
            assert asked == SOCKETS, "whoever is sent away is asked to go first"
            assert set(closes) == {1000, 1012}, "who does not go is told that it may come back"


async def test_both_at_once(tmp_path: Path) -> None:
    """A gateway dies while Redis is down, and another is sent away while Redis comes back."""
    async with Site(tmp_path, gateways=2) as site:
        await site.busy(SOCKETS)
        async with site.fault("Redis and a gateway were dead") as window:
            await asyncio.to_thread(site.redis.kill)
            await asyncio.to_thread(site.gateways[0].kill)
            await asyncio.sleep(1)
            await asyncio.to_thread(site.redis.start)
            await asyncio.to_thread(site.gateways[0].start)
            await asyncio.to_thread(site.gateways[1].stop)
            await asyncio.to_thread(site.gateways[1].start)
        assert window.begun > 0
        await site.goes_on()
        whole(site)
