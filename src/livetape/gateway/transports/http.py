"""uvicorn's HTTP protocol with bounds on the head of a request, which uvicorn itself waits for as long as it takes.

    uvicorn.Config(app, http=http_protocol(handshake_seconds=10), ...)

It needs `httptools`, which is not there on Windows.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class BoundedHttpProtocol(HttpToolsProtocol):
    """Ends a connection whose request head comes too slowly (408) or is too large (431).

    The time runs from the connecting (after TLS), and on a kept connection from the first byte of the next request.
    A request that is being answered is never ended by it; nor is a slow body, which is the application's to read.
    """

    handshake_seconds: ClassVar[float] = 10.0
    max_head_bytes: ClassVar[int] = 64 * 1024

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._upgraded = False
        self._in_head = False
        self._head_bytes = 0  # at most, with what came in the same read
        self._refusal: bytes | None = None
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self._start_limit()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_limit()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._upgraded or self._is_answering() or self.transport.is_closing():
            self._stop_limit()
        else:
            self._start_limit()
            if self._in_head and self._head_bytes > self.max_head_bytes:
                self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._head_bytes > self.max_head_bytes:  # with its body, perhaps
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self.max_head_bytes:
                self._refusal = b"431 Request Header Fields Too Large"
                raise ValueError("the head of a request is too large")  # ends in `send_400_response`
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head_bytes = 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_head and not self._is_answering():
            self._start_limit()  # the head of the next one had begun to come before

    def send_400_response(self, msg: str) -> None:
        if self._refusal is None:
            super().send_400_response(msg)
        else:
            self._refuse(self._refusal)

    def handle_websocket_upgrade(self) -> None:
        self._stop_limit()
        super().handle_websocket_upgrade()
        # They refer to each other: do not leave it to the garbage collector.
        self.parser = cast("Any", None)
        self._upgraded = True

    def _is_answering(self) -> bool:
        return not getattr(self.cycle, "response_complete", True)  # there is none before the first request

    def _start_limit(self) -> None:
        if self._limit is None and not self.transport.is_closing():
            self._limit = self.loop.call_later(self.handshake_seconds, self._too_late)

    def _stop_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _too_late(self) -> None:
        self._limit = None
        if self._is_answering() or self.transport.is_closing():
            return
        if self._in_head:
            self._refuse(b"408 Request Timeout")
        else:
            self.transport.close()

    def _refuse(self, status: bytes) -> None:
        self._stop_limit()
        self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()


def http_protocol(*, handshake_seconds: float = 10.0, max_head_bytes: int = 64 * 1024) -> type[BoundedHttpProtocol]:
    """For uvicorn's `http=`, which takes a class."""
    limits = {"handshake_seconds": handshake_seconds, "max_head_bytes": max_head_bytes}
    return type("BoundedHttpProtocol", (BoundedHttpProtocol,), limits)
