"""A gateway as a process, all that it says at its most talkative, and everything secret that it was told."""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from livetape.auth import issue_token
from livetape_process import LivetapeProcess, ending
from servers import RedisServer

pytestmark = [pytest.mark.needs("redis"), pytest.mark.slow]

KEY = "k" * 48


def make_token(user: str) -> str:
    return issue_token(KEY, user_id=user, now=datetime.now(UTC), ttl=timedelta(hours=1), role="user")


def say_raw(port: int, text: str) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
        link.sendall(text.encode())
        link.settimeout(5)
        link.recv(1000)


async def tell_everything(gateway: LivetapeProcess) -> list[str]:
    """Comes in by all doors, with what holds and with what does not; returns every secret."""
    by_query, by_protocol, by_header, newer = (make_token(name) for name in ("query", "protocol", "header", "query"))
    forged = by_query[:-6] + "forged"
    heartbeat = json.dumps({"method": "heartbeat"})
    url = gateway.ws_url
    secrets = [by_query, by_protocol, by_header, newer, forged, "no-such-ticket-1234"]
    async with connect(f"{url}?token={by_query}", proxy=None) as ws:
        for message in (
            {"method": "refresh", "data": {"token": newer}},
            {"method": "refresh", "data": {"token": forged}},
            {"method": "refresh", "data": [newer]},
            {"method": "error", "data": {"token": newer}, "error": f"my token is {newer}"},
        ):
            await ws.send(json.dumps(message))
        await ws.send(heartbeat)
        while "pong" not in await ws.recv():
            pass
    async with connect(url, subprotocols=[Subprotocol("livetape.v1"), Subprotocol(f"bearer.{by_protocol}")]) as ws:
        await ws.send(heartbeat)
        await ws.recv()
    async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        headers = {"authorization": f"Bearer {by_header}"}
        ticket = (await client.post("/api/ws-tickets", headers=headers)).json()["ticket"]
        secrets.append(ticket)
        for path in ("/api/jobs/none", "/api/nothing", "/metrics"):
            await client.get(path, params={"token": by_header, "ticket": ticket}, headers=headers)
    async with connect(f"{url}?ticket={ticket}", proxy=None) as ws:
        await ws.send(heartbeat)
        await ws.recv()
    for query in (f"token={forged}", f"ticket={ticket}", "ticket=no-such-ticket-1234"):
        async with connect(f"{url}?{query}", proxy=None) as ws:
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(ws.recv(), 10)
    with pytest.raises(InvalidStatus):
        async with connect(
            f"{url}?token={by_query}", proxy=None, additional_headers={"Origin": "https://evil.example"}
        ):
            pass
    for broken in (
        f"GET /ws?token={by_query} HTTP/1.1\r\nHost: x\r\n\r\n",
        f"GET /ws?token={by_query} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        f"rubbish /ws?token={by_query}\r\nAuthorization: Bearer {by_header}\r\n\r\n",
    ):
        await asyncio.to_thread(say_raw, gateway.port, broken)
    return secrets


@pytest.mark.parametrize("form", ["text", "json"])
async def test_no_secret_is_in_anything_that_is_said(form: str, tmp_path: Path, own_redis: RedisServer) -> None:
    environment = {
        "LIVETAPE_BUS": own_redis.url(),
        "LIVETAPE_JWT_VERIFY_KEY": KEY,
        "LIVETAPE_APP_ENV": "prod",
        "LIVETAPE_LOG_LEVEL": "debug",
        "LIVETAPE_LOG_FORMAT": form,
        "LIVETAPE_GATEWAY__REFUSE_DELAY_MIN_SECONDS": "0",
        "LIVETAPE_GATEWAY__REFUSE_DELAY_MAX_SECONDS": "0",
    }
    gateway = LivetapeProcess(tmp_path / "site", "serve", "gateway", environment=environment)
    with ending(gateway):
        gateway.start()
        secrets = await tell_everything(gateway)
        assert gateway.stop() == 0
    said = gateway.output()
    assert "token=***" in said, "it was not talkative"
    for secret in secrets:
        # Long texts are cut in the middle: neither end may be there. All our tokens begin alike.
        for part in (secret, secret[-16:], *secret.split(".")[1:]):
            assert part not in said, f"{part} of {secret}\n{said}"
