"""A real browser reads why it was turned away or sent off: our close codes and reasons, not 1006."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from browser.conftest import OpenPage
from gateway_process import GatewayProcess, running
from livetape.auth import issue_token
from servers import RedisServer
from servers import running as running_redis

pytestmark = [
    pytest.mark.browser, pytest.mark.slow, pytest.mark.needs("redis"), pytest.mark.asyncio(loop_scope="session"),
]  # fmt: skip

KEY = secrets.token_hex(32)

# What a page sees of a socket into which it says some words: whether it was opened, what it heard, how it ended.
SEES = """([url, protocols, words]) => new Promise((done) => {
  const socket = protocols ? new WebSocket(url, protocols) : new WebSocket(url);
  const seen = {opened: false, failed: false, protocol: null, messages: []};
  window.__socket = seen;
  socket.onopen = () => { seen.opened = true; seen.protocol = socket.protocol; for (const w of words) socket.send(w); };
  socket.onmessage = (event) => seen.messages.push(event.data);
  socket.onerror = () => { seen.failed = true; };
  socket.onclose = (event) => done({...seen, code: event.code, reason: event.reason, clean: event.wasClean});
})"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("close-codes")
    with running_redis(RedisServer("redis", folder / "redis")) as redis:
        options = {"refuse_delay_min_seconds": 0.05, "refuse_delay_max_seconds": 0.1, "drain_seconds": 1}
        with running(GatewayProcess(folder / "gateway", redis.url(), key=KEY, **options)) as (process,):
            yield process


def good(**more: Any) -> str:
    ttl = timedelta(minutes=5)
    return issue_token(KEY, user_id="user-1", now=datetime.now(UTC), ttl=ttl, **more)


def without_user() -> str:
    now = datetime.now(UTC)
    return jwt.encode({"aud": "authenticated", "iat": now, "exp": now + timedelta(minutes=5)}, KEY, "HS256")


def expired() -> str:
    past = datetime.now(UTC) - timedelta(hours=1)
    return issue_token(KEY, user_id="user-1", now=past, ttl=timedelta(minutes=5))


REFUSED = {
    "no token": (lambda: "", 4001, "Missing authentication token"),
    "a token without a user": (lambda: f"?token={without_user()}", 4002, "Invalid token"),
    "a token that is none": (lambda: "?token=nonsense", 4003, "Invalid token"),
    "an expired token": (lambda: f"?token={expired()}", 4003, "Invalid token"),
    "a token for others": (lambda: f"?token={good(audience='elsewhere')}", 4003, "Invalid token"),
}


@pytest.mark.parametrize("how", REFUSED)
async def test_a_page_sees_why_it_is_not_let_in(gateway: GatewayProcess, open_page: OpenPage, how: str) -> None:
    query, code, reason = REFUSED[how]
    watched = await open_page(f"{gateway.url}/metrics")
    watched.allow("favicon.ico")
    url = f"ws://127.0.0.1:{gateway.port}/ws{query()}"
    seen = await watched.page.evaluate(SEES, [url, None, ['{"method":"heartbeat"}']])
    assert (seen["code"], seen["reason"], seen["clean"]) == (code, reason, True)
    assert seen["opened"], "it is accepted first, so that the page sees the code"
    assert not seen["failed"]
    assert seen["messages"] == [], "and is told nothing before"


@pytest.mark.parametrize("way", ["query", "protocol"])
async def test_a_page_with_a_token_is_let_in_and_told_of_a_restart(
    gateway: GatewayProcess, open_page: OpenPage, way: str
) -> None:
    watched = await open_page(f"{gateway.url}/metrics")
    watched.allow("favicon.ico")
    token = good()
    query, protocols = ("", ["livetape.v1", f"bearer.{token}"]) if way == "protocol" else (f"?token={token}", None)
    url = f"ws://127.0.0.1:{gateway.port}/ws{query}"
    going = asyncio.ensure_future(watched.page.evaluate(SEES, [url, protocols, ['{"method":"heartbeat"}']]))
    await watched.page.wait_for_function("() => window.__socket && window.__socket.messages.length === 1")
    try:
        await asyncio.to_thread(gateway.stop)
        seen = await going
    finally:
        await asyncio.to_thread(gateway.start)
    assert [json.loads(message)["method"] for message in seen["messages"]] == ["heartbeat", "reconnect"]
    assert seen["messages"][0] == '{"method":"heartbeat","data":"pong","success":true}'
    assert seen["protocol"] == ("livetape.v1" if way == "protocol" else "")
    assert (seen["code"], seen["reason"], seen["clean"]) == (1012, "Service restart", True)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A page without anything."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1\r\nConnection: close\r\n\r\n.")
    await writer.drain()
    writer.close()


async def test_a_page_of_another_origin_sees_no_code_of_ours(gateway: GatewayProcess, open_page: OpenPage) -> None:
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as elsewhere:
        watched = await open_page(f"http://127.0.0.1:{elsewhere.sockets[0].getsockname()[1]}/")
        watched.allow(r"WebSocket connection to .* failed")
        url = f"ws://127.0.0.1:{gateway.port}/ws?token={good()}"
        async with asyncio.timeout(20):
            seen = await watched.page.evaluate(SEES, [url, None, []])
    assert (seen["code"], seen["reason"], seen["clean"]) == (1006, "", False)
    assert seen["failed"]
    assert not seen["opened"]
    assert gateway.metric("gateway_rejected_total", reason="origin") >= 1
