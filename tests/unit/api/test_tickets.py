"""`POST /api/ws-tickets`, `POST /api/token-revocations`, and revoked tokens at every route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from livetape.adapters.memory.bus import MemoryBus
from livetape.adapters.memory.ephemeral import MemoryEphemeral
from livetape.auth import (
    DEFAULT_USER_ID,
    READ_GRAPH,
    Authenticator,
    ConnectionFacts,
    Principal,
    TokenOptions,
    TokenVerifier,
    issue_share_token,
    issue_token,
)
from livetape.errors import StoreUnavailableError
from livetape.gateway.problems import ERROR_HANDLERS
from livetape.gateway.revocation_routes import revocation_route
from livetape.gateway.revocations import Revocations
from livetape.gateway.ticket_routes import ticket_route
from livetape.gateway.tickets import Tickets
from unit.api.fakes import KEY, World, bearer

Connect = Callable[..., httpx2.AsyncClient]
PATH = "/api/ws-tickets"
BODY_KEYS = ["message", "detail", "hint", "type", "title", "status", "instance", "code", "errors"]


class Limited(Authenticator):
    """Everybody comes with a key that has scopes."""

    def authenticate(self, facts: ConnectionFacts, *, guests: bool = False) -> Principal:
        return replace(super().authenticate(facts, guests=guests), scopes=frozenset({READ_GRAPH}))


class Away(MemoryEphemeral):
    """A store that cannot be reached."""

    async def get(self, key: str) -> bytes | None:
        raise StoreUnavailableError("no route to redis.internal")

    async def incr(self, key: str, *, ttl_s: float, by: int = 1) -> int:
        raise StoreUnavailableError("no route to redis.internal")


class Site:
    """The API with its ticket route, and the same route in a gateway alone."""

    def __init__(self, *, ephemeral: MemoryEphemeral | None = None, **options: Any) -> None:
        self.store = ephemeral or MemoryEphemeral()
        self.tickets = Tickets(self.store, max_per_user=options.pop("max_per_user", 100))
        self.revocations = Revocations(self.store, MemoryBus())
        kind = options.pop("authenticator", Authenticator)
        self.authenticator = kind(TokenVerifier(TokenOptions(verify_key=KEY)), dev_user=options.get("dev_user", False))
        route = ticket_route(self.authenticator, self.tickets, self.revocations)
        routes = [route, revocation_route(self.authenticator, self.revocations)]
        self.world = World(routes=routes, revocations=self.revocations, **options)
        self.alone = Starlette(routes=routes, exception_handlers=ERROR_HANDLERS)


@pytest.fixture(params=["api", "alone"])
def opened(request: pytest.FixtureRequest, connected: Connect) -> Callable[..., httpx2.AsyncClient]:
    """A client of the one or the other."""

    def make(site: Site, **kwargs: Any) -> httpx2.AsyncClient:
        if request.param == "alone":
            site.world.app = site.alone
        return connected(site.world, **kwargs)

    return make


async def test_a_signed_in_caller_gets_a_ticket_for_itself(opened: Connect) -> None:
    site = Site()
    async with opened(site, headers=bearer(role="admin")) as client:
        answer = await client.post(PATH)
    assert answer.status_code == 201
    assert answer.headers["cache-control"].startswith("no-store")
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["ticket", "expires_at"]
    left = datetime.fromisoformat(body["expires_at"]) - datetime.now(UTC)
    assert timedelta(seconds=25) < left <= timedelta(seconds=30)
    principal = await site.tickets.redeem(body["ticket"])
    assert (principal.user_id, principal.role, principal.is_limited) == ("alice", "admin", False)


@pytest.mark.parametrize("body", [b"", b"{}", b"x" * 1000])
async def test_no_body_is_asked_for(opened: Connect, body: bytes) -> None:
    async with opened(Site(), headers=bearer()) as client:
        assert (await client.post(PATH, content=body)).status_code == 201


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer rubbish"},
        {
            "Authorization": "Bearer "
            + issue_share_token(KEY, tapes=["job_events:j"], now=datetime.now(UTC), ttl=timedelta(hours=1))
        },
    ],
    ids=["nothing", "rubbish", "a share token"],
)
async def test_nobody_else_does(opened: Connect, headers: dict[str, str]) -> None:
    async with opened(Site(), headers=headers) as client:
        answer = await client.post(PATH)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert list(answer.json()) == BODY_KEYS
    assert answer.json()["code"] == "unauthenticated"


async def test_a_ticket_is_no_login(opened: Connect) -> None:
    async with opened(Site(), headers=bearer()) as client:
        ticket = (await client.post(PATH)).json()["ticket"]
    async with opened(Site()) as stranger:
        assert (await stranger.post(f"{PATH}?ticket={ticket}")).status_code == 401
        assert (await stranger.post(PATH, headers={"Authorization": f"Bearer {ticket}"})).status_code == 401


async def test_too_many_tickets_of_one_user(opened: Connect) -> None:
    site = Site(max_per_user=3)
    async with opened(site, headers=bearer()) as client:
        statuses = [(await client.post(PATH)).status_code for _ in range(4)]
        refused = await client.post(PATH)
        assert (await client.post(PATH, headers=bearer("bob"))).status_code == 201
    assert statuses == [201, 201, 201, 429]
    assert (refused.json()["code"], refused.headers["retry-after"]) == ("rate_limited", "30")
    assert list(refused.json()) == BODY_KEYS


async def test_without_the_store_there_are_none_and_no_host_is_named(opened: Connect) -> None:
    async with opened(Site(ephemeral=Away()), headers=bearer()) as client:
        answer = await client.post(PATH)
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert "retry-after" in answer.headers
    assert "redis.internal" not in answer.text


async def test_other_methods_are_named(opened: Connect) -> None:
    async with opened(Site(), headers=bearer()) as client:
        answer = await client.get(PATH)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert list(answer.json()) == BODY_KEYS


async def test_the_body_of_an_error_by_accept(opened: Connect) -> None:
    async with opened(Site()) as client:
        answer = await client.post(PATH, headers={"Accept": "application/problem+json"})
    assert answer.headers["content-type"] == "application/problem+json"


async def test_the_development_user_gets_one_but_not_for_a_foreign_page(connected: Connect) -> None:
    site = Site(dev_user=True)
    async with connected(site.world) as client:
        answer = await client.post(PATH)
        assert (await site.tickets.redeem(answer.json()["ticket"])).user_id == DEFAULT_USER_ID
        assert (await client.post(PATH, headers={"Origin": "https://evil.example"})).status_code == 403


async def test_a_key_with_scopes_gets_a_ticket_with_these_and_nothing_else(connected: Connect) -> None:
    site = Site(authenticator=Limited)
    site.world.app.state.services = replace(site.world.app.state.services, authenticator=site.authenticator)
    async with connected(site.world, headers=bearer()) as client:
        ticket = (await client.post(PATH)).json()["ticket"]
        assert (await site.tickets.redeem(ticket)).scopes == frozenset({READ_GRAPH})
        for path in ("/api/graphs", "/api/jobs/j"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (403, "not_authorized"), path


async def test_a_revoked_token_is_refused_at_every_door(connected: Connect) -> None:
    site = Site()
    now = datetime.now(UTC)
    token = issue_token(KEY, user_id="alice", now=now, ttl=timedelta(hours=1), token_id="T1")
    async with connected(site.world, headers={"Authorization": f"Bearer {token}"}) as client:
        assert (await client.get("/api/graphs")).status_code == 200
        await site.revocations.revoke_token("T1", now + timedelta(hours=1))
        for method, path in (("GET", "/api/graphs"), ("POST", PATH), ("GET", "/api/jobs/j/events")):
            answer = await client.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), path
            assert answer.json()["detail"] == "Invalid token: it was revoked"
        assert (await client.get("/api/graphs", headers=bearer())).status_code == 200, "another token of the user"
        await site.revocations.revoke_user("alice")
        assert (await client.get("/api/graphs", headers=bearer())).status_code == 401


async def test_a_store_that_is_away_locks_nobody_out_of_the_rest(connected: Connect) -> None:
    async with connected(Site(ephemeral=Away()).world, headers=bearer()) as client:
        assert (await client.get("/api/graphs")).status_code == 200


async def test_a_share_token_opens_nothing_over_rest(connected: Connect) -> None:
    shared = issue_share_token(KEY, tapes=["job_events:j"], now=datetime.now(UTC), ttl=timedelta(hours=1))
    async with connected(Site().world, headers={"Authorization": f"Bearer {shared}"}) as client:
        for path in ("/api/graphs", "/api/jobs/j", "/api/jobs/j/events"):
            assert (await client.get(path)).status_code == 401


# ---- POST /api/token-revocations -----------------------------------------------------------------------------------

REVOKE = "/api/token-revocations"


def own(**claims: Any) -> dict[str, str]:
    now = datetime.now(UTC)
    token = issue_token(KEY, **{"user_id": "alice", "now": now, "ttl": timedelta(hours=1), "token_id": "T1", **claims})
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("body", [{"user_id": "alice"}, {"token_id": "T1"}])
async def test_everybody_may_sign_out(opened: Connect, body: dict[str, str]) -> None:
    async with opened(Site(), headers=own()) as client:
        answer = await client.post(REVOKE, json=body)
        assert (answer.status_code, answer.content) == (204, b"")
        assert (await client.post(PATH)).status_code == 401
        assert (await client.post(REVOKE, json=body)).status_code == 401


async def test_the_end_of_ones_own_token_is_not_for_the_caller_to_say(connected: Connect) -> None:
    site = Site()
    async with connected(site.world, headers=own()) as client:
        answer = await client.post(REVOKE, json={"token_id": "T1", "until": "2000-01-01T00:00:00Z"})
        assert answer.status_code == 204
    again = Revocations(site.store, MemoryBus())
    assert await again.is_revoked(Principal("alice", token_id="T1"))


@pytest.mark.parametrize("body", [{"user_id": "bob"}, {"token_id": "T2"}, {"token_id": "alice"}])
async def test_of_others_only_an_administrator_revokes(opened: Connect, body: dict[str, str]) -> None:
    site = Site()
    async with opened(site, headers=own()) as client:
        answer = await client.post(REVOKE, json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "not_authorized")
        assert not [key for key in site.store._values if key.startswith("revoked")]
        assert (await client.post(REVOKE, json=body, headers=own(role="admin"))).status_code == 204
        assert [key for key in site.store._values if key.startswith("revoked")]


async def test_a_key_with_scopes_revokes_nothing(opened: Connect) -> None:
    async with opened(Site(authenticator=Limited), headers=own(role="admin")) as client:
        assert (await client.post(REVOKE, json={"user_id": "alice"})).status_code == 403


async def test_nobody_revokes_unknown(opened: Connect) -> None:
    async with opened(Site()) as client:
        assert (await client.post(REVOKE, json={"user_id": "alice"})).status_code == 401


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b"{}", "application/json", 422),
        (b'{"user_id":"a","token_id":"b"}', "application/json", 422),
        (b'{"user_id":""}', "application/json", 422),
        (b'{"user_id":"alice","until":"2030-01-01T00:00:00Z"}', "application/json", 422),
        (b'{"token_id":"T1","until":"2030-01-01T00:00:00"}', "application/json", 422),
        (b'{"user_id":"alice","all":true}', "application/json", 422),
        (b"[", "application/json", 422),
        (b'{"user_id":"alice"}', "text/plain", 415),
        (b" " * 20_000, "application/json", 413),
    ],
)
async def test_bodies_that_are_none(opened: Connect, content: bytes, media_type: str, status: int) -> None:
    async with opened(Site(), headers=own()) as client:
        answer = await client.post(REVOKE, content=content, headers={"Content-Type": media_type})
        assert answer.status_code == status
        assert list(answer.json()) == BODY_KEYS
        assert (await client.post(PATH)).status_code == 201, "nothing was revoked"
