"""A tape over plain HTTP: server-sent events or lines of JSON, from the same reader as the socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from livetape.events.log import Tape
from livetape.gateway.forms import LinesForm, SseForm
from livetape.gateway.messages import Push, Since, SincePosition
from livetape.gateway.options import GatewayOptions
from livetape.gateway.outbox import Outbox
from livetape.gateway.subjects import Subject
from livetape.gateway.subscription import Client, spawn_in
from livetape.gateway.subscriptions import Opening, Subscriptions
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


class EventStream(Response):
    """Sends events until the last one, until the client goes, or until `end`.

    Everything is opened and given back within `__call__`: an answer that is never sent holds nothing.
    """

    def __init__(
        self,
        subject: Subject,
        tape: Tape,
        since: Since,
        *,
        media_type: str,
        subscriptions: Subscriptions,
        options: GatewayOptions,
        retry_ms: int,
        on_start: Callable[[EventStream], None],
        on_end: Callable[[EventStream], None],
    ) -> None:
        self.status_code = 200
        self.background = None
        self._subject = subject
        self._tape = tape
        self._since = since
        self._media_type = media_type
        self._form = SseForm() if media_type == SSE_TYPE else LinesForm()
        self._subscriptions = subscriptions
        self._options = options
        self._retry_ms = retry_ms
        self._on_start = on_start
        self._on_end = on_end
        self._outbox = Outbox(options.outbox_max_bytes, options.outbox_max_messages)
        self.init_headers({"content-type": media_type, **HEADERS})

    def end(self) -> None:
        """Send what waits, then end. The client continues with its last position."""
        self._outbox.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        opening = await self._subscriptions.open_tape(self._subject, self._tape, self._since)
        gap = None
        if opening.lost and isinstance(self._since, SincePosition):
            # What can still be read is sent; that something is missing is said first.
            self._subscriptions.give_back(opening)
            gap = Push(self._form.gap(self._since.offset + 1, None, self._tape.epoch))
            opening = await self._subscriptions.open_tape(self._subject, self._tape, "earliest")
        self._on_start(self)
        try:
            await self._stream(opening, gap, receive, send)
        finally:
            self._on_end(self)

    async def _stream(self, opening: Opening, gap: Push | None, receive: Receive, send: Send) -> None:
        async with asyncio.TaskGroup() as tasks:
            client = Client(
                self._outbox,
                spawn=spawn_in(tasks),
                too_slow=lambda: self._outbox.close(drop=True),
                broken=lambda: self._outbox.close(drop=True),
            )
            assert opening.topic is not None
            start = opening.start or opening.topic.position
            self.headers["x-stream-position"] = str(start)
            if self._media_type == SSE_TYPE:
                self._outbox.force(Push(b"retry: %d\n\n" % self._retry_ms))
            if gap is not None:
                self._outbox.force(gap)
            subscription = self._subscriptions.begin(
                opening, self._form, client, each=True, announce=False, on_finished=self._outbox.close
            )
            listener = tasks.create_task(self._listen(receive), name="stream listener")
            try:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await self._write(send)
            except OSError:
                pass  # the client is gone
            finally:
                if subscription is not None:
                    subscription.close()
                listener.cancel()

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
