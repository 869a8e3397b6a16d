"""A WebSocket client at the level of bytes, for tests of servers. It reads only when it is asked to."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Self

from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import CONNECTING
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

READ_BYTES = 1 << 16


class SocketClient:
    """One connection. What came stands in `messages`, `pings` and `pongs`; `closed` is the server's close.

    The grammar is `websockets`': what the server says wrongly ends up in `fault`. With `answers=False` it answers
    neither pings nor a close.
    """

    def __init__(self, link: socket.socket, protocol: ClientProtocol, *, answers: bool) -> None:
        self._link = link
        self._protocol = protocol
        self._answers = answers
        self._loop = asyncio.get_running_loop()
        self._partial: list[bytes] = []
        self._partial_is_text = False
        self.messages: deque[str | bytes] = deque()
        self.pings: list[bytes] = []
        self.pongs: list[bytes] = []
        self.ended = False

    @classmethod
    async def connect(
        cls,
        port: int,
        path: str = "/",
        *,
        subprotocols: Sequence[str] = (),
        origin: str | None = None,
        receive_buffer: int | None = None,
        compressed: bool = False,
        answers: bool = True,
    ) -> Self:
        """The handshake done.

        Raises:
            InvalidStatus: the server refused; `.response` has status and body.
            InvalidHandshake: another fault of the handshake.
        """
        client = cls(
            await _link(port, receive_buffer), _protocol(port, path, subprotocols, compressed), answers=answers
        )
        try:
            request = client._protocol.connect()
            if origin is not None:
                request.headers["Origin"] = origin
            client._protocol.send_request(request)
            await client._flush()
            while client._protocol.state is CONNECTING and not client.ended:
                await client.read()
        except BaseException:
            client.vanish()
            raise
        fault = client._protocol.handshake_exc
        if fault is not None:
            while not client.ended:  # the body of a refusal
                await client.read()
            client.vanish()
            raise fault
        return client

    @property
    def subprotocol(self) -> str | None:
        return self._protocol.subprotocol

    @property
    def closed(self) -> tuple[int, str] | None:
        """Code and reason of the server's close frame."""
        close: Close | None = self._protocol.close_rcvd
        return None if close is None else (int(close.code), close.reason)

    @property
    def fault(self) -> Exception | None:
        """What was wrong in the server's bytes; None, too, when they ended without a close."""
        fault = self._protocol.parser_exc
        return None if isinstance(fault, EOFError) else fault

    # ---- saying ----------------------------------------------------------------------------------------------------

    async def say(self, data: str | bytes) -> None:
        if isinstance(data, str):
            self._protocol.send_text(data.encode())
        else:
            self._protocol.send_binary(data)
        await self._flush()

    async def say_in_parts(self, parts: Sequence[bytes]) -> None:
        """One text message in several frames."""
        self._protocol.send_text(parts[0], fin=len(parts) == 1)
        for number, part in enumerate(parts[1:], 2):
            self._protocol.send_continuation(part, fin=number == len(parts))
        await self._flush()

    async def ping(self, data: bytes = b"") -> None:
        self._protocol.send_ping(data)
        await self._flush()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye; `read_to_end` hears the answer."""
        self._protocol.send_close(code, reason)
        await self._flush()

    async def write(self, data: bytes) -> None:
        """Bytes as they are."""
        try:
            await self._loop.sock_sendall(self._link, data)
        except OSError:
            self.ended = True

    def write_now(self, data: bytes) -> None:
        """Bytes as they are, in one packet, before the loop has its turn."""
        sent = self._link.send(data)
        assert sent == len(data)

    def vanish(self) -> None:
        """The connection is reset, without a word."""
        self.ended = True
        if self._link.fileno() >= 0:
            self._link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._link.close()

    # ---- hearing ---------------------------------------------------------------------------------------------------

    async def read(self) -> None:
        """Take in what is there, at least one byte or the end.

        Raises:
            ConnectionError: it had ended before.
        """
        if self.ended:
            raise ConnectionError(f"ended: {self.closed}")
        try:
            data = await self._loop.sock_recv(self._link, READ_BYTES)
        except OSError:
            data = b""
        if data:
            self._protocol.receive_data(data)
        else:
            self.ended = True
            self._protocol.receive_eof()
            self._link.close()
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._note(event)
        await self._flush()

    async def hear(self) -> str | bytes:
        """The next message.

        Raises:
            ConnectionError: there comes none any more.
        """
        while not self.messages:
            await self.read()
        return self.messages.popleft()

    async def hear_many(self, count: int) -> list[str | bytes]:
        return [await self.hear() for _ in range(count)]

    async def read_to_end(self) -> tuple[int, str] | None:
        """Take in everything until the connection is closed; the server's close."""
        while not self.ended:
            await self.read()
        return self.closed

    def _note(self, frame: Frame) -> None:
        data = bytes(frame.data)
        if frame.opcode is Opcode.PING:
            self.pings.append(data)
        elif frame.opcode is Opcode.PONG:
            self.pongs.append(data)
        elif frame.opcode is not Opcode.CLOSE:
            if frame.opcode is not Opcode.CONT:
                self._partial_is_text = frame.opcode is Opcode.TEXT
            self._partial.append(data)
            if frame.fin:
                whole, self._partial = b"".join(self._partial), []
                self.messages.append(whole.decode() if self._partial_is_text else whole)

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            is_answer = data[:1] in (b"\x8a", b"\x88") and self._protocol.close_rcvd_then_sent is not False
            if data and (self._answers or not is_answer):
                await self.write(data)


async def _link(port: int, receive_buffer: int | None) -> socket.socket:
    link = socket.socket()
    link.setblocking(False)
    if receive_buffer is not None:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await asyncio.get_running_loop().sock_connect(link, ("127.0.0.1", port))
    except BaseException:
        link.close()
        raise
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def _protocol(port: int, path: str, subprotocols: Sequence[str], compressed: bool) -> ClientProtocol:
    return ClientProtocol(
        parse_uri(f"ws://127.0.0.1:{port}{path}"),
        subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        extensions=[ClientPerMessageDeflateFactory()] if compressed else None,
        max_size=None,
    )
