"""A client that knows only the seed's messages: literal replies, and nothing lost over the restart of a gateway."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from chaos.old_client import OldClient, subscribe
from chaos.site import Site
from chaos.sources import OUTPUT, ExecutionSource
from chaos.watchers import until
from livetape.auth import issue_token

pytestmark = [pytest.mark.slow, pytest.mark.needs("redis"), pytest.mark.timeout(90)]

KEY = secrets.token_hex(32)
USER, GRAPH, EXECUTION = "U", "G", "E"
FIVE = ["method", "data", "success", "channel", "error"]

# The recorded traffic of the seed, literally: what was sent, what was answered.
GOLDEN = [
    (
        '{"method":"subscribe_graph_execution","data":{"graph_exec_id":"E"}}',
        '{"method":"subscribe_graph_execution","data":null,"success":true,"channel":"U|graph_exec#E","error":null}',
    ),
    (
        '{"method":"subscribe_graph_executions","data":{"graph_id":"G"}}',
        '{"method":"subscribe_graph_executions","data":null,"success":true,"channel":"U|graph#G|executions","error":null}',
    ),
    (
        '{"method":"unsubscribe","data":{"graph_exec_id":"E"}}',
        '{"method":"unsubscribe","data":null,"success":true,"channel":"U|graph_exec#E","error":null}',
    ),
    (
        '{"method":"unsubscribe","data":{"graph_exec_id":"never"}}',
        '{"method":"unsubscribe","data":null,"success":true,"channel":null,"error":null}',
    ),
    (
        '{"method":"heartbeat","data":"ping","success":true}',
        '{"method":"heartbeat","data":"pong","success":true}',
    ),
    (
        '{"method":"subscribe_graph_execution","data":{}}',
        '{"method":"error","data":null,"success":false,"channel":null,"error":"Subscription data missing"}',
    ),
    (
        '{"method":"subscribe_graph_execution","data":{"id":"E"}}',
        '{"method":"error","data":null,"success":false,"channel":null,'
        '"error":"Invalid message data. Refer to the API schema"}',
    ),
    (
        '{"method":"fly"}',
        '{"method":"error","data":null,"success":false,"channel":null,'
        '"error":"Invalid message format. Review the schema and retry"}',
    ),
    (
        '{"method":"notification","data":{}}',
        '{"method":"error","data":null,"success":false,"channel":null,'
        '"error":"Message type is not processed by the server"}',
    ),
]  # fmt: skip


def token(user: str = USER) -> str:
    return issue_token(KEY, user_id=user, now=datetime.now(UTC), ttl=timedelta(minutes=30))


@asynccontextmanager
async def old_site(folder: Path, *, gateways: int = 1) -> AsyncIterator[tuple[Site, ExecutionSource]]:
    async with Site(folder, gateways=gateways, key=KEY, ping_interval_seconds=1.0) as site:
        source = ExecutionSource(site.url, EXECUTION, user_id=USER, graph_id=GRAPH, pause_s=0.02)
        site.sources.append(source)
        await source.open()
        yield site, source


@asynccontextmanager
async def going(*clients: OldClient) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(client.run()) for client in clients]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_replies_are_those_of_the_seed_byte_for_byte(tmp_path: Path) -> None:
    async with old_site(tmp_path) as (site, _):
        client = OldClient(site.ports, [sent for sent, _ in GOLDEN], token, heartbeat_s=60)
        async with going(client):
            await until(lambda: len(client.texts) == len(GOLDEN), "every message is answered")
        assert [text.decode() for text in client.texts] == [answer for _, answer in GOLDEN]


async def test_pushes_begin_with_the_five_keys_of_the_seed(tmp_path: Path) -> None:
    async with old_site(tmp_path) as (site, source):
        client = OldClient(site.ports, [GOLDEN[0][0]], token)
        async with going(client):
            await until(lambda: len(client.replies) == 1, "subscribed")
            for _ in range(12):
                await source.one()
            wanted = [payload for _, payload in await log_of(site, source) if b"output" not in payload[:40]][1:]
            await until(lambda: len(client.pushes) == len(wanted), "all have come")
    assert [data for _, data in client.pushes] == wanted
    for text in client.texts:
        if b"_event" not in text[:40]:
            continue
        message = json.loads(text)
        kind = message["method"].removesuffix("_event")
        assert kind in ("graph_execution", "node_execution"), "an old client is not sent single outputs"
        assert list(message)[:5] == FIVE
        data = text.partition(b'"data":')[2].rpartition(b',"success":null')[0].decode()
        seed = f'{{"method":"{kind}_event","data":{data},"success":null,"channel":"U|graph_exec#E","error":null'
        assert text.decode().startswith(seed), "what follows stands after the five, on top level"


async def log_of(site: Site, source: ExecutionSource) -> list[tuple[int, bytes]]:
    from chaos.sources import read_log

    epoch, entries = await asyncio.to_thread(read_log, site.url, source.subject.tape)
    assert source.truth.log(epoch, entries) == []
    return entries


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("where", ["the same", "another"])
async def test_the_rhythm_of_the_known_client_loses_nothing_over_a_restart(
    tmp_path: Path, how: str, where: str
) -> None:
    """It does not subscribe again: the gateway goes on for it. After SIGKILL it may see some events a second time."""
    async with old_site(tmp_path, gateways=2 if where == "another" else 1) as (site, source):
        client = OldClient(site.ports, [subscribe("subscribe_graph_execution", "graph_exec_id", EXECUTION)], token)
        publishing = asyncio.create_task(source.run())
        try:
            async with going(client):
                await until(lambda: len(client.pushes) > 20, "events come")
                first, gateway = client.pushes[0][1], site.gateways[0]
                for number in range(2):
                    gateway = site.gateways[number % len(site.gateways)]
                    before = client.connections
                    async with site.fault(f"{how} to the gateway") as window:
                        await asyncio.to_thread(gateway.kill if how == "SIGKILL" else gateway.stop)
                        client.at += where == "another"
                        await asyncio.sleep(0.5)
                    assert window.acknowledged > 0
                    await asyncio.to_thread(gateway.start)
                    await until(lambda was=before: client.connections > was, "it is back")
                    got = len(client.pushes)
                    await until(lambda had=got: len(client.pushes) > had + 20, "events come again", within_s=20)
                source.stop()
                await publishing
                entries = await log_of(site, source)
                last = next(payload for _, payload in reversed(entries) if not is_output(payload))
                await until(lambda: client.pushes[-1][1] == last, "it has the last one")
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
    wanted = [payload for _, payload in entries if not is_output(payload)]
    wanted = wanted[wanted.index(first) :]
    seen = [data for _, data in client.pushes]
    assert len(client.replies) == 1, "it has subscribed once"
    if how == "SIGTERM":
        assert seen == wanted
    else:
        assert list(dict.fromkeys(seen)) == wanted, "nothing lost, nothing out of order"
    assert client.pongs > 0
    assert site.gateway.tracebacks() == []


def is_output(payload: bytes) -> bool:
    return payload.startswith(b'{"event_type":"%b"' % OUTPUT.encode())


async def test_what_one_user_watched_is_not_given_to_another(tmp_path: Path) -> None:
    async with old_site(tmp_path) as (site, source):
        ask = [subscribe("subscribe_graph_execution", "graph_exec_id", EXECUTION)]
        mine, other = OldClient(site.ports, ask, token), OldClient(site.ports, [], lambda: token("V"))
        publishing = asyncio.create_task(source.run())
        try:
            async with going(mine, other):
                await until(lambda: len(mine.pushes) > 5 and other.connections == 1, "events come")
                await asyncio.to_thread(site.gateway.stop)
                await asyncio.to_thread(site.gateway.start)
                await until(lambda: other.connections == 2 and mine.connections == 2, "both are back")
                got = len(mine.pushes)
                await until(lambda: len(mine.pushes) > got + 10, "it goes on")
                assert other.pushes == []
                source.stop()
                await publishing
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
