"""Revoked tokens: remembered for all processes, told to each, and what happens while the store is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.adapters.memory.ephemeral import MemoryEphemeral
from livetape.auth import Principal
from livetape.errors import BusUnavailableError, StoreUnavailableError, UnauthenticatedError
from livetape.events.channel import gateway_channel
from livetape.gateway.control import TokensRevoked, decode_control
from livetape.gateway.revocations import LONGEST_TOKEN_SECONDS, MAX_KNOWN, Revocations
from livetape.testing.fakes import ManualClock
from unit.gateway.rig import Counts

DAY_S = 86_400


class Store(MemoryEphemeral):
    """Counts, and can be away."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.asked = 0
        self.away = False
        self.hung: asyncio.Event | None = None

    async def get(self, key: str) -> bytes | None:
        self.asked += 1
        if self.hung is not None:
            await self.hung.wait()
        if self.away:
            raise StoreUnavailableError("gone")
        return await super().get(key)


class DeafBus(MemoryBus):
    async def publish(self, channel: str, data: bytes) -> int:
        raise BusUnavailableError


class Site:
    """Two processes over one store."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = Store(self.clock)
        self.bus = MemoryBus()
        self.counts = Counts()
        self.one = self.process()
        self.two = self.process()

    def process(self, **options: float) -> Revocations:
        return Revocations(self.store, self.bus, clock=self.clock, metrics=self.counts, **options)

    def principal(self, user: str = "U", token_id: str | None = "T") -> Principal:
        end = self.clock.now() + timedelta(hours=1)
        return Principal(user, token_id=token_id, issued_at=self.clock.now(), expires_at=end)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    yield site
    await site.bus.close()


async def test_a_revoked_token_is_refused_in_every_process(site: Site) -> None:
    principal = site.principal()
    assert not await site.two.is_revoked(principal)
    await site.one.revoke_token("T", principal.expires_at)
    for process in (site.one, site.two, site.process()):
        assert await process.is_revoked(principal, fresh=True)
    with pytest.raises(UnauthenticatedError) as caught:
        await site.one.check(principal)
    assert caught.value.context["reason"] == "revoked"
    assert not await site.two.is_revoked(site.principal(token_id="T2"))
    assert not await site.two.is_revoked(site.principal(token_id=None))


async def test_everything_that_a_user_was_given_before_is_refused(site: Site) -> None:
    before = site.principal()
    site.clock.advance(0.5)
    await site.one.revoke_user("U")
    site.clock.advance(0.5)
    after = replace(site.principal(), token_id="T2")
    for process in (site.one, site.two):
        assert await process.is_revoked(before, fresh=True)
        assert await process.is_revoked(replace(before, token_id=None), fresh=True)
        assert await process.is_revoked(replace(before, issued_at=None), fresh=True), "it may be an old one"
        assert not await process.is_revoked(after, fresh=True)
        assert not await process.is_revoked(site.principal("V"), fresh=True)


async def test_it_is_remembered_as_long_as_the_token_would_live(site: Site) -> None:
    principal = site.principal()
    await site.one.revoke_token("T", principal.expires_at)
    await site.one.revoke_user("U")
    site.clock.advance(3600)
    assert await site.process().is_revoked(replace(principal, user_id="other"))
    site.clock.advance(300 * DAY_S)
    assert await site.process().is_revoked(replace(principal, token_id=None))
    site.clock.advance(LONGEST_TOKEN_SECONDS)
    assert not await site.process().is_revoked(principal), "nothing is kept for ever"


async def test_a_token_that_has_ended_need_not_be_remembered(site: Site) -> None:
    await site.one.revoke_token("T", site.clock.now() - timedelta(days=1))
    assert not await site.process().is_revoked(site.principal())
    await site.one.revoke_token("T2")
    site.clock.advance(300 * DAY_S)
    assert await site.process().is_revoked(site.principal(token_id="T2"))


async def test_everybody_is_told_at_once(site: Site) -> None:
    async with await site.bus.subscribe(gateway_channel()) as heard:
        await site.one.revoke_user("U")
        event = decode_control((await anext(aiter(heard))).data)
    assert event == TokensRevoked(
        user_id="U", at=site.clock.now(), until=site.clock.now() + timedelta(seconds=LONGEST_TOKEN_SECONDS)
    )
    assert not site.two.is_known(site.principal())
    site.two.learn(event)
    assert site.two.is_known(site.principal())


async def test_a_no_is_kept_for_a_second_and_forgotten_when_told(site: Site) -> None:
    principal = site.principal()
    for _ in range(50):
        assert not await site.two.is_revoked(principal)
    assert site.store.asked == 2, "one look for the token, one for the user"
    await site.one.revoke_token("T")
    assert not await site.two.is_revoked(principal), "so old may an answer be where the bus lost the event"
    assert await site.two.is_revoked(principal, fresh=True)
    site.two.learn(TokensRevoked(token_id="T"))
    asked = site.store.asked
    assert await site.two.is_revoked(principal)
    assert site.store.asked == asked, "what is known is not asked for"


async def test_the_second_ends(site: Site) -> None:
    principal = site.principal()
    assert not await site.two.is_revoked(principal)
    await site.one.revoke_token("T")
    site.clock.advance(1.0)
    assert await site.two.is_revoked(principal)


async def test_an_event_without_its_time_means_now(site: Site) -> None:
    before = site.principal()
    site.one.learn(TokensRevoked(user_id="U"))
    site.clock.advance(1)
    assert site.one.is_known(before)
    assert not site.one.is_known(site.principal())


async def test_an_older_event_that_comes_late_takes_nothing_back(site: Site) -> None:
    now = site.clock.now()
    site.one.learn(TokensRevoked(user_id="U", at=now + timedelta(minutes=1)))
    site.one.learn(TokensRevoked(user_id="U", at=now - timedelta(minutes=1)))
    assert site.one.is_known(site.principal())


async def test_a_store_that_is_away_lets_in_but_not_whom_it_has_heard_of(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.one.learn(TokensRevoked(token_id="T1"))
    site.store.away = True
    with caplog.at_level(logging.WARNING):
        assert not await site.one.is_revoked(site.principal(), fresh=True)
        assert not await site.one.is_revoked(site.principal(), fresh=True)
        assert await site.one.is_revoked(site.principal(token_id="T1"), fresh=True)
    assert site.counts.values["gateway_revocation_failures_total"] == 2
    assert len(caplog.records) == 1, "said once, not for every caller"
    site.store.away = False
    assert not await site.one.is_revoked(site.principal(), fresh=True)


async def test_a_store_that_hangs_holds_nobody_up_for_long(site: Site) -> None:
    site.store.hung = asyncio.Event()
    async with asyncio.timeout(5):
        assert not await site.process(store_seconds=0.02).is_revoked(site.principal())


async def test_an_event_that_comes_while_the_store_is_asked_counts(site: Site) -> None:
    site.store.hung = asyncio.Event()
    asking = asyncio.create_task(site.one.is_revoked(site.principal()))
    await asyncio.sleep(0)
    site.one.learn(TokensRevoked(token_id="T"))
    site.store.hung.set()
    assert await asking


async def test_what_was_remembered_and_not_told_is_an_error(site: Site) -> None:
    deaf = Revocations(site.store, DeafBus(), clock=site.clock)
    with pytest.raises(BusUnavailableError):
        await deaf.revoke_token("T")
    assert await site.two.is_revoked(site.principal())


async def test_a_value_that_cannot_be_read_is_a_revocation(site: Site) -> None:
    await site.one.revoke_user("U")
    (name,) = site.store._values
    for value in (b"", b"soon", b"nan", b"1e300"):
        await site.store.put(name, value, ttl_s=60)
        assert await site.process().is_revoked(site.principal())


async def test_memory_is_bounded(site: Site) -> None:
    for number in range(MAX_KNOWN + 10):
        site.one.learn(TokensRevoked(token_id=f"T{number}"))
        site.one.learn(TokensRevoked(user_id=f"U{number}"))
        site.one._passed[(str(number), None, None)] = 0.0
    assert len(site.one._tokens) == len(site.one._users) == MAX_KNOWN
    assert not site.one.is_known(site.principal("V", "T0"))
    assert site.one.is_known(site.principal("V", f"T{MAX_KNOWN}"))
    await site.one.is_revoked(site.principal("W", "T-none"))
    assert len(site.one._passed) == 1


async def test_who_was_let_in_unasked_is_looked_up_later(site: Site) -> None:
    await Revocations(site.store, site.bus, clock=site.clock).revoke_token("T1")  # not heard of here
    site.store.away = True
    bad, good = site.principal(token_id="T1"), site.principal(token_id="T2")
    assert not await site.one.is_revoked(bad, fresh=True)
    assert not await site.one.is_revoked(good, fresh=True)
    assert not await site.one.is_revoked(site.principal("V"))  # one request, and over
    assert await site.one.settle() == set()
    asked = site.store.asked
    assert await site.one.settle() == set()
    assert site.store.asked - asked <= 2, "while nobody answers, one is asked for"
    site.store.away = False
    assert await site.one.settle() == {bad}
    asked = site.store.asked
    assert await site.one.settle() == set()
    assert site.store.asked == asked
