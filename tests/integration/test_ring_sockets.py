"""The gateway on uvicorn with the ring: sockets come, go, fall behind and are torn while broadcasts go on."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop
from starlette.applications import Starlette

from livetape.gateway.member import Writer
from livetape.gateway.transports import ring_sender
from livetape.gateway.transports.http import http_protocol
from livetape.gateway.transports.ring import Ring
from livetape.gateway.transports.ring_sender import RingSender
from livetape.gateway.transports.uvicorn import gateway_protocol
from rings import needs_ring
from serving import serving
from unit.gateway.rig import PATIENCE_S, Rig, rigged

pytestmark = [needs_ring, pytest.mark.slow]

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
EXECUTIONS = ("E0", "E1", "E2")
WATCHERS = 24
STORM_S = 3.0
TINY_BUFFER = 2_304
PADDING = "x" * 1_500
EVENTS, BURST = 600, 30
SUBSCRIBE = "subscribe_graph_execution"

on_each_loop = pytest.mark.parametrize(
    "loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
NewLoop = Callable[[], asyncio.AbstractEventLoop]


class CountedRing(Ring):
    """Says how much went by it."""

    calls = 0
    short = 0
    """Of them, that not everybody took all of it."""

    def _send(self, *arguments: Any) -> list[int] | None:
        results = super()._send(*arguments)
        self.calls += 1
        self.short += results is not None
        return results


class NarrowSender(RingSender):
    """To sockets that take little at once."""

    def open(self, transport: asyncio.Transport) -> Writer:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
        return super().open(transport)


@dataclass
class Site:
    rig: Rig
    ring: CountedRing
    port: int
    numbers: Iterator[int] = field(default_factory=itertools.count)
    published: dict[str, int] = field(default_factory=dict)

    async def publish(self, execution: str) -> None:
        number = self.published[execution] = self.published.get(execution, -1) + 1
        payload = {
            "event_type": "node_execution_update", "graph_exec_id": execution, "node_id": number, "padding": PADDING,
        }  # fmt: skip
        await self.rig.publisher._publish(execution, payload)

    async def storm(self) -> None:
        """Events for everybody, as many as the loop has time for."""
        for turn in itertools.count():
            for execution in EXECUTIONS:
                await self.publish(execution)
            await asyncio.sleep(0 if turn % 8 else 0.002)


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Site]:
    ring = CountedRing(16)
    sender = NarrowSender(ring)
    async with rigged(parts={"sender": sender}, max_sockets_per_user=1000, **options) as rig:
        for execution in EXECUTIONS:
            await rig.publisher.create(execution)
        app = Starlette(routes=rig.gateway.routes())
        async with serving(app, ws=gateway_protocol(sender), http=http_protocol(), timeout_graceful_shutdown=5) as port:
            try:
                yield Site(rig, ring, port)
            finally:
                rig.gateway.drain()
    assert not sender._busy, "sockets that are gone are still known"
    sender.close()


class Watcher:
    """A client at the level of bytes. What it hears is checked at once."""

    def __init__(self, site: Site, execution: str, *, slow: bool = False) -> None:
        self._site = site
        self._execution = execution
        self._slow = slow
        self._link = socket.socket()
        self._loop = asyncio.get_running_loop()
        self._data = bytearray()
        self.numbers: list[int] = []
        self.closed: int | None = None
        self.over = False
        self.subscribed = asyncio.Event()

    async def come(self) -> None:
        link = self._link
        link.setblocking(False)
        if self._slow:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TINY_BUFFER)
        await self._loop.sock_connect(link, ("127.0.0.1", self._site.port))
        await self._loop.sock_sendall(
            link,
            f"GET /ws?token={self._site.rig.token()} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode(),
        )
        while b"\r\n\r\n" not in self._data:
            self._data += await self._loop.sock_recv(link, 1 << 16)
        head, _, rest = bytes(self._data).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        self._data = bytearray(rest)
        await self.say(TEXT, json.dumps({"method": SUBSCRIBE, "data": {"graph_exec_id": self._execution}}).encode())

    async def say(self, opcode: int, payload: bytes, *, masked: bool = True) -> None:
        size = len(payload)
        head = bytes((0x80 | opcode, masked << 7 | (size if size < 126 else 126)))
        head += b"" if size < 126 else size.to_bytes(2, "big")
        await self._loop.sock_sendall(self._link, head + (bytes(4) if masked else b"") + payload)

    async def read(self) -> None:
        """To the end."""
        while not self.over:
            if self._slow:
                await asyncio.sleep(0.002)
            try:
                data = await self._loop.sock_recv(self._link, 4_096 if self._slow else 1 << 16)
            except OSError:
                data = b""
            if not data:
                self.over = True
            self._data += data
            self._take()
        if self.closed is None or self._data:
            assert self.closed is None, f"after its close came {bytes(self._data[:100])!r}"

    def _take(self) -> None:
        while len(self._data) >= 4:
            first, size = self._data[0], self._data[1]
            begin = 2
            if size == 126:
                size, begin = int.from_bytes(self._data[2:4], "big"), 4
            assert size < 126 or begin == 4, "no frame is that large"
            assert first & 0x70 == 0, "a frame begins elsewhere"
            if len(self._data) < begin + size:
                return
            payload = bytes(self._data[begin : begin + size])
            del self._data[: begin + size]
            assert self.closed is None, "a frame after the close"
            self._hear(first & 0x0F, payload)
        if len(self._data) >= 2 and self._data[0] == 0x80 | CLOSE and self._data[1] == 0:
            raise AssertionError("a close without code")

    def _hear(self, opcode: int, payload: bytes) -> None:
        if opcode == CLOSE:
            self.closed = int.from_bytes(payload[:2], "big")
            return
        if opcode in (PING, PONG):
            return
        assert opcode == TEXT, opcode
        message = json.loads(payload)
        assert message["channel"] == f"U|graph_exec#{self._execution}", message
        if message["method"] == SUBSCRIBE:
            assert message["success"]
            self.subscribed.set()
            return
        data = message["data"]
        assert data["graph_exec_id"] == self._execution
        assert data["padding"] == PADDING
        if self.numbers:
            assert data["node_id"] == self.numbers[-1] + 1, "a frame is lost, doubled or out of order"
        self.numbers.append(data["node_id"])

    async def leave(self, how: str) -> None:
        if how == "reset":
            self.over = True
            self._link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._link.close()
        elif how == "close":
            await self.say(CLOSE, b"\x03\xe8")
        elif how == "fault":
            await self.say(TEXT, b"not masked", masked=False)
        elif how == "eof":
            self._link.shutdown(socket.SHUT_WR)

    def drop(self) -> None:
        self._link.close()


class Crowd:
    """So many watchers, each with a task that reads."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.watchers: list[Watcher] = []
        self._reading: dict[Watcher, asyncio.Task[None]] = {}

    async def add(self, execution: str, *, slow: bool = False) -> Watcher:
        watcher = Watcher(self.site, execution, slow=slow)
        await watcher.come()
        self.watchers.append(watcher)
        self._reading[watcher] = asyncio.create_task(watcher.read())
        return watcher

    async def remove(self, watcher: Watcher, how: str) -> None:
        self.watchers.remove(watcher)
        reading = self._reading.pop(watcher)
        await watcher.leave(how)
        if how == "reset":  # whoever comes next gets its descriptors, here and there
            reading.cancel()
            await asyncio.wait({reading})
            if not reading.cancelled():
                reading.result()
        else:
            async with asyncio.timeout(PATIENCE_S):
                await reading
            assert watcher.closed == {"close": 1000, "fault": 1002, "eof": None}[how]
        watcher.drop()

    def check(self) -> None:
        """Nobody has heard anything wrong so far."""
        for task in self._reading.values():
            if task.done():
                task.result()

    async def end(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            for watcher, task in self._reading.items():
                await task
                watcher.drop()


@asynccontextmanager
async def storming(site: Site) -> AsyncIterator[None]:
    task = asyncio.create_task(site.storm())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()


def run(loop: NewLoop, scenario: Callable[[], Awaitable[None]]) -> None:
    unforeseen: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unforeseen.append(context))
        await scenario()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(watched())
    assert unforeseen == []


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in errors if record.name != "asyncio"] == []


