"""Doors and rights as clients see them: tickets, guests, limited keys, revocation, changed permissions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.adapters.memory.ephemeral import MemoryEphemeral
from livetape.auth import EXECUTE_GRAPH, READ_GRAPH, Principal, issue_share_token, issue_token
from livetape.events.channel import execution_tape, gateway_channel, graph_tape, job_channel, job_tape
from livetape.events.log import Tape
from livetape.gateway.access import Access, OwnerAccess
from livetape.gateway.control import Control, TokensRevoked, encode_control
from livetape.gateway.doorkeeper import Doorkeeper
from livetape.gateway.revocations import Revocations
from livetape.gateway.subjects import Subject
from livetape.gateway.tickets import Tickets
from livetape.testing.fakes import FakeLog, ManualClock
from unit.gateway.rig import KEY, Client, Rig, authenticator, rigged


class Changing(OwnerAccess):
    """The owner's rule, less what was taken away."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: set[tuple[str, str]] = set()

    def __call__(self, principal: Principal, subject: Subject, tape: Tape | None, /) -> Access:
        if (principal.user_id, subject.tape) in self.taken:
            return Access.DENIED
        return super().__call__(principal, subject, tape)


class Stopped:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def stop(self, user_id: str, graph_exec_id: str) -> None:
        self.asked.append((user_id, graph_exec_id))


@dataclass
class Site:
    """A gateway with all doors."""

    rig: Rig
    tickets: Tickets
    revocations: Revocations
    control: Control
    check: Changing
    stopped: Stopped

    async def ticket(self, principal: Principal) -> Client:
        ticket = await self.tickets.issue(principal)
        return self.rig.connect(token=None, ticket=ticket.text)

    def guest(self, *tapes: str, token_id: str = "S") -> Client:
        now = self.rig.clock.now()
        shared = issue_share_token(KEY, tapes=tapes, now=now, ttl=timedelta(days=1), token_id=token_id)
        return self.rig.connect(token=shared)

    def user(self, user: str, token_id: str) -> Client:
        now = self.rig.clock.now()
        return self.rig.connect(token=issue_token(KEY, user_id=user, now=now, ttl=timedelta(days=1), token_id=token_id))


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Site]:
    clock = ManualClock()  # stands at the moment from which the rig's counts
    store = MemoryEphemeral(clock=clock)
    bus, log = MemoryBus(), FakeLog()
    tickets, revocations = Tickets(store, clock=clock), Revocations(store, bus, clock=clock)
    check, stopped = Changing(), Stopped()
    door = Doorkeeper(authenticator(clock), tickets=tickets, revocations=revocations)
    parts = {"doorkeeper": door, "check": check, "stopping": stopped}
    async with rigged(bus=bus, log=log, parts=parts, **options) as rig:
        yield Site(rig, tickets, revocations, Control(bus), check, stopped)


async def job(site: Site, name: str, *, owner: str | None) -> None:
    await site.rig.log.create(job_tape(name), owner=owner, channel=job_channel(name))


async def test_a_socket_opens_with_a_ticket_once() -> None:
    async with opened() as site:
        ticket = await site.tickets.issue(Principal("U"))
        client = site.rig.connect(token=None, ticket=ticket.text)
        await client.expect_silence()
        await site.rig.publisher.notify("U", text="hello")
        assert (await client.get())["method"] == "notification", "with all that the token was good for"
        assert await site.rig.connect(token=None, ticket=ticket.text).until_closed() == 4003
        assert await site.rig.connect(token=None, ticket="none").until_closed() == 4003
        await client.expect_silence()


