"""Whatever happens to sockets, each client gets exactly its own frames, in order and whole; on both event loops, by
this system's kernel, by one that leaves much undone, and without any."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from livetape.gateway.member import Writer
from livetape.gateway.sender import PlainSender, Row, Sender
from livetape.gateway.transports.ring import Ring
from livetape.gateway.transports.ring_sender import RingSender
from rings import Answer, Kernel, needs_ring

HEAD = struct.Struct(">IIII")
"""Length of the body, for which client (0: for any), number, checksum of the body."""
SENT_BUFFER, READ_BUFFER = 8_192, 4_096
HIGH_WATER = 20_000
MOST_CLIENTS = 14
PATIENCE_S = 10


def frame_of(client: int, number: int, size: int) -> bytes:
    body = random.Random(number).randbytes(size)
    return HEAD.pack(size, client, number, zlib.crc32(body)) + body


def numbers_of(data: bytes, client: int) -> tuple[list[int], bool]:
    """Which frames these are, and whether the last is whole. Fails when they are not this client's or broken."""
    numbers: list[int] = []
    at = 0
    while len(data) - at >= HEAD.size:
        size, to, number, checksum = HEAD.unpack_from(data, at)
        assert to in (0, client), f"a frame of {to}"
        body = data[at + HEAD.size : at + HEAD.size + size]
        assert random.Random(number).randbytes(size).startswith(body), "a frame is broken"
        if len(body) < size:
            return numbers, False
        assert zlib.crc32(body) == checksum
        numbers.append(number)
        at += HEAD.size + size
    return numbers, at == len(data)


@dataclass(eq=False)
class Client(asyncio.Protocol):
    """The server's side of one connection, and its client."""

    name: int
    sender: Sender
    far: socket.socket
    on_behind: Callable[[], None] = lambda: None
    expected: list[int] = field(default_factory=list)
    perhaps: list[int] = field(default_factory=list)
    """Sent by who was called back: whenever."""
    got: bytearray = field(default_factory=bytearray)
    torn: bool = False
    """It may get no more from some point on."""
    closed: bool = False
    lost: bool = False
    over: bool = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by name
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self.write: Writer = (
            self.sender.open(self.transport) if isinstance(self.sender, RingSender) else self.transport.write
        )

    def pause_writing(self) -> None:
        self.on_behind()

    def eof_received(self) -> bool:
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(self.sender, RingSender):
            self.sender.cut(self.write)
        self.lost = self.torn = True

    def read(self) -> None:
        with suppress(BlockingIOError):
            while not self.over:
                try:
                    data = self.far.recv(1 << 16)
                except ConnectionResetError:
                    data = b""
                self.got += data
                self.over = not data

    def check(self) -> None:
        numbers, is_whole = numbers_of(bytes(self.got), self.name)
        extra = set(self.perhaps)
        own = [number for number in numbers if number not in extra]
        others = [number for number in numbers if number in extra]
        if self.torn:
            assert own == self.expected[: len(own)]
            assert others == self.perhaps[: len(others)]
        else:
            assert is_whole
            assert (own, others) == (self.expected, self.perhaps)


