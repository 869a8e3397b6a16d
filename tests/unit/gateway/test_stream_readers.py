"""Event streams over HTTP end when their reader may not read any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from livetape.adapters.memory.bus import MemoryBus
from livetape.auth import Principal
from livetape.events.channel import execution_tape
from livetape.gateway.control import PermissionChanged, TokensRevoked
from livetape.gateway.options import GatewayOptions
from livetape.gateway.streams import TapeStreams
from livetape.gateway.subjects import Kind, Subject
from livetape.testing.fakes import FakeLog
from unit.gateway.rig import PATIENCE_S, Publisher

EXECUTION = Subject(Kind.EXECUTION, "E")
READER = Principal("U", token_id="T1")


class Site:
    def __init__(self, *, one_user: bool = False, **options: Any) -> None:
        self.bus, self.log = MemoryBus(), FakeLog()
        self.revoked: set[str | None] = set()
        self.streams = TapeStreams(
            GatewayOptions(**options),
            self.bus,
            self.log,
            is_revoked=lambda reader: reader.token_id in self.revoked,
            one_user=one_user,
        )
        self.publisher = Publisher(self.bus, self.log)

    async def watch(self, reader: Principal | None, media_type: str = "text/event-stream") -> asyncio.Task[bytes]:
        """Begins a stream; the task ends with what it sent."""
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "query_string": b"since=latest",
            "headers": [(b"accept", media_type.encode())],
        }
        tape = await self.log.describe(execution_tape("E"))
        assert tape is not None
        response = await self.streams.respond(Request(scope), tape, reader=reader)
        begun, sent = asyncio.Event(), bytearray()

        async def receive() -> MutableMapping[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.extend(message.get("body", b""))
            begun.set()

        async def answer() -> bytes:
            await response(scope, receive, send)
            return bytes(sent)

        task = asyncio.create_task(answer())
        async with asyncio.timeout(PATIENCE_S):
            await begun.wait()
        return task


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Site]:
    site = Site(**options)
    await site.publisher.create()
    running = asyncio.create_task(site.streams.run())
    await site.streams.ready.wait()
    try:
        yield site
    finally:
        running.cancel()
        await asyncio.wait({running})
        await site.bus.close()


async def ended(task: asyncio.Task[bytes]) -> bool:
    done, _ = await asyncio.wait({task}, timeout=0.05)
    return bool(done)


@pytest.mark.parametrize("media_type", ["text/event-stream", "application/x-ndjson"])
async def test_the_streams_of_whom_it_concerns_end(media_type: str) -> None:
    async with opened() as site:
        concerned = await site.watch(READER, media_type)
        another = await site.watch(Principal("U", token_id="T2"), media_type)
        nobodys = await site.watch(None, media_type)
        assert site.streams.readers() == {(READER, EXECUTION), (Principal("U", token_id="T2"), EXECUTION)}
        event = TokensRevoked(token_id="T1")
        site.streams.end_of(lambda reader, _: event.affects(reader))
        await asyncio.wait_for(concerned, PATIENCE_S)
        assert not await ended(another)
        site.streams.end_of(PermissionChanged(tape="execution_events:F").affects)
        assert not await ended(another)
        site.streams.end_of(PermissionChanged(tape=EXECUTION.tape).affects)
        await asyncio.wait_for(another, PATIENCE_S)
        assert not await ended(nobodys)
        site.streams.end_all()
        await asyncio.wait_for(nobodys, PATIENCE_S)
        assert site.streams.readers() == set()
        assert site.streams.open == 0


async def test_who_was_revoked_while_the_stream_was_opened_gets_nothing_of_it() -> None:
    async with opened() as site:
        site.revoked.add("T1")
        task = await site.watch(READER)
        await asyncio.wait_for(task, PATIENCE_S)
        await site.publisher.node(1)
        assert b"node_execution" not in task.result()


async def refusal(site: Site, reader: Principal | None) -> tuple[int, str]:
    headers = [(b"accept", b"text/event-stream")]
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
    tape = await site.log.describe(execution_tape("E"))
    assert tape is not None
    response = await site.streams.respond(Request(scope), tape, reader=reader)
    with pytest.raises(HTTPException) as raised:
        await response(scope, nothing, nothing)
    return raised.value.status_code, (raised.value.headers or {})["Retry-After"]


async def nothing(message: Any = None) -> Any:
    raise AssertionError(message)


async def test_one_user_has_so_many_streams_and_a_process_has() -> None:
    async with opened(max_streams_per_user=2, max_streams=4) as site:
        first = await site.watch(READER)
        await site.watch(Principal("U", token_id="T2"))
        assert await refusal(site, READER) == (429, "30")
        await site.watch(Principal("V"))
        assert await refusal(site, READER) == (429, "30")
        await site.watch(None)
        assert await refusal(site, None) == (503, "30")
        site.streams.end_of(lambda reader, _: reader == READER)
        await asyncio.wait_for(first, PATIENCE_S)
        assert site.streams.open == 3
        await site.watch(READER)
        site.streams.end_all()


async def test_where_nobody_is_asked_who_he_is_all_streams_are_one_users() -> None:
    async with opened(one_user=True, max_streams_per_user=1, max_streams=3) as site:
        for _ in range(3):
            await site.watch(READER)
        assert await refusal(site, READER) == (503, "30")
        site.streams.end_all()
