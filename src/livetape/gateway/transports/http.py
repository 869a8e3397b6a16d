"""uvicorn's HTTP protocol with bounds on the head of a request, on the coming of its body and on the reading of
answers, for which uvicorn itself waits as long as it takes.

    uvicorn.Config(app, http=http_protocol(handshake_seconds=10), ...)

It needs `httptools`, which is not there on Windows.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from livetape.gateway.transport import CUT
from livetape.gateway.transports.upgrade import Upgrade
from livetape.gateway.transports.uvicorn import GatewayProtocol

STALL_BYTES: Final = 64 * 1024
"""So much of an answer, or all that is left of it, is to be taken within `stall_seconds`; so much of a body, or its
end, is to come."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Ends a connection whose request head or body comes too slowly (408) or whose head is too large (431), and one
    whose client does not take what it asked for.

    The time runs from the connecting (after TLS), and on a kept connection from the first byte of the next request.
    A request that is being answered is never ended by that. Of its body `STALL_BYTES` are to come in `stall_seconds`,
    or all that is left, while the application takes what comes.

    A client that takes less than `STALL_BYTES` in `stall_seconds`, while more than that waits for it or nothing more is
    to come, is cut off: an answer is held in memory until it has left.
    """

    handshake_seconds: ClassVar[float] = 10.0
    max_head_bytes: ClassVar[int] = 64 * 1024
    stall_seconds: ClassVar[float] = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._upgraded = False
        self._in_head = False
        self._head_bytes = 0  # at most, with what came in the same read
        self._refusal: bytes | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._in_body = False
        self._body_bytes = 0  # since it was last looked at
        self._coming: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._unsent = 0  # when it was last looked at

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self._start_limit()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_limit()
        self._stop_watching()
        self._end_body()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_body and self._coming is None and not self._upgraded:
            self._watch_body()
        if self._upgraded or self._is_answering() or self.transport.is_closing():
            self._stop_limit()
        else:
            self._start_limit()
            if self._in_head and self._head_bytes > self.max_head_bytes:
                self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)["extensions"] = {CUT: self.transport.abort}

    def on_headers_complete(self) -> None:
        if self._head_bytes > self.max_head_bytes:  # with its body, perhaps
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self.max_head_bytes:
                self._refusal = b"431 Request Header Fields Too Large"
                raise ValueError("the head of a request is too large")  # ends in `send_400_response`
        self._in_head = False
        self._head_bytes = 0
        self._in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head_bytes = 0
        self._end_body()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_writing()
        if self._in_head and not self._is_answering():
            self._start_limit()  # the head of the next one had begun to come before

    def send_400_response(self, msg: str) -> None:
        if self._refusal is None:
            super().send_400_response(msg)
        else:
            self._refuse(self._refusal)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()
        if not self._is_answering():
            self._watch_writing()  # the end of the answer is still to be taken

    def handle_websocket_upgrade(self) -> None:
        self._stop_limit()
        self._stop_watching()
        self._end_body()
        protocol = self.ws_protocol_class
        is_begun = False
        if isinstance(protocol, type) and issubclass(protocol, GatewayProtocol):
            is_begun = Upgrade.begin(self, protocol.ways)
        if not is_begun:
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

    def _watch_body(self) -> None:
        self._body_bytes = 0
        self._coming = self.loop.call_later(self.stall_seconds, self._look_at_body)

    def _end_body(self) -> None:
        self._in_body = False
        if self._coming is not None:
            self._coming.cancel()
            self._coming = None

    def _look_at_body(self) -> None:
        self._coming = None
        if self.transport.is_closing() or not self._is_answering():
            return  # nobody waits for it, and the next request has its own limit
        if self.flow.read_paused or self._body_bytes >= STALL_BYTES:
            self._watch_body()
        elif self.cycle.response_started or self.pipeline:
            self.transport.abort()  # in the middle of an answer there is no place for another
        else:
            self._refuse(b"408 Request Timeout")

    def _watch_writing(self) -> None:
        self._stop_watching()
        self._unsent = self.transport.get_write_buffer_size()
        if self._unsent:
            self._stall = self.loop.call_later(self.stall_seconds, self._look_at_writing)

    def _stop_watching(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _look_at_writing(self) -> None:
        self._stall = None
        if self._is_answering() and not self.flow.write_paused:
            return  # the next answer, which is taken
        before, left = self._unsent, self.transport.get_write_buffer_size()
        if left and left > before - STALL_BYTES:
            self.transport.abort()
        else:
            self._watch_writing()

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


def http_protocol(
    *, handshake_seconds: float = 10.0, max_head_bytes: int = 64 * 1024, stall_seconds: float = 30.0
) -> type[BoundedHttpProtocol]:
    """For uvicorn's `http=`, which takes a class."""
    limits = {"handshake_seconds": handshake_seconds, "max_head_bytes": max_head_bytes, "stall_seconds": stall_seconds}
    return type("BoundedHttpProtocol", (BoundedHttpProtocol,), limits)
