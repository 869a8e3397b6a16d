"""A tape over plain HTTP: server-sent events or lines of JSON, from the same reader as the socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from livetape.clock import Clock
from livetape.events.log import Position, Tape
from livetape.events.recovery import REPLACEMENT, Gap, Item
from livetape.gateway.forms import LinesForm, SseForm
from livetape.gateway.messages import Push, Since, SincePosition
from livetape.gateway.options import GatewayOptions
from livetape.gateway.outbox import Outbox
from livetape.gateway.reader import Sleep
from livetape.gateway.shortening import Shortening
from livetape.gateway.subjects import Subject
from livetape.gateway.subscription import Client, spawn_in
from livetape.gateway.subscriptions import Opening, Subscriptions
from livetape.gateway.transport import CUT
from livetape.observability import get_logger

logger = get_logger(__name__)

SSE_TYPE: Final = "text/event-stream"
LINES_TYPE: Final = "application/x-ndjson"

HEADERS: Final = {
    "cache-control": "no-store, no-transform",
    "x-accel-buffering": "no",
    # Middlewares that compress leave alone what says that it has an encoding.
    "content-encoding": "identity",
}


LONGEST_SLEEP_S: Final = 60.0
"""Wall time may jump: it is looked at this often."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a stream may last: until its reader's token has expired (None: never does) and a grace is over."""

    expires_at: datetime | None
    grace_seconds: float
    clock: Clock
    sleep: Sleep

    async def over(self) -> None:
        """Returns when it is over; never for a token that does not expire."""
        if self.expires_at is None:
            await asyncio.get_running_loop().create_future()
            return
        while (left := (self.expires_at - self.clock.now()).total_seconds() + self.grace_seconds) > 0:
            await self.sleep(min(left, LONGEST_SLEEP_S))


class _Stream(Response):
    """Sends what its outbox is given, until that is closed or the client goes."""

    def __init__(
        self,
        *,
        media_type: str,
        options: GatewayOptions,
        retry_ms: int,
        lifetime: Lifetime,
        on_start: Callable[[_Stream], None],
        on_end: Callable[[_Stream], None],
    ) -> None:
        self.status_code = 200
        self.background = None
        self._media_type = media_type
        self._form = SseForm() if media_type == SSE_TYPE else LinesForm()
        self._options = options
        self._retry_ms = retry_ms
        self._lifetime = lifetime
        self._on_start = on_start
        self._on_end = on_end
        self._outbox = Outbox(options.outbox_max_bytes, options.outbox_max_messages)
        self._leave_by: float | None = None  # in the time of the loop
        self._limit: asyncio.Timeout | None = None
        self.init_headers({"content-type": media_type, **HEADERS})

    def end(self) -> None:
        """Send what waits, then end. The client continues with its last position; one that does not take what waits is
        cut off."""
        self._outbox.close()
        self._go_within(self._options.close_seconds)

    def _break_off(self) -> None:
        """Send nothing more, and wait for nobody to take what was sent."""
        self._outbox.close(drop=True)
        self._go_within(0.0)

    def _go_within(self, seconds: float) -> None:
        by = asyncio.get_running_loop().time() + seconds
        if self._leave_by is None or by < self._leave_by:
            self._leave_by = by
            if self._limit is not None and not self._limit.expired():
                self._limit.reschedule(by)

    def _begin_at(self, start: Position) -> None:
        self.headers["x-stream-position"] = str(start)
        if self._media_type == SSE_TYPE:
            self._outbox.force(Push(b"retry: %d\n\n" % self._retry_ms))

    async def _send(self, scope: Scope, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self._leave_by) as self._limit:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await self._write(send)
        except TimeoutError:
            cut = scope.get("extensions", {}).get(CUT)
            if cut is not None:
                cut()
        except OSError:
            pass  # the client is gone
        finally:
            self._limit = None

    async def _write(self, send: Send) -> None:
        while True:
            try:
                async with asyncio.timeout(self._options.keepalive_seconds):
                    await self._outbox.wait()
            except TimeoutError:
                if self._media_type == SSE_TYPE:
                    await send({"type": "http.response.body", "body": b": still here\n\n", "more_body": True})
                continue
            batch = self._outbox.take()
            body = b"".join([push.data for push in batch])
            await send({"type": "http.response.body", "body": body, "more_body": bool(batch)})
            if not batch:
                return
            self._outbox.sent()

    async def _listen(self, receive: Receive) -> None:
        """A client that goes away ends the stream, even while nothing happens on the tape."""
        with suppress(OSError):
            while (await receive())["type"] != "http.disconnect":
                pass
        self._outbox.close(drop=True)

    async def _end_in_time(self) -> None:
        await self._lifetime.over()
        self.end()

    def _watch(self, tasks: asyncio.TaskGroup, receive: Receive) -> list[asyncio.Task[None]]:
        """What may end the stream from outside; to be cancelled when it has ended."""
        return [
            tasks.create_task(self._listen(receive), name="stream listener"),
            tasks.create_task(self._end_in_time(), name="stream timer"),
        ]