@on_each_loop
@pytest.mark.parametrize(
    "ways", [["reset"], ["close", "fault", "eof"], ["reset", "close", "fault", "eof"]], ids="-".join
)
def test_who_comes_gets_only_its_own_whoever_goes(loop: NewLoop, ways: list[str]) -> None:
    """New clients get the descriptors of those that have gone, on the server's side too."""

    async def scenario() -> None:
        chance = random.Random(1)
        async with opened() as site:
            crowd, gone = Crowd(site), 0
            for number in range(WATCHERS):
                await crowd.add(EXECUTIONS[number % 3])
            async with storming(site):
                end = asyncio.get_running_loop().time() + STORM_S
                while asyncio.get_running_loop().time() < end:
                    leaving = chance.sample(crowd.watchers, 4)
                    for watcher in leaving:
                        await crowd.remove(watcher, chance.choice(ways))
                        gone += 1
                    for _ in leaving:
                        await crowd.add(chance.choice(EXECUTIONS))
                    crowd.check()
                    await asyncio.sleep(chance.choice([0, 0, 0.005]))
            site.rig.gateway.drain()
            await crowd.end()
            assert gone > 20
            assert site.ring.calls > 100

    run(loop, scenario)


@on_each_loop
def test_who_stays_gets_all_however_slowly_it_reads(loop: NewLoop) -> None:
    async def scenario() -> None:
        async with opened() as site:
            crowd = Crowd(site)
            for number in range(WATCHERS):
                await crowd.add("E0", slow=number % 3 == 0)
            for watcher in crowd.watchers:
                await watcher.subscribed.wait()
            async with asyncio.timeout(3 * PATIENCE_S):
                for number in range(EVENTS):
                    await site.publish("E0")
                    if number % BURST == BURST - 1:  # those that fell behind catch up, and fall behind again
                        while any(len(watcher.numbers) <= number and not watcher.over for watcher in crowd.watchers):
                            crowd.check()
                            await asyncio.sleep(0.005)
            assert [watcher.numbers == list(range(EVENTS)) for watcher in crowd.watchers] == [True] * WATCHERS
            assert site.ring.short > 5, "nobody was slow enough"
            site.rig.gateway.drain()
            await crowd.end()

    run(loop, scenario)


@on_each_loop
def test_when_the_server_closes_nothing_follows_its_close(loop: NewLoop) -> None:
    async def scenario() -> None:
        for slow in (False, True):
            async with opened() as site:
                crowd = Crowd(site)
                for number in range(WATCHERS):
                    await crowd.add(EXECUTIONS[number % 2], slow=slow and number % 4 == 0)
                async with storming(site):
                    await asyncio.sleep(0.3)
                    site.rig.gateway.drain()
                    await asyncio.sleep(0.3)
                await crowd.end()
                assert {watcher.closed for watcher in crowd.watchers} <= {1001, 1012, None}
                assert sum(watcher.closed is not None for watcher in crowd.watchers) >= WATCHERS * 3 // 4

    run(loop, scenario)


def test_few_sockets_do_without() -> None:
    async def scenario() -> None:
        async with opened() as site:
            crowd = Crowd(site)
            for _ in range(ring_sender.FEWEST - 1):
                await crowd.add("E0")
            calls = site.ring.calls
            async with storming(site):
                await asyncio.sleep(0.2)
            assert site.ring.calls == calls
            assert all(watcher.numbers for watcher in crowd.watchers)
            site.rig.gateway.drain()
            await crowd.end()

    run(uvloop.new_event_loop, scenario)