class SocketMachine(RuleBasedStateMachine):
    """Hands frames to clients that read, do not, close, reset and come."""

    loop_factory: Callable[[], asyncio.AbstractEventLoop]
    new_sender: Callable[[], tuple[Sender, Kernel | None]]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=type(self).loop_factory)
        self.loop = self.runner.get_loop()
        self.loop.set_exception_handler(self.unforeseen)
        self.faults: list[str] = []
        self.sender, self.kernel = type(self).new_sender()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENT_BUFFER)
        self.clients: list[Client] = []
        self.all: list[Client] = []
        self.rows: list[tuple[list[Client], Row]] = []
        self.number = 0
        self.is_behind = False

    def unforeseen(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        self.faults.append(str(context))

    def next(self) -> int:
        self.number += 1
        return self.number

    def open(self) -> list[Client]:
        """Whom something may be handed to: who was closed is out of every list, who was lost may be in some."""
        return [client for client in self.clients if not client.closed]

    async def connect(self) -> None:
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_BUFFER)
        far.connect(self.listener.getsockname())
        far.setblocking(False)
        near, _ = self.listener.accept()
        near.setblocking(False)
        client = Client(len(self.all) + 1, self.sender, far)
        client.torn = self.kernel is not None and self.kernel.dumb
        client.on_behind = lambda: self.behind(client)
        self.all.append(client)
        self.clients.append(client)
        await self.loop.connect_accepted_socket(lambda: client, near)

    def behind(self, client: Client) -> None:
        """As the gateway does: others are handed what waits, when one of them falls behind."""
        if not self.is_behind and client.name % 2:
            self.is_behind = True
            others = [other for other in self.open() if not other.lost]
            number = self.next()
            for other in others:
                other.perhaps.append(number)
            self.sender.send_all([other.write for other in others], frame_of(0, number, 50))
            self.is_behind = False

    # ---- rules -----------------------------------------------------------------------------------------------------

    @initialize(count=st.integers(6, 10))
    def begin(self, count: int) -> None:
        for _ in range(count):
            self.runner.run(self.connect())

    sizes = st.sampled_from([0, 1, 100, 3_000, 9_000, 30_000, 70_000])

    @rule(size=sizes, most=st.integers(4, MOST_CLIENTS))
    def send_all(self, size: int, most: int) -> None:
        async def send() -> None:
            clients = self.open()[:most]
            number = self.next()
            for client in clients:
                client.expected.append(number)
            self.sender.send_all([client.write for client in clients], frame_of(0, number, size))

        self.runner.run(send())

    @rule()
    def make_row(self) -> None:
        clients = self.open()
        self.rows = [*self.rows[-1:], (clients, Row([client.write for client in clients]))]

    @precondition(lambda self: self.rows)
    @rule(size=sizes, data=st.data())
    def send_row(self, size: int, data: st.DataObject) -> None:
        clients, row = data.draw(st.sampled_from(self.rows))
        if any(client.closed for client in clients):
            return
        begin = data.draw(st.sampled_from([0, 0, 1, 3]))
        end = data.draw(st.sampled_from([len(clients), len(clients), max(begin, len(clients) - 2)]))

        async def send() -> None:
            number = self.next()
            for client in clients[begin:end]:
                client.expected.append(number)
            self.sender.send_row(row, begin, end, frame_of(0, number, size))

        self.runner.run(send())

    @rule(data=st.data(), again=st.booleans())
    def send_each(self, data: st.DataObject, *, again: bool) -> None:
        some = self.open()
        if not some:
            return
        if again:
            some = data.draw(st.lists(st.sampled_from(some), max_size=20))
        sizes = [data.draw(self.sizes) for _ in some]

        async def send() -> None:
            frames = []
            for client, size in zip(some, sizes, strict=True):
                number = self.next()
                client.expected.append(number)
                frames.append(frame_of(client.name, number, size))
            self.sender.send_each([client.write for client in some], frames)

        self.runner.run(send())

    @rule(data=st.data(), size=sizes, end=st.sampled_from(["", "", "abort", "close"]))
    def write(self, data: st.DataObject, size: int, end: str) -> None:
        """To one, and perhaps its end, and to all in the same turn."""
        some = [client for client in self.open() if not client.lost]
        if not some:
            return
        client = data.draw(st.sampled_from(some))

        async def write() -> None:
            number = self.next()
            client.expected.append(number)
            client.write(frame_of(client.name, number, size))
            if end == "abort":
                client.torn = True
                client.transport.abort()
            elif end == "close":
                client.closed = True
                client.transport.close()
            number = self.next()
            others = self.open()
            for other in others:
                other.expected.append(number)
            self.sender.send_all([other.write for other in others], frame_of(0, number, 10))

        self.runner.run(write())

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        for client in data.draw(st.lists(st.sampled_from(self.all), max_size=6)):
            client.read()

    @rule(data=st.data(), reset=st.booleans())
    def leave(self, data: st.DataObject, *, reset: bool) -> None:
        client = data.draw(st.sampled_from(self.all))
        client.torn = client.over = True
        if client.far.fileno() >= 0:
            if reset:
                client.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.far.close()

    @rule(turns=st.integers(1, 4))
    def turn(self, turns: int) -> None:
        async def wait() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.runner.run(wait())
        for client in self.clients:
            if client.lost and client not in [one for clients, _ in self.rows for one in clients]:
                client.closed = True
        self.clients = self.open()

    @precondition(lambda self: len(self.clients) < MOST_CLIENTS)
    @rule()
    def come(self) -> None:
        self.runner.run(self.connect())

    @precondition(lambda self: self.kernel is not None)
    @rule(most=st.sampled_from([None, None, 0, 1, 5]), late=st.booleans(), turned=st.booleans())
    def change(self, most: int | None, *, late: bool, turned: bool) -> None:
        def turned_round(answers: list[Answer]) -> list[Answer]:
            return answers[::-1]

        assert self.kernel is not None
        self.kernel.most, self.kernel.late = most, late
        self.kernel.order = turned_round if turned else list

    @precondition(lambda self: isinstance(self.sender, RingSender))
    @rule(sure=st.integers(0, 9))
    def break_ring(self, sure: int) -> None:
        if sure == 9 and self.kernel is not None:
            # Whoever is sent to next may be cut off.
            self.kernel.dumb = True
            for client in self.clients:
                client.torn = True

    # ---- the end ---------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        for client in self.all:
            if not client.lost:
                client.transport.close()
        end = self.loop.time() + PATIENCE_S
        while not all(client.over and client.lost for client in self.all):
            assert self.loop.time() < end, "somebody waits for ever"
            for client in self.all:
                client.read()
            await asyncio.sleep(0)

    def teardown(self) -> None:
        try:
            torn = [client for client in self.all if client.torn]
            self.runner.run(self.drain())
            for client in self.all:
                client.torn = client in torn
                client.check()
            assert self.faults == []
        finally:
            if isinstance(self.sender, RingSender):
                self.sender.close()
            for client in self.all:
                client.far.close()
                if not client.lost:
                    client.transport.abort()
            self.listener.close()
            self.runner.run(asyncio.sleep(0))
            self.runner.close()


def by_system() -> tuple[Sender, Kernel | None]:
    return RingSender(Ring(8)), None


def by_memory() -> tuple[Sender, Kernel | None]:
    kernel = Kernel(first=(1 << 32) - 3)
    return RingSender(kernel.ring(8)), kernel


def by_writers() -> tuple[Sender, Kernel | None]:
    return PlainSender(), None


@contextmanager
def silent() -> Iterator[None]:
    """Sockets fail here all the time."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(
    "sender",
    [pytest.param(by_system, marks=needs_ring, id="system"), by_memory, by_writers],
)
@pytest.mark.slow
def test_each_client_gets_its_own_frames_in_order_and_whole(
    loop: Callable[[], asyncio.AbstractEventLoop], sender: Callable[[], tuple[Sender, Kernel | None]]
) -> None:
    class Machine(SocketMachine):
        loop_factory = staticmethod(loop)
        new_sender = staticmethod(sender)

    with silent():
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
