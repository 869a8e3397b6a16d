"""Tickets and revoked tokens at a real server, and over its restart."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from acceptance.server import MakeServer, Server, cli
from acceptance.watch import ask, socket


def token(server: Server, user: str, *options: str) -> str:
    made = cli("token", "create", "--user", user, "--data-dir", str(server.data_dir), *options)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def post(server: Server, path: str, token: str, body: Any = None) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx2.post(f"{server.url}{path}", json=body, headers=headers, trust_env=False)


async def closed(address: str) -> tuple[int, str]:
    """How a connection that is not let in is closed."""
    async with socket(address) as ws:
        return await ended(ws)


async def ended(ws: Any) -> tuple[int, str]:
    async with asyncio.timeout(10):
        await ws.wait_closed()
    return ws.close_code, ws.close_reason


@pytest.mark.slow
async def test_tickets_and_revocations_outlive_a_restart(make_server: MakeServer) -> None:
    fast = {"LIVETAPE_GATEWAY__REFUSE_DELAY_MIN_SECONDS": "0", "LIVETAPE_GATEWAY__REFUSE_DELAY_MAX_SECONDS": "0.1"}
    server = make_server(env=fast)
    await asyncio.to_thread(server.start)
    alice, bob = [await asyncio.to_thread(token, server, name) for name in ("alice", "bob")]
    admin = await asyncio.to_thread(token, server, "boss", "--role", "admin")
    alices, bobs, again = (post(server, "/api/ws-tickets", one).json()["ticket"] for one in (alice, bob, bob))
    async with (
        socket(f"{server.ws_url}?ticket={alices}") as first,
        socket(f"{server.ws_url}?ticket={bobs}") as other,
    ):
        for ws in (first, other):
            assert json.loads(await ask(ws, {"method": "heartbeat"}))["data"] == "pong"
        answer = await asyncio.to_thread(post, server, "/api/token-revocations", admin, {"user_id": "alice"})
        assert answer.status_code == 204
        assert await ended(first) == (4003, "Invalid token")
        assert json.loads(await ask(other, {"method": "heartbeat"}))["data"] == "pong"
    assert await closed(f"{server.ws_url}?ticket={bobs}") == (4003, "Invalid token"), "a second time"

    assert await asyncio.to_thread(server.stop) == 0
    await asyncio.to_thread(server.start)
    assert post(server, "/api/ws-tickets", alice).status_code == 401
    assert await closed(f"{server.ws_url}?token={alice}") == (4003, "Invalid token")
    assert await closed(f"{server.ws_url}?ticket={alices}") == (4003, "Invalid token")
    async with socket(f"{server.ws_url}?ticket={again}") as ws:
        assert json.loads(await ask(ws, {"method": "heartbeat"}))["data"] == "pong"
    secrets = (alice, bob, admin, alices, bobs, again)
    assert not [secret for secret in secrets if secret in server.output()], "none of them is in the log"