class EventStream(_Stream):
    """Sends events until the last one, until the client goes, or until `end`.

    Everything is opened and given back within `__call__`: an answer that is never sent holds nothing. It counts from
    there on: `on_start` may raise before anything is sent.
    """

    def __init__(
        self, subject: Subject, tape: Tape, since: Since, *, subscriptions: Subscriptions, **options: Any
    ) -> None:
        super().__init__(**options)
        self._subject = subject
        self._tape = tape
        self._since = since
        self._subscriptions = subscriptions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._on_start(self)
        try:
            opening, gap = await self._open()
            await self._stream(opening, gap, scope, receive, send)
        finally:
            self._on_end(self)

    async def _open(self) -> tuple[Opening, Push | None]:
        opening = await self._subscriptions.open_tape(self._subject, self._tape, self._since)
        gap = None
        if opening.lost and opening.result.mixed:  # since a moment ago; who comes back is served as of then
            gap = Push(self._form.gap(None, None, self._tape.epoch))
        elif opening.lost and isinstance(self._since, SincePosition):
            # What can still be read is sent; that something is missing is said first.
            self._subscriptions.give_back(opening)
            is_beyond = self._since.epoch == opening.result.epoch and self._since.offset > opening.result.offset
            first = None if is_beyond else self._since.offset + 1  # the log has lost its end: it counts on from there
            gap = Push(self._form.gap(first, None, opening.result.epoch))
            opening = await self._subscriptions.open_tape(self._subject, self._tape, "earliest")
        return opening, gap

    async def _stream(self, opening: Opening, gap: Push | None, scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.TaskGroup() as tasks:
            client = Client(
                self._outbox,
                spawn=spawn_in(tasks),
                too_slow=self._break_off,
                broken=self._break_off,
            )
            assert opening.topic is not None
            self._begin_at(opening.start or opening.topic.position)
            if gap is not None:
                self._outbox.force(gap)
            subscription = self._subscriptions.begin(
                opening,
                self._form,
                client,
                each=True,
                announce=False,
                on_finished=self._outbox.close,
                on_withdrawn=self.end,
            )
            watching = self._watch(tasks, receive)
            try:
                await self._send(scope, send)
            finally:
                if subscription is not None:
                    subscription.close()
                for task in watching:
                    task.cancel()


class FollowedStream(_Stream):
    """The same for a tape to which somebody else writes too: one follower for this client alone.

    Nobody pushes what others write, and its numbers do not join on: a topic, which many share, cannot carry it.
    """

    def __init__(self, start: Position, items: Callable[[], AsyncGenerator[Item, None]], **options: Any) -> None:
        super().__init__(**options)
        self._start = start
        self._items = items
        self._shortening = Shortening(self._options.max_event_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._on_start(self)
        self._begin_at(self._start)
        try:
            async with asyncio.TaskGroup() as tasks:
                workers = [*self._watch(tasks, receive), tasks.create_task(self._follow(), name="stream follower")]
                try:
                    await self._send(scope, send)
                finally:
                    for worker in workers:
                        worker.cancel()
        finally:
            self._on_end(self)

    async def _follow(self) -> None:
        try:
            async with aclosing(self._items()) as items:
                async for item in items:
                    async with asyncio.timeout(self._options.slow_seconds):
                        await self._outbox.room()
                    self._outbox.force(Push(await self._bytes_of(item)))
        except TimeoutError:
            self._break_off()  # too slow
        except Exception:
            logger.exception("a tape cannot be followed", extra={"action": "follow_failed"})
            self._break_off()
        else:
            self._outbox.close()

    async def _bytes_of(self, item: Item) -> bytes:
        if isinstance(item, Gap):
            return self._form.gap(item.first, item.last, item.epoch)
        (item,) = await self._shortening.fit((item,))
        if item.shortened:
            return self._form.shortened(item) or b""
        if len(item.payload) > self._options.max_event_bytes or item.event_type == REPLACEMENT:
            return self._form.too_large(item.offset, item.epoch, mixed=item.mixed)
        return self._form.event(item) or b""
