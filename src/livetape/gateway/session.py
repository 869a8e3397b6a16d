"""One client's protocol as a state machine without I/O: a message in, a list of effects out.

The shell (`connection.py`) performs the effects in order. Time comes in as an argument. Everything that a client can
send has an outcome here: an effect, an answer from the wire contract's table of errors, or a close.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from livetape.auth import Principal
from livetape.gateway import messages
from livetape.gateway.close_codes import CloseCode
from livetape.gateway.messages import RequestId, Since, WSMessage, WSMethod
from livetape.gateway.options import GatewayOptions
from livetape.gateway.rate import TokenBucket
from livetape.gateway.subjects import Subject


@dataclass(frozen=True, slots=True)
class Send:
    """Send this message."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Open a subscription, then call `Session.subscribed` or `Session.refused` with this."""

    method: WSMethod
    subject: Subject
    channel: str
    since: Since | None
    each: bool
    strict: bool
    request_id: RequestId | None


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Close the subscription."""

    subject: Subject


@dataclass(frozen=True, slots=True)
class Refresh:
    """Check this token, then call `Session.refreshed` or `Session.not_refreshed`."""

    token: str = field(repr=False)
    request_id: RequestId | None


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask an engine to stop this execution, then call `Session.stopped` or `Session.not_stopped` with this."""

    graph_exec_id: str
    request_id: RequestId | None


