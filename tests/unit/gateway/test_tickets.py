"""Tickets, and the one decision at the door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.adapters.memory.bus import MemoryBus
from livetape.adapters.memory.ephemeral import MemoryEphemeral
from livetape.adapters.sqlite.ephemeral import SqliteEphemeral, create_ephemeral_schema
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Writer
from livetape.auth import (
    DEFAULT_USER_ID,
    READ_GRAPH,
    SCOPES,
    Authenticator,
    ConnectionFacts,
    Principal,
    TokenOptions,
    TokenVerifier,
    issue_share_token,
    issue_token,
)
from livetape.errors import (
    NotAuthorizedError,
    RateLimitedError,
    StoreUnavailableError,
    TokenExpiredError,
    UnauthenticatedError,
)
from livetape.gateway.access import Access, OwnerAccess
from livetape.gateway.close_codes import close_code_of
from livetape.gateway.control import TokensRevoked
from livetape.gateway.doorkeeper import Doorkeeper
from livetape.gateway.revocations import Revocations
from livetape.gateway.subjects import Kind, Subject
from livetape.gateway.tickets import Tickets
from livetape.gateway.transports.facts import facts_of, query_value
from livetape.store.ephemeral import Ephemeral
from livetape.testing.fakes import ManualClock

KEY = "the key of the tests, long enough to be one"
EXECUTION = Subject(Kind.EXECUTION, "E")
LOCAL = {"host": "localhost", "peer": "127.0.0.1"}

PRINCIPALS = st.builds(
    Principal,
    st.text(max_size=20).filter(lambda text: text.isprintable()),
    role=st.sampled_from(["", "admin"]),
    expires_at=st.none() | st.just(ManualClock().now() + timedelta(hours=1)),
    token_id=st.none() | st.text(max_size=5).filter(lambda text: text.isprintable()),
    issued_at=st.none() | st.just(ManualClock().now() - timedelta(microseconds=1)),
    scopes=st.none() | st.frozensets(st.sampled_from(sorted(SCOPES))),
    shares=st.frozensets(st.sampled_from(["job_events:a", "execution_events:b"])),
)


class Site:
    """A door with everything behind it."""

    def __init__(self, **auth: Any) -> None:
        self.clock = ManualClock()
        self.store = MemoryEphemeral(clock=self.clock)
        self.tickets = Tickets(self.store, clock=self.clock)
        self.revocations = Revocations(self.store, MemoryBus(), clock=self.clock)
        verifier = TokenVerifier(TokenOptions(verify_key=KEY), self.clock)
        self.authenticator = Authenticator(verifier, clock=self.clock, **auth)
        self.door = Doorkeeper(self.authenticator, tickets=self.tickets, revocations=self.revocations)

    def token(self, user: str = "U", *, ttl_s: float = 3600, **more: Any) -> str:
        return issue_token(KEY, user_id=user, now=self.clock.now(), ttl=timedelta(seconds=ttl_s), **more)

    def share(self, *tapes: str, **more: Any) -> str:
        return issue_share_token(
            KEY, tapes=tapes or (EXECUTION.tape,), now=self.clock.now(), ttl=timedelta(hours=1), **more
        )

    async def enter(self, **facts: Any) -> Principal:
        return await self.door.authenticate(ConnectionFacts(**{"host": "h", "peer": "192.0.2.1", **facts}))

    async def ticket(self, user: str = "U", **more: Any) -> str:
        principal = self.authenticator.authenticate(ConnectionFacts(token=self.token(user, **more)))
        return (await self.tickets.issue(principal)).text

    async def refused(self, **facts: Any) -> int:
        """The close code."""
        with pytest.raises(UnauthenticatedError) as caught:
            await self.enter(**facts)
        return close_code_of(caught.value)


class Away(MemoryEphemeral):
    async def take(self, key: str) -> bytes | None:
        raise StoreUnavailableError


@pytest.fixture
def site() -> Site:
    return Site()


# ---- tickets -------------------------------------------------------------------------------------------------------


async def test_a_ticket_is_good_once(site: Site) -> None:
    text = await site.ticket(role="admin", token_id="T")
    principal = await site.enter(ticket=text)
    assert principal == site.authenticator.authenticate(
        ConnectionFacts(token=site.token(role="admin", token_id="T"))
    ), "all of the token's rights, and its end"
    assert await site.refused(ticket=text) == 4003


async def test_a_ticket_is_good_for_half_a_minute(site: Site) -> None:
    early, late = await site.ticket(), await site.ticket()
    site.clock.advance(29)
    assert (await site.enter(ticket=early)).user_id == "U"
    site.clock.advance(1)
    assert await site.refused(ticket=late) == 4003


async def test_it_says_when_it_ends_and_does_not_show_itself(site: Site) -> None:
    ticket = await site.tickets.issue(Principal("U"))
    assert ticket.expires_at == site.clock.now() + timedelta(seconds=30)
    assert len(ticket.text) == 43
    assert ticket.text not in repr(ticket)
    assert ticket.text not in repr(ConnectionFacts(ticket=ticket.text))


async def test_who_reads_the_store_has_no_ticket(site: Site) -> None:
    text = await site.ticket()
    assert all(
        text not in key and text.encode() not in str(value).encode() for key, value in site.store._values.items()
    )
    for key in site.store._values:
        assert await site.refused(ticket=key) == 4003
        assert await site.refused(ticket=key.rpartition(":")[2]) == 4003


@pytest.mark.parametrize("text", ["x", "x" * 100_000, "\ud800", "ticket:" + "0" * 64, "*", "\x00"])
async def test_what_is_no_ticket_is_refused(site: Site, text: str) -> None:
    assert await site.refused(ticket=text) == 4003


@given(PRINCIPALS)
async def test_a_ticket_is_its_principal_no_more_no_less(principal: Principal) -> None:
    tickets = Tickets(MemoryEphemeral(), clock=ManualClock())
    assert await tickets.redeem((await tickets.issue(principal)).text) == principal


async def test_what_cannot_be_read_is_no_principal(site: Site) -> None:
    for change in ({"user_id": None}, {"shares": None}, {"newer_limit": 1}, {"scopes": "READ_GRAPH"}):
        text = await site.ticket()
        (key,) = (key for key in site.store._values if key.startswith("ticket:"))
        held = json.loads(await site.store.get(key) or b"")
        await site.store.put(key, json.dumps(held | change).encode(), ttl_s=30)
        assert await site.refused(ticket=text) == 4003


async def test_it_does_not_outlive_its_token(site: Site) -> None:
    text = await site.ticket(ttl_s=10)
    site.clock.advance(10)
    with pytest.raises(TokenExpiredError):
        await site.enter(ticket=text)


async def test_tickets_of_one_user_are_counted(site: Site) -> None:
    tickets = Tickets(site.store, clock=site.clock, max_per_user=2)
    for _ in range(2):
        await tickets.issue(Principal("U"))
    with pytest.raises(RateLimitedError) as caught:
        await tickets.issue(Principal("U"))
    assert caught.value.context["retry_after"] == 30
    await tickets.issue(Principal("V"))
    site.clock.advance(30)
    await tickets.issue(Principal("U"))
    unlimited = Tickets(site.store, clock=site.clock, max_per_user=None)
    for _ in range(300):
        await unlimited.issue(Principal("U"))


@asynccontextmanager
async def in_file(path: Path) -> AsyncIterator[Ephemeral]:
    writer, readers = Writer(path, prepare=create_ephemeral_schema), Readers(path)
    try:
        yield SqliteEphemeral(writer, readers)
    finally:
        readers.close()
        writer.close()


async def test_of_many_who_come_with_a_ticket_one_gets_in(tmp_path: Path) -> None:
    """In two processes, over one store."""
    async with AsyncExitStack() as stack:
        processes = [Tickets(await stack.enter_async_context(in_file(tmp_path / "a.db"))) for _ in range(2)]
        for _ in range(10):
            text = (await processes[0].issue(Principal("U"))).text
            got = await asyncio.gather(*(tickets.redeem(text) for tickets in processes * 4), return_exceptions=True)
            assert sum(isinstance(one, Principal) for one in got) == 1
            assert sum(isinstance(one, UnauthenticatedError) for one in got) == 7


# ---- the door ------------------------------------------------------------------------------------------------------


async def test_a_token_or_a_ticket_is_asked_for(site: Site) -> None:
    assert await site.refused() == 4001
    assert await site.refused(token="rubbish") == 4003
    assert (await site.enter(token=site.token())).user_id == "U"


async def test_a_bad_ticket_is_not_made_good_by_a_token(site: Site) -> None:
    assert await site.refused(ticket="x", token=site.token()) == 4003
    dev = Site(dev_user=True)
    assert (await dev.enter(**LOCAL)).user_id == DEFAULT_USER_ID
    assert await dev.refused(ticket="x", **LOCAL) == 4003


async def test_where_there_are_no_tickets_none_is_taken(site: Site) -> None:
    text = await site.ticket()
    with pytest.raises(UnauthenticatedError):
        await Doorkeeper(site.authenticator).authenticate(ConnectionFacts(ticket=text))


async def test_a_store_that_is_away_lets_nobody_in_by_ticket(site: Site) -> None:
    door = Doorkeeper(site.authenticator, tickets=Tickets(Away()))
    with pytest.raises(StoreUnavailableError):
        await door.authenticate(ConnectionFacts(ticket="x", token=site.token()))


async def test_with_auth_off_nothing_is_looked_at() -> None:
    site = Site(enable_auth=False)
    assert (await site.enter(ticket="x")).user_id == DEFAULT_USER_ID
    with pytest.raises(NotAuthorizedError):
        await site.enter(origin="https://evil.example")


async def test_revoked_tokens_open_nothing_by_any_way(site: Site) -> None:
    token = site.token(token_id="T")
    text = await site.ticket(token_id="T")
    shared = site.share(token_id="S")
    assert (await site.enter(token=token)).token_id == "T"
    await site.revocations.revoke_token("T")
    await site.revocations.revoke_token("S")
    assert await site.refused(token=token) == 4003
    assert await site.refused(ticket=text) == 4003, "a ticket is no way around it"
    assert await site.refused(token=shared) == 4003


async def test_the_development_user_is_not_locked_out_for_good() -> None:
    site = Site(dev_user=True)
    here = await site.enter(**LOCAL)
    await site.revocations.revoke_user(DEFAULT_USER_ID)
    assert site.door.knows_revoked(here)
    site.clock.advance(0.001)
    assert (await site.enter(**LOCAL)).user_id == DEFAULT_USER_ID


async def test_what_was_heard_is_known(site: Site) -> None:
    principal = await site.enter(token=site.token(token_id="T"))
    assert not site.door.knows_revoked(principal)
    assert not await site.door.is_revoked(principal)
    site.door.learn(TokensRevoked(token_id="T"))
    assert site.door.knows_revoked(principal)
    assert await site.door.is_revoked(principal)
    without = Doorkeeper(site.authenticator)
    without.learn(TokensRevoked(token_id="T"))
    assert not without.knows_revoked(principal)
    assert not await without.is_revoked(principal)


# ---- guests --------------------------------------------------------------------------------------------------------


async def test_a_guest_comes_with_a_share_token_and_sees_what_was_shared(site: Site) -> None:
    guest = await site.enter(token=site.share(EXECUTION.tape, "job_events:j"))
    assert guest.is_guest
    assert guest.shares == {EXECUTION.tape, "job_events:j"}
    assert guest.user_id.startswith("share:")
    assert guest.expires_at == site.clock.now() + timedelta(hours=1)
    assert not guest.may(READ_GRAPH)
    assert OwnerAccess()(guest, EXECUTION, None) is Access.DENIED


async def test_two_guests_are_two_and_a_token_is_always_the_same(site: Site) -> None:
    one, other = site.share(), site.share()
    assert (await site.enter(token=one)).user_id == (await site.enter(token=one)).user_id
    assert (await site.enter(token=one)).user_id != (await site.enter(token=other)).user_id


async def test_a_user_cannot_have_the_id_of_a_guest(site: Site) -> None:
    guest = await site.enter(token=site.share())
    assert await site.refused(token=site.token(guest.user_id)) == 4003


# ---- refresh -------------------------------------------------------------------------------------------------------


async def test_a_socket_goes_on_with_a_newer_token_of_its_user(site: Site) -> None:
    before = await site.enter(token=site.token(role="admin", token_id="T1"))
    site.clock.advance(1800)
    after = await site.door.refresh(before, site.token(token_id="T2"))
    assert after == Principal("U", "user", site.clock.now() + timedelta(hours=1), "T2", site.clock.now()), (
        "nothing of the old one is left"
    )


@pytest.mark.parametrize(
    ("reason", "token"),
    [
        ("missing", lambda site: ""),
        ("invalid", lambda site: "rubbish"),
        ("expired", lambda site: site.token(ttl_s=-10)),
        ("other_user", lambda site: site.token("V")),
        ("other_user", lambda site: site.share()),
        ("revoked", lambda site: site.token(token_id="R")),
    ],
)
async def test_a_token_that_does_not_hold_refreshes_nothing(site: Site, reason: str, token: Any) -> None:
    await site.revocations.revoke_token("R")
    before = await site.enter(token=site.token())
    with pytest.raises(UnauthenticatedError) as caught:
        await site.door.refresh(before, token(site))
    assert caught.value.context["reason"] == reason


async def test_a_ticket_is_no_token(site: Site) -> None:
    before = await site.enter(ticket=await site.ticket())
    with pytest.raises(UnauthenticatedError):
        await site.door.refresh(before, await site.ticket())
    assert (await site.door.refresh(before, site.token())).user_id == "U"


async def test_a_limited_key_does_not_become_its_user(site: Site) -> None:
    key = replace(await site.enter(token=site.token()), scopes=frozenset({READ_GRAPH}))
    with pytest.raises(UnauthenticatedError):
        await site.door.refresh(key, site.token())


async def test_a_guest_goes_on_with_the_same_share_made_longer(site: Site) -> None:
    guest = await site.enter(token=site.share(token_id="S"))
    site.clock.advance(1800)
    later = await site.door.refresh(guest, site.share("job_events:j", token_id="S"))
    assert later.shares == {"job_events:j"}
    with pytest.raises(UnauthenticatedError):
        await site.door.refresh(guest, site.token())


async def test_the_development_user_can_refresh_only_as_itself() -> None:
    site = Site(dev_user=True)
    dev = await site.enter(**LOCAL)
    with pytest.raises(UnauthenticatedError):
        await site.door.refresh(dev, site.token("U"))
    with pytest.raises(UnauthenticatedError):
        await site.door.refresh(dev, "")
    off = Site(enable_auth=False)
    assert (await off.door.refresh(await off.enter(), "anything")).user_id == DEFAULT_USER_ID


# ---- facts ---------------------------------------------------------------------------------------------------------


def scope(query: bytes = b"", protocols: tuple[str, ...] = (), **headers: str) -> dict[str, Any]:
    return {
        "type": "websocket",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "query_string": query,
        "subprotocols": list(protocols),
        "client": ("192.0.2.1", 5),
    }


@pytest.mark.parametrize(
    ("given", "token", "ticket"),
    [
        (scope(), None, None),
        (scope(b"token=T"), "T", None),
        (scope(b"ticket=K"), None, "K"),
        (scope(b"ticket=K&token=T"), "T", "K"),
        (scope(b"ticket=&token="), None, None),
        (scope(b"ticket=K&ticket=L"), None, "K"),
        (scope(protocols=("livetape.v1", "bearer.T")), "T", None),
        (scope(b"token=Q", ("livetape.v1", "bearer.T")), "Q", None),
        (scope(b"ticket=K", ("bearer.T",)), "T", "K"),
        (scope(b"ticket=K", authorization="Bearer H"), "H", "K"),
        (scope(b"&" * 1000 + b"ticket=K"), None, None),
        (scope(b"\xff=\xff&ticket=a%2Fb"), None, "a/b"),
    ],
)
def test_what_a_handshake_tells(given: dict[str, Any], token: str | None, ticket: str | None) -> None:
    facts = facts_of(given)
    assert (facts.token, facts.ticket, facts.peer) == (token, ticket, "192.0.2.1")


def test_other_facts() -> None:
    facts = facts_of(scope(host="h", origin="https://o") | {"client": None})
    assert (facts.host, facts.origin, facts.peer) == ("h", "https://o", None)


@given(st.binary(max_size=200))
def test_any_query_is_read(query: bytes) -> None:
    assert query_value(query, "ticket") != ""
