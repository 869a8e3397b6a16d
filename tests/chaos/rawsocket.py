"""A WebSocket client in a few lines, for hundreds of sockets in one process. It keeps every byte as it came."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import cast

HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
OPEN_S = 20.0

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class RefusedError(OSError):
    """The handshake was answered with something else than 101."""


def frame(opcode: int, data: bytes, *, fin: bool = True) -> bytes:
    """A frame as clients send it: masked, and with a mask of zeros it stays readable."""
    head = bytes([opcode | (0x80 if fin else 0)])
    if len(data) < 126:
        head += bytes([0x80 | len(data)])
    elif len(data) < 1 << 16:
        head += b"\xfe" + struct.pack(">H", len(data))
    else:
        head += b"\xff" + struct.pack(">Q", len(data))
    return head + b"\0\0\0\0" + data


class Parser:
    """Frames of a server, from bytes as they come. Control frames may stand between the parts of a message."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._whole: bytearray | None = None

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(opcode, data) of each message or control frame that is complete."""
        buffer, at, found = self._buffer, 0, []
        buffer += data
        while len(buffer) - at >= 2:
            first, length = buffer[at], buffer[at + 1]
            begin = at + 2
            if length == 126:
                if len(buffer) - at < 4:
                    break
                length, begin = struct.unpack_from(">H", buffer, at + 2)[0], at + 4
            elif length == 127:
                if len(buffer) - at < 10:
                    break
                length, begin = struct.unpack_from(">Q", buffer, at + 2)[0], at + 10
            if len(buffer) < begin + length:
                break
            payload = bytes(buffer[begin : begin + length])
            at = begin + length
            opcode, fin = first & 0x0F, bool(first & 0x80)
            if opcode >= CLOSE or (fin and self._whole is None):
                found.append((opcode, payload))
            else:
                self._whole = (self._whole if self._whole is not None else bytearray()) + payload
                if fin:
                    found.append((TEXT, bytes(self._whole)))
                    self._whole = None
        del buffer[:at]
        return found


class RawSocket(asyncio.Protocol):
    """`on_text` is called with the bytes of each text message. `gone` is done when the connection is over."""

    def __init__(self, on_text: Callable[[bytes], None]) -> None:
        loop = asyncio.get_running_loop()
        self.on_text = on_text
        self.opened: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.close_code: int | None = None
        self.close_reason = ""
        self.answers_pings = True
        self.pings = 0
        self.transport: asyncio.Transport
        self._head = b""
        self._parser = Parser()

    # ---- asyncio ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            data = self._open(data)
        for opcode, payload in self._parser.feed(data):
            self._frame(opcode, payload)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionResetError("closed before the handshake"))
        if not self.gone.done():
            self.gone.set_result(None)

    # ---- out -------------------------------------------------------------------------------------------------------

    def send(self, text: str | bytes) -> None:
        self.raw(frame(TEXT, text.encode() if isinstance(text, str) else text))

    def raw(self, data: bytes) -> None:
        """Any bytes at all."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def close(self, code: int) -> None:
        """Say goodbye; it is over when the server has answered."""
        self.raw(frame(CLOSE, struct.pack(">H", code)))

    def cut(self) -> None:
        """The connection breaks, without a word."""
        self.transport.abort()

    # ---- in --------------------------------------------------------------------------------------------------------

    def _open(self, data: bytes) -> bytes:
        """The handshake's answer; what follows it is returned."""
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            return b""
        if not head.startswith(b"HTTP/1.1 101 ") or ACCEPT not in head:
            self.opened.set_exception(RefusedError(head.partition(b"\r\n")[0].decode("latin-1")))
            self.transport.abort()
            return b""
        self.opened.set_result(None)
        return rest

    def _frame(self, opcode: int, data: bytes) -> None:
        if opcode == TEXT:
            self.on_text(data)
        elif opcode == PING:
            self.pings += 1
            if self.answers_pings:
                self.raw(frame(PONG, data))
        elif opcode == CLOSE:
            self.close_code = struct.unpack(">H", data[:2])[0] if len(data) >= 2 else 1005
            self.close_reason = data[2:].decode("utf-8", "replace")
            self.raw(frame(CLOSE, data[:2]))  # once too often where it is the answer to ours; nobody reads it then
            self.transport.close()


async def connect(
    port: int,
    on_text: Callable[[bytes], None],
    *,
    path: str = "/ws",
    headers: str = "",
    receive_buffer: int | None = None,
    open_s: float = OPEN_S,
) -> RawSocket:
    """An open socket.

    Raises:
        OSError: nobody is there (or `RefusedError`: it is not let in).
    """
    loop = asyncio.get_running_loop()
    link = socket.socket()
    link.setblocking(False)
    if receive_buffer is not None:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        async with asyncio.timeout(open_s):
            await loop.sock_connect(link, ("127.0.0.1", port))
            _, made = await loop.create_connection(lambda: RawSocket(on_text), sock=link)
    except BaseException:
        link.close()
        raise
    made.raw(HANDSHAKE.format(path=path, port=port, more=headers).encode())
    try:
        async with asyncio.timeout(open_s):
            await made.opened
    except BaseException:
        made.cut()
        await made.gone
        raise
    return made