async def test_a_guest_sees_what_is_shared_and_nothing_else() -> None:
    async with opened() as site:
        await site.rig.publisher.create("E", user="U", graph="G")
        await site.rig.publisher.create("F", user="U", graph="G")
        client = site.guest(execution_tape("E"))
        answer = await client.subscribe("E", since="earliest")
        assert answer["success"]
        assert answer["data"]["recovered"]
        assert (await client.get())["method"] == "replay_complete"
        await site.rig.publisher.node(1, "E")
        assert (await client.get())["method"] == "node_execution_event"
        # another execution, its graph, a job of nobody, what is not there: answered alike, and silent
        await job(site, "J", owner=None)
        await client.subscribe("F")
        await client.ask({"method": "subscribe_graph_executions", "data": {"graph_id": "G"}})
        await client.ask({"method": "subscribe_job", "data": {"job_id": "J"}})
        await client.subscribe("later")
        for name in ("F", "E2"):
            assert (await client.subscribe(name, strict=True))["method"] == "error"
        await site.rig.publisher.graph("RUNNING", "F")
        await site.rig.publisher.job("task_started", "J", user=None)
        await site.rig.publisher.notify("U", text="private")
        await client.expect_silence()


async def test_nothing_that_is_published_in_the_name_of_a_guest_reaches_it() -> None:
    """A guest's id is no user's: not even its own channels are listened to."""
    async with opened() as site:
        client = site.guest("execution_events:E", "graph_events:G")
        await client.subscribe("E")
        user = next(iter(site.rig.gateway._connections)).principal.user_id
        assert user.startswith("share:")
        await site.rig.publisher.node(1, "E", user=user, durable=False)
        await site.rig.publisher.notify(user, text="private")
        await client.expect_silence()


async def test_a_guest_stops_nothing() -> None:
    async with opened() as site:
        await site.rig.publisher.create()
        client = site.guest(execution_tape("E"))
        answer = await client.ask({"method": "stop_graph_execution", "data": {"graph_exec_id": "E"}})
        assert answer["method"] == "error"
        own = site.rig.connect("U")
        assert (await own.ask({"method": "stop_graph_execution", "data": {"graph_exec_id": "E"}}))["success"]
        assert site.stopped.asked == [("U", "E")]


async def test_a_limited_key_does_what_its_scopes_say() -> None:
    async with opened() as site:
        await site.rig.publisher.create()
        reads = await site.ticket(Principal("U", scopes=frozenset({READ_GRAPH})))
        runs = await site.ticket(Principal("U", scopes=frozenset({EXECUTE_GRAPH})))
        stop = {"method": "stop_graph_execution", "data": {"graph_exec_id": "E"}}
        assert (await reads.subscribe("E", strict=True))["success"]
        assert (await reads.ask(stop))["method"] == "error"
        assert (await runs.subscribe("E", strict=True))["method"] == "error"
        assert (await runs.ask(stop))["success"]
        await site.rig.publisher.node(1)
        await site.rig.publisher.notify("U", text="private")
        assert (await reads.get())["method"] == "node_execution_event"
        await reads.expect_silence()
        await runs.expect_silence()


# ---- revocation ----------------------------------------------------------------------------------------------------


async def test_sockets_of_a_revoked_token_are_closed_at_once() -> None:
    async with opened() as site:
        await site.rig.publisher.create()
        revoked, other, guest = site.user("U", "T1"), site.user("U", "T2"), site.guest(execution_tape("E"))
        for client in (revoked, other, guest):
            assert (await client.subscribe("E"))["success"]
        await site.revocations.revoke_token("T1")
        assert await revoked.until_closed() == 4003
        await other.expect_silence()
        await site.revocations.revoke_token("S")
        assert await guest.until_closed() == 4003
        assert await site.user("U", "T1").until_closed() == 4003, "and it cannot come back"
        await other.expect_silence()


async def test_all_sockets_of_a_user_and_nobody_elses() -> None:
    async with opened() as site:
        ours = [site.user("U", f"T{number}") for number in range(3)]
        theirs = site.user("V", "T1")
        for client in (*ours, theirs):
            await client.expect_silence()
        await site.revocations.revoke_user("U")
        assert [await client.until_closed() for client in ours] == [4003] * 3
        assert await site.user("U", "T9").until_closed() == 4003, "issued before, by the second"
        await theirs.expect_silence()


async def test_a_token_that_is_revoked_while_it_is_let_in() -> None:
    """The store was asked before, the event came before the socket was there."""
    async with opened() as site:
        client = site.user("U", "T1")
        await site.control.publish(TokensRevoked(token_id="T1"))
        assert await client.until_closed() == 4003