@dataclass(frozen=True, slots=True)
class Pause:
    """Read nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class ClientError:
    """The client says that something went wrong on its side: log it."""

    text: str


@dataclass(frozen=True, slots=True)
class Close:
    """Send what waits, then close."""

    code: CloseCode


Effect: TypeAlias = Send | Subscribe | Unsubscribe | Refresh | Stop | Pause | ClientError | Close


@dataclass(frozen=True, slots=True)
class Subscribed:
    """How a subscription began: the newest position, whether `since` could be honoured, and how many tape events
    lie between the two (an upper bound of the pushes: without `outputs:"each"` outputs are left out).

    `mixed`: somebody else writes to the tape too; what is pushed has no positions, and none can be continued."""

    epoch: str | None
    offset: int
    recovered: bool
    count: int
    mixed: bool = False


@dataclass(slots=True)
class _Channel:
    name: str
    each: bool
    finished: bool = False


class Session:
    """The state of one socket: who it is, what it watches, how fast it sends, when its token ends."""

    __slots__ = ("_bucket", "_channels", "_close_at", "_closed", "_notice_at", "_options", "is_plain", "principal")

    def __init__(self, principal: Principal, options: GatewayOptions, now: datetime, monotonic: float) -> None:
        self._options = options
        self._channels: dict[Subject, _Channel] = {}
        self._bucket = TokenBucket(options.messages_per_second, options.message_burst, monotonic)
        self._closed = False
        self.is_plain = True
        """It has used nothing but the seed's messages and keys: a page that does not know how to continue."""
        self._be(principal)

    def _be(self, principal: Principal) -> None:
        self.principal = principal
        expires = principal.expires_at
        notice, grace = self._options.expiry_notice_seconds, self._options.expiry_grace_seconds
        self._notice_at = expires - timedelta(seconds=notice) if expires else None
        self._close_at = expires + timedelta(seconds=grace) if expires else None

    # ---- what comes in -----------------------------------------------------------------------------------------

    def receive(self, data: str | bytes, monotonic: float) -> list[Effect]:
        """A message of the client."""
        if self._closed:
            return []
        if _size(data) > self._options.max_message_bytes:
            return self._close(CloseCode.MESSAGE_TOO_BIG)
        delay = self._bucket.take(monotonic)
        since = self._bucket.limited_since
        if since is not None and monotonic - since >= self._options.flood_seconds:
            return self._flooded(delay)
        effects: list[Effect] = [Pause(delay)] if delay else []
        return effects + self._handle(data)

    def tick(self, now: datetime) -> list[Effect]:
        """Time has passed; to be called at `wake_at`."""
        if self._closed:
            return []
        if self._close_at is not None and now >= self._close_at:
            return self._close(CloseCode.INVALID_TOKEN)
        if self._notice_at is not None and now >= self._notice_at:
            self._notice_at = None
            data = to_json({"expires_at": self.principal.expires_at})
            return [Send(messages.message(WSMethod.TOKEN_EXPIRING, data=data))]
        return []

    @property
    def wake_at(self) -> datetime | None:
        """When `tick` has something to do next."""
        return self._notice_at or self._close_at

    # ---- answers of the shell ----------------------------------------------------------------------------------

    def subscribed(self, request: Subscribe, result: Subscribed) -> list[Effect]:
        """The subscription is open; its events must follow the reply."""
        self._channels.pop(request.subject, None)  # a new one goes to the end: the oldest finished is dropped first
        self._channels[request.subject] = _Channel(request.channel, request.each)
        data = b"null"
        if request.since is not None:
            told: dict[str, Any] = {
                "epoch": result.epoch,
                "offset": str(result.offset) if result.mixed else result.offset,
                "recovered": result.recovered,
                "count": result.count,
            }
            data = to_json(told | {"mixed": True} if result.mixed else told)
        answer = messages.reply(request.method, channel=request.channel, data=data, request_id=request.request_id)
        return [Send(answer), *self._drop_finished()]

    def refused(self, request: Subscribe | Refresh, text: str, code: str, *, retry: bool = False) -> list[Effect]:
        """It could not be done."""
        return [Send(messages.error_push(text, code=code, retry=retry, request_id=request.request_id))]

    @property
    def has_room(self) -> bool:
        """Whether it may watch one more."""
        return self._live_count() < self._options.max_channels

    def restored(self, subject: Subject, channel: str) -> None:
        """A subscription of an earlier socket of this page goes on here; the client is told nothing."""
        self._channels[subject] = _Channel(channel, each=False)

    def refreshed(self, request: Refresh, principal: Principal) -> list[Effect]:
        """The token holds and is the same user's: the socket lives on with it."""
        self._be(principal)
        data = to_json({"expires_at": principal.expires_at})
        return [Send(messages.reply(WSMethod.REFRESH, channel=None, data=data, request_id=request.request_id))]

    def not_refreshed(self, request: Refresh) -> list[Effect]:
        """It does not; the old one goes on counting."""
        return _coded(messages.INVALID_TOKEN, "invalid_token", request.request_id)

    def stopped(self, request: Stop) -> list[Effect]:
        """An engine has committed that it shall stop."""
        data = b'{"accepted":true}'
        return [Send(messages.reply(WSMethod.STOP_GRAPH_EXEC, channel=None, data=data, request_id=request.request_id))]

    def not_stopped(self, request: Stop, text: str, code: str, *, retry: bool) -> list[Effect]:
        """No engine has."""
        return _coded(text, code, request.request_id, retry=retry)

    def withdrawn(self, subject: Subject) -> list[Effect]:
        """The client may not watch this any more."""
        known = self._channels.pop(subject, None)
        if known is None:
            return []
        return [Unsubscribe(subject), Send(messages.message(WSMethod.UNSUBSCRIBED, channel=to_json(known.name)))]

    def failed(self, request_id: RequestId | None, correlation_id: str) -> list[Effect]:
        """Something broke on our side; the log has the same correlation id."""
        return [
            Send(
                messages.error_push(
                    "Internal error", code="internal", request_id=request_id, correlation_id=correlation_id
                )
            )
        ]

    def finished(self, subject: Subject) -> None:
        """The last event of this subscription has been sent: it counts no more."""
        if subject in self._channels:
            self._channels[subject].finished = True

    # ---- one message -------------------------------------------------------------------------------------------

    def _handle(self, data: str | bytes) -> list[Effect]:
        try:
            raw = from_json(data)
        except ValueError:
            return _error(messages.INVALID_FORMAT, None)
        if not isinstance(raw, dict):
            return _error(messages.INVALID_FORMAT, None)
        request_id = _request_id(raw)
        if request_id is not None:
            self.is_plain = False
        if raw.get("method") == "heartbeat":  # with any data, and without the cost of a model
            return [Send(messages.heartbeat_reply(request_id))]
        try:
            message = WSMessage.model_validate(raw)
        except ValidationError:
            return _error(messages.INVALID_FORMAT, request_id)
        if message.method is WSMethod.ERROR:
            return [ClientError(message.error or "")]
        if message.method is WSMethod.UNSUBSCRIBE:
            return self._unsubscribe(message, request_id)
        if message.method in messages.SUBSCRIBE_REQUESTS:
            return self._subscribe(message, request_id)
        if message.method is WSMethod.REFRESH:
            return self._refresh(message, request_id)
        if message.method is WSMethod.STOP_GRAPH_EXEC:
            return self._stop(message, request_id)
        return _error(messages.NOT_PROCESSED, request_id)

    def _subscribe(self, message: WSMessage, request_id: RequestId | None) -> list[Effect]:
        if not message.data:
            return _error(messages.DATA_MISSING, request_id)
        if not isinstance(message.data, dict):
            return _error(messages.INVALID_DATA, request_id)
        try:
            request = messages.SUBSCRIBE_REQUESTS[message.method].model_validate(message.data)
        except ValidationError:
            return _error(messages.INVALID_DATA, request_id)
        subject = request.subject
        if message.method is WSMethod.SUBSCRIBE_JOB or message.data.keys() & messages.NEW_KEYS:
            self.is_plain = False
        if subject not in self._channels and self._live_count() >= self._options.max_channels:
            text = f"At most {self._options.max_channels} live channels on one socket"
            return [Send(messages.error_push(text, code="too_many_channels", retry=False, request_id=request_id))]
        known = self._channels.get(subject)
        each = getattr(request, "outputs", None) == "each"
        if known is not None and known.each == each and request.since is None and not request.strict:
            return [Send(messages.reply(message.method, channel=known.name, request_id=request_id))]
        return [
            Subscribe(
                method=message.method,
                subject=subject,
                channel=subject.client_channel(self.principal.user_id),
                since=request.since,
                each=each,
                strict=request.strict,
                request_id=request_id,
            )
        ]

    def _unsubscribe(self, message: WSMessage, request_id: RequestId | None) -> list[Effect]:
        if not message.data:
            return _error(messages.DATA_MISSING, request_id)
        try:
            request = messages.WSUnsubscribeRequest.model_validate(message.data)
        except ValidationError:
            return _error(messages.INVALID_DATA, request_id)
        subject = request.subject or next(
            (subject for subject, channel in self._channels.items() if channel.name == request.channel), None
        )
        known = self._channels.pop(subject, None) if subject is not None else None
        if subject is None or known is None:
            return [Send(messages.reply(WSMethod.UNSUBSCRIBE, channel=None, request_id=request_id))]
        answer = messages.reply(WSMethod.UNSUBSCRIBE, channel=known.name, request_id=request_id)
        return [Unsubscribe(subject), Send(answer)]

    def _refresh(self, message: WSMessage, request_id: RequestId | None) -> list[Effect]:
        self.is_plain = False
        try:
            request = messages.WSRefreshRequest.model_validate(message.data)
        except ValidationError:
            return _error(messages.INVALID_DATA, request_id)
        return [Refresh(request.token, request_id)]

    def _stop(self, message: WSMessage, request_id: RequestId | None) -> list[Effect]:
        self.is_plain = False
        try:
            request = messages.WSStopRequest.model_validate(message.data)
        except ValidationError:
            return _error(messages.INVALID_DATA, request_id)
        return [Stop(request.graph_exec_id, request_id)]

    # ---- limits ------------------------------------------------------------------------------------------------

    def _live_count(self) -> int:
        if len(self._channels) < self._options.max_channels:
            return len(self._channels)
        return sum(not channel.finished for channel in self._channels.values())

    def _drop_finished(self) -> list[Effect]:
        """Finished channels are free, but not without end."""
        if len(self._channels) <= self._options.max_channels:
            return []
        finished = [subject for subject, channel in self._channels.items() if channel.finished]
        dropped = finished[: max(0, len(finished) - self._options.max_channels)]
        for subject in dropped:
            del self._channels[subject]
        return [Unsubscribe(subject) for subject in dropped]

    def _flooded(self, delay: float) -> list[Effect]:
        retry_after = max(1, round(delay + self._options.message_burst / self._options.messages_per_second))
        text = f"At most {self._options.messages_per_second:g} messages a second"
        told = messages.error_push(text, code="rate_limited", retry=True, retry_after=retry_after)
        return [Send(told), *self._close(CloseCode.TOO_MANY)]

    def _close(self, code: CloseCode) -> list[Effect]:
        self._closed = True
        self._notice_at = self._close_at = None
        return [Close(code)]


def _error(text: str, request_id: RequestId | None) -> list[Effect]:
    return [Send(messages.error_push(text, request_id=request_id))]


def _coded(text: str, code: str, request_id: RequestId | None, *, retry: bool = False) -> list[Effect]:
    return [Send(messages.error_push(text, code=code, retry=retry, request_id=request_id))]


def _request_id(raw: dict[str, Any]) -> RequestId | None:
    value = raw.get("id")
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _size(data: str | bytes) -> int:
    if isinstance(data, bytes) or data.isascii():
        return len(data)
    return len(data.encode("utf-8", "surrogatepass"))
