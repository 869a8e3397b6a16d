"""Answers a request for the events of a tape: a page, server-sent events or lines, as it asks."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from livetape.auth import Principal
from livetape.clock import Clock
from livetape.errors import ClosedError, NotFoundError, PositionLostError
from livetape.events.bus import Bus
from livetape.events.follow import Start, follow
from livetape.events.log import MAX_READ, EventLog, Position, Tape
from livetape.gateway.messages import Since, SinceLast, SincePosition, SinceSeconds
from livetape.gateway.options import GatewayOptions
from livetape.gateway.page import DEFAULT_LIMIT, read_page
from livetape.gateway.reader import Sleep
from livetape.gateway.subjects import Subject
from livetape.gateway.subscriptions import Subscriptions
from livetape.gateway.transports.sse import LINES_TYPE, SSE_TYPE, EventStream, FollowedStream, Lifetime

SINCE_FORMS: Final = "since is earliest, latest, last:<n>, seconds:<n> or <epoch>-<offset>"
NO_LAST: Final = (
    "Somebody else writes to this tape too, so its events cannot be counted back: "
    "since is earliest, latest, seconds:<n> or <epoch>-<offset>"
)
MAX_NUMBER: Final = 2**63 - 1

RETRY_AFTER_S: Final = 30
"""Told to whom there is no room for."""


class TapeResponses:
    """The HTTP side of the gateway. Whether the caller may read the tape has been checked before."""

    def __init__(
        self,
        log: EventLog,
        bus: Bus,
        subscriptions: Subscriptions,
        options: GatewayOptions,
        clock: Clock,
        *,
        is_revoked: Callable[[Principal], bool] = lambda reader: False,
        one_user: bool = False,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`is_revoked` tells of whom this process has heard that its token holds no longer. `one_user`: everybody is
        the same one, and may have as many streams as there may be."""
        self._log = log
        self._bus = bus
        self._subscriptions = subscriptions
        self._options = options
        self._clock = clock
        self._sleep = sleep
        self._is_revoked = is_revoked
        self._one_user = one_user
        self._of_user: Counter[str] = Counter()
        self._streams: dict[EventStream | FollowedStream, tuple[Principal | None, Subject]] = {}
        self._ending = False

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    async def respond(
        self, request: Request, tape: Tape, *, until: datetime | None = None, reader: Principal | None = None
    ) -> Response:
        """The answer, by `Accept`: a stream ends after the final event, a page at once.

        `until`: when the reader's token expires. A stream ends as much later as a socket is closed. `reader`: whose
        it is, for `end_of`.

        Raises:
            ClosedError: the server stops, no new stream is begun.

        The answer itself may raise HTTPException (429, 503): its user, or this process, has as many streams as it may.
        """
        accept = request.headers.get("accept", "").lower()
        for media_type in (SSE_TYPE, LINES_TYPE):
            if media_type in accept:
                return await self._stream(request, tape, media_type, until, reader)
        return await self._page(request, tape)

    def end_all(self) -> None:
        """The server stops: clients come back with their last position."""
        self._ending = True
        for stream in tuple(self._streams):
            stream.end()

    def readers(self) -> set[tuple[Principal, Subject]]:
        """Who watches what, as far as it is known."""
        return {(reader, subject) for reader, subject in self._streams.values() if reader is not None}

    def end_of(self, concerns: Callable[[Principal, Subject], bool]) -> None:
        """End the streams of those whom something concerns. They come back, and are checked at the door."""
        for stream, (reader, subject) in tuple(self._streams.items()):
            if reader is not None and concerns(reader, subject):
                stream.end()

    async def _stream(
        self, request: Request, tape: Tape, media_type: str, until: datetime | None, reader: Principal | None
    ) -> Response:
        if self._ending:
            raise ClosedError("The server is stopping")
        since = _since(request)
        if isinstance(since, SincePosition) and tape.final and (since.epoch, since.offset) == (tape.epoch, tape.offset):
            return Response(status_code=204)  # an EventSource that has seen the end comes back once; this stops it
        subject = Subject.of_tape(tape.name)

        def started(stream: EventStream | FollowedStream) -> None:
            self._begin(stream, reader, subject)

        options: dict[str, Any] = {
            "media_type": media_type,
            "options": self._options,
            "retry_ms": random.randint(1000, 3000),  # noqa: S311 - so that not all come back at once
            "lifetime": Lifetime(until, self._options.expiry_grace_seconds, self._clock, self._sleep),
            "on_start": started,
            "on_end": self._end,
        }
        if tape.mixed:
            return await self._followed(tape, since, options)
        return EventStream(subject, tape, since, subscriptions=self._subscriptions, **options)

    def _begin(self, stream: EventStream | FollowedStream, reader: Principal | None, subject: Subject) -> None:
        """Not sooner than it is sent: an answer that never is holds nothing."""
        limit = self._options.max_streams_per_user
        if reader is not None and not self._one_user and self._of_user[reader.user_id] >= limit:
            text = f"At most {limit} event streams of one user"
            raise HTTPException(429, text, headers={"Retry-After": str(RETRY_AFTER_S)})
        if len(self._streams) >= self._options.max_streams:
            text = "There are as many event streams as this server serves"
            raise HTTPException(503, text, headers={"Retry-After": str(RETRY_AFTER_S)})
        self._streams[stream] = (reader, subject)
        if reader is not None:
            self._of_user[reader.user_id] += 1
        if self._ending or (reader is not None and self._is_revoked(reader)):  # meanwhile
            stream.end()

    def _end(self, stream: EventStream | FollowedStream) -> None:
        reader, _ = self._streams.pop(stream, (None, None))
        if reader is not None:
            self._of_user[reader.user_id] -= 1
            if not self._of_user[reader.user_id]:
                del self._of_user[reader.user_id]

    async def _followed(self, tape: Tape, since: Since, options: dict[str, Any]) -> FollowedStream:
        """Numbers that do not join on cannot be counted back."""
        if isinstance(since, SinceLast):
            raise HTTPException(422, NO_LAST)
        start = Position(tape.epoch, tape.first_offset - 1)
        after: Start = "earliest"
        if since == "latest":
            start, after = tape.position, None
        elif isinstance(since, SincePosition):
            start = after = Position(since.epoch, since.offset)
        elif isinstance(since, SinceSeconds):
            try:
                offset = await self._subscriptions.offset_ago(Subject.of_tape(tape.name), tape, since.seconds)
            except PositionLostError:
                raise NotFoundError from None  # gone between two questions
            start = after = Position(tape.epoch, offset)
        return FollowedStream(
            start,
            lambda: follow(self._log, self._bus, tape.name, tape.channel, after=after, until_final=True),
            **options,
        )

    async def _page(self, request: Request, tape: Tape) -> Response:
        query = request.query_params
        after = _number("after", query.get("after"), 0, 0, MAX_NUMBER)
        limit = _number("limit", query.get("limit"), DEFAULT_LIMIT, 1, MAX_READ)
        types = {name for value in query.getlist("types") for name in value.split(",") if name}
        body = await read_page(self._log, tape, after=after, limit=limit, types=types)
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})


