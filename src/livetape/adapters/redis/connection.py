"""One connection to a server: what is queued within a loop tick leaves in one write, replies come back in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis

from livetape.adapters.redis.commands import RedisLinkError, RedisReplyError, Word
from livetape.adapters.redis.endpoint import Address

MAX_QUEUED_BYTES: Final = 128 * 1024 * 1024
_EARLY_BYTES: Final = 1024 * 1024
"""So much is written without waiting for the end of the tick."""
_MORE: Final = object()
_PIECE_BYTES: Final = 16 * 1024
"""The parser is fed this much at a time: it moves all that it still has whenever it has taken a thousand bytes."""

# Its own annotation says a tuple of one element.
pack_command: Final[Callable[..., bytes]] = hiredis.pack_command


class Connection(asyncio.Protocol):
    """Replies resolve the futures of the commands, in order; what the server pushes goes to `on_pushes`.

    What arrived together is handed over in one call, but for replies that stand in between: what the server sent
    before a reply is handled before it.

    The connection is given up when the oldest command has waited `reply_s` seconds for its answer and nothing at all
    is arriving: a stopped server and a half-open connection look like that. `on_end` is called once, when it is over.
    """

    def __init__(
        self,
        reply_s: float,
        *,
        on_pushes: Callable[[list[Any]], None] | None = None,
        on_end: Callable[[Connection], None] | None = None,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._reply_s = reply_s
        self._max_queued_bytes = max_queued_bytes
        self._on_pushes = on_pushes
        self._on_end = on_end
        self._reader = hiredis.Reader(replyError=RedisReplyError, notEnoughData=_MORE)
        self._transport: asyncio.Transport | None = None
        self._pending: deque[asyncio.Future[Any]] = deque()
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._flushing = False
        self._paused = False
        # Cumulative number of commands after each write, and when that was; for the age of the oldest.
        self._writes: deque[tuple[int, float]] = deque()
        self._written = 0
        self._received = 0
        self._suspected = -1
        self._timer: asyncio.TimerHandle | None = None
        self.reason = ""
        """Why it is over, in words; empty while it is not."""
        self._guard: asyncio.Task[None] | None = None
        self.unanswered = False
        """When it was over, somebody waited for an answer."""
        self.resp2 = False
        """The server does not speak RESP3."""
        self.plain_pushes = False
        """RESP2 after a subscription: every list is a push."""
        self.heard_at = self._loop.time()
        """When something last arrived, by the loop's clock."""
        self.ended: asyncio.Future[None] = self._loop.create_future()

    @property
    def alive(self) -> bool:
        return self._transport is not None and not self.reason

    @property
    def peer(self) -> Address | None:
        """Who is at the other end; None for a Unix socket."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return Address(name[0], name[1]) if isinstance(name, tuple) else None

    # ---- commands --------------------------------------------------------------------------------------------------

    def submit(self, packed: bytes, answer: asyncio.Future[Any]) -> None:
        """Queue one command. Its answer, a RedisReplyError or a RedisLinkError resolves `answer`."""
        if self.reason or self._queued_bytes > self._max_queued_bytes:
            reason = self.reason or f"more than {self._max_queued_bytes} bytes wait to be sent"
            answer.set_exception(RedisLinkError(reason, sent=False))
            return
        self._pending.append(answer)
        self._queue.append(packed)
        self._queued_bytes += len(packed)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        elif self._queued_bytes > _EARLY_BYTES and not self._paused:
            self._write()

    def call(self, *words: Word) -> asyncio.Future[Any]:
        """Queue one command, given as words."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        self.submit(pack_command(words), answer)
        return answer

    def answer(self, reply: Any) -> None:
        """A push that is the answer of the oldest command (to SUBSCRIBE and its like)."""
        answer = self._pending.popleft()
        if not answer.done():
            answer.set_result(reply)

    def abort(self, reason: str) -> None:
        """Give the connection up. Idempotent; `ended` is done when its socket is closed."""
        if self.reason:
            return
        self.reason = reason
        if self._transport is None:
            self._finish()
        else:
            self._transport.abort()
            self._fail()

    async def close(self, reason: str = "the connection is closed") -> None:
        """Give it up and wait until its socket is closed. Idempotent."""
        self.abort(reason)
        await asyncio.wait({self.ended})

    def _flush(self) -> None:
        self._flushing = False
        if not self._paused and self._queue:
            self._write()

    def _write(self) -> None:
        queue = self._queue
        if self._transport is None or self.reason:
            return
        data = queue[0] if len(queue) == 1 else b"".join(queue)
        self._written += len(queue)
        queue.clear()
        self._queued_bytes = 0
        self._writes.append((self._written, self._loop.time()))
        if self._timer is None:
            self._timer = self._loop.call_later(self._reply_s, self._check)
        self._transport.write(data)

    def _check(self) -> None:
        """Is the oldest command without answer too old?"""
        self._timer = None
        answered = self._written - (len(self._pending) - len(self._queue))
        writes = self._writes
        while writes and writes[0][0] <= answered:
            writes.popleft()
        if not writes or self.reason:
            return
        left = writes[0][1] + self._reply_s - self._loop.time()
        if left <= 0:
            if self._received == self._suspected:
                self.abort(f"no answer for {self._reply_s:g} seconds")
                return
            # What arrived may be unread while the loop was busy, and a long answer may still be arriving.
            self._suspected = self._received
            left = min(0.5, self._reply_s / 10)
        self._timer = self._loop.call_later(left, self._check)

    # ---- called by the transport -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # A loop that ends cancels its tasks: without this one the socket of a forgotten bus would stay open.
        self._guard = self._loop.create_task(self._stay(), name="livetape-redis-connection")

    def data_received(self, data: bytes) -> None:
        self._received += 1
        self.heard_at = self._loop.time()
        reader, pending = self._reader, self._pending
        gets = reader.gets
        push: Any = hiredis.PushNotification
        pushes: list[Any] = []
        problem = ""
        end = len(data)
        try:
            for begin in range(0, end, _PIECE_BYTES):
                reader.feed(data, begin, min(_PIECE_BYTES, end - begin))
                for reply in iter(gets, _MORE):
                    kind = type(reply)
                    if kind is push or (kind is list and self.plain_pushes):
                        pushes.append(reply)
                        continue
                    if pushes:
                        if self._on_pushes is not None:
                            self._on_pushes(pushes)
                        pushes = []
                    if not pending:
                        problem = "the server sent an answer that nobody waits for"
                        break
                    answer = pending.popleft()
                    if answer.done():
                        continue
                    if kind is RedisReplyError:
                        answer.set_exception(reply)
                    else:
                        answer.set_result(reply)
                if problem:
                    break
        except hiredis.ProtocolError:
            problem = "the server sent something that is not its protocol"
        if pushes and self._on_pushes is not None:
            self._on_pushes(pushes)
        if problem:
            self.abort(problem)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.reason:
            self.reason = f"the connection broke: {error}" if error else "the server closed the connection"
        self._finish()

    async def _stay(self) -> None:
        try:
            await asyncio.wait({self.ended})
        finally:
            self.abort("the event loop ended")

    def _finish(self) -> None:
        self._fail()
        if not self.ended.done():
            self.ended.set_result(None)

    def _fail(self) -> None:
        """Everybody who waits learns whether his command was sent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.unanswered = bool(self._pending)
        unsent = len(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
        while self._pending:
            answer = self._pending.popleft()
            if not answer.done():
                answer.set_exception(RedisLinkError(self.reason, sent=len(self._pending) >= unsent))
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self)