async def test_what_the_bus_has_lost_is_asked_for() -> None:
    async with opened() as site:
        lost, kept = site.user("U", "T1"), site.user("U", "T2")
        for client in (lost, kept):
            await client.expect_silence()
        # remembered by a process whose event did not arrive here
        await Revocations(site.revocations._ephemeral, MemoryBus()).revoke_token("T1")
        await lost.expect_silence()
        site.rig.gateway.warden.follow(None)
        assert await lost.until_closed() == 4003
        await kept.expect_silence()


async def test_a_look_that_fails_ends_nothing_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as site:
        client = site.user("U", "T1")
        await client.expect_silence()

        async def torn(principal: Principal) -> bool:
            raise TypeError("nobody foresaw it")

        with monkeypatch.context() as patched:
            patched.setattr(site.rig.gateway.warden._doorkeeper, "is_revoked", torn)
            site.rig.gateway.warden.follow(None)
            await client.expect_silence()
        assert site.rig.counts.values["internal_errors_total,control"] == 1
        await site.revocations.revoke_user("U")
        assert await client.until_closed() == 4003


async def test_rubbish_on_the_control_channel_changes_nothing() -> None:
    async with opened() as site:
        client = site.user("U", "T1")
        await client.expect_silence()
        for data in (b"", b"{}", b'{"payload":{"event_type":"tokens_revoked"}}', b'{"payload":{"event_type":"new"}}'):
            await site.rig.bus.publish(gateway_channel(), data)
        await client.expect_silence()
        await site.rig.bus.publish(gateway_channel(), encode_control(TokensRevoked(token_id="T1")))
        assert await client.until_closed() == 4003


# ---- permissions ---------------------------------------------------------------------------------------------------


async def test_what_is_not_allowed_any_more_ends() -> None:
    async with opened() as site:
        for name in ("E", "F"):
            await site.rig.publisher.create(name)
        client = site.rig.connect("U")
        for name in ("E", "F"):
            await client.subscribe(name)
        site.check.taken.add(("U", execution_tape("E")))
        await client.expect_silence()
        await site.control.permission_changed(user_id="V")
        await site.control.permission_changed(tape=graph_tape("G"))
        await client.expect_silence()
        await site.control.permission_changed(user_id="U", tape=execution_tape("E"))
        told = await client.get()
        assert (told["method"], told["channel"]) == ("unsubscribed", "U|graph_exec#E")
        await site.rig.publisher.node(1, "E")
        await site.rig.publisher.node(1, "F")
        assert (await client.get())["channel"] == "U|graph_exec#F"
        await client.expect_silence()
        assert (await client.subscribe("E", strict=True))["method"] == "error"


async def test_a_refresh_brings_the_rights_of_the_new_token_alone() -> None:
    async with opened() as site:
        await site.rig.publisher.create()
        await job(site, "J", owner=None)
        client = site.rig.connect("U", role="admin")
        assert (await client.ask({"method": "subscribe_job", "data": {"job_id": "J", "strict": True}}))["success"]
        refresh = {"method": "refresh", "data": {"token": site.rig.token("U", role="user")}}
        assert (await client.ask(refresh))["success"]
        await asyncio.sleep(0)
        told = await client.get()
        assert (told["method"], told["channel"]) == ("unsubscribed", "U|job#J")
        await site.rig.publisher.job("task_started", "J", user=None)
        await client.expect_silence()


async def test_a_refresh_does_not_outlive_its_revocation() -> None:
    async with opened() as site:
        client = site.user("U", "T1")
        now = site.rig.clock.now()
        newer = issue_token(KEY, user_id="U", now=now, ttl=timedelta(days=1), token_id="T2")
        assert (await client.ask({"method": "refresh", "data": {"token": newer}}))["success"]
        await site.control.publish(TokensRevoked(token_id="T1"))
        await client.expect_silence()
        await site.control.publish(TokensRevoked(token_id="T2"))
        assert await client.until_closed() == 4003