def _since(request: Request) -> Since:
    """`Last-Event-ID` (a browser that reconnects) goes before `?since=`. The default is the whole tape."""
    last_event_id = request.headers.get("last-event-id")
    if last_event_id:
        try:
            return _position(last_event_id)
        except PositionLostError:
            pass  # an id of another stream: begin as if there were none
    text = request.query_params.get("since", "earliest")
    if text == "earliest":
        return "earliest"
    if text == "latest":
        return "latest"
    name, _, digits = text.partition(":")
    if digits:
        number = _number(name, digits, 0, 0, MAX_NUMBER, text=SINCE_FORMS)
        forms: dict[str, Callable[[], Since]] = {
            "last": lambda: SinceLast(last=number),
            "seconds": lambda: SinceSeconds(seconds=min(number, 10 * 365 * 86_400)),
        }
        if name in forms:
            return forms[name]()
    try:
        return _position(text)
    except PositionLostError:
        raise HTTPException(422, SINCE_FORMS) from None


def _position(text: str) -> SincePosition:
    position = Position.parse(text)
    epoch = position.epoch
    if position.offset > MAX_NUMBER or len(epoch) > 64 or not (epoch.isascii() and epoch.isprintable()):
        raise PositionLostError  # it would stand in a header of the answer
    return SincePosition(epoch=position.epoch, offset=position.offset)


def _number(name: str, value: str | None, default: int, least: int, most: int, *, text: str | None = None) -> int:
    if value is None or value == "":
        return default
    if not value.isascii() or not value.isdigit() or len(value) > 19 or not least <= int(value) <= most:
        raise HTTPException(422, text or f"{name} is a number from {least} to {most}")
    return int(value)
