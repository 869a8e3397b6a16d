"""The messages of the socket (wire contract, section 3): what clients send, what they are answered, what is pushed.

Inbound messages are validated by models. Outbound ones are spliced from bytes in the exact key order of the wire:
`method, data, success, channel, error`, then what is new. An event's payload is never decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import to_json

from livetape.errors import ChannelError
from livetape.events.channel import MAX_PART_CHARS, encode_part
from livetape.events.tape_event import TapeEvent
from livetape.gateway.frames import text_frame
from livetape.gateway.subjects import Kind, Subject

MAX_OFFSET: Final = 2**53 - 1
MAX_POSITION: Final = 2**63 - 1
"""Those of a mixed tape are larger than JSON numbers carry exactly, and come as strings."""


class WSMethod(StrEnum):
    """Every `method` of the wire."""

    SUBSCRIBE_GRAPH_EXEC = "subscribe_graph_execution"
    SUBSCRIBE_GRAPH_EXECS = "subscribe_graph_executions"
    SUBSCRIBE_JOB = "subscribe_job"
    UNSUBSCRIBE = "unsubscribe"
    HEARTBEAT = "heartbeat"
    REFRESH = "refresh"
    STOP_GRAPH_EXEC = "stop_graph_execution"
    ERROR = "error"
    GRAPH_EXECUTION_EVENT = "graph_execution_event"
    NODE_EXECUTION_EVENT = "node_execution_event"
    NODE_OUTPUT_EVENT = "node_output_event"
    JOB_EVENT = "job_event"
    NOTIFICATION = "notification"
    REPLAY_COMPLETE = "replay_complete"
    GAP = "gap"
    TOKEN_EXPIRING = "token_expiring"  # noqa: S105 - a method
    RECONNECT = "reconnect"
    UNSUBSCRIBED = "unsubscribed"


INVALID_FORMAT: Final = "Invalid message format. Review the schema and retry"
DATA_MISSING: Final = "Subscription data missing"
INVALID_DATA: Final = "Invalid message data. Refer to the API schema"
NOT_PROCESSED: Final = "Message type is not processed by the server"
NOT_FOUND: Final = "Not found"
INVALID_TOKEN: Final = "Invalid token"  # noqa: S105 - a text
UNAVAILABLE: Final = "Unavailable, retry"

MAX_TOKEN_CHARS: Final = 16 * 1024
NEW_KEYS: Final = frozenset({"since", "outputs", "strict"})
"""Of `data` in a subscribe: who sends them knows how to continue by itself."""

METHOD_OF_EVENT: Final = {
    "graph_execution_update": WSMethod.GRAPH_EXECUTION_EVENT,
    "node_execution_update": WSMethod.NODE_EXECUTION_EVENT,
    "node_output_update": WSMethod.NODE_OUTPUT_EVENT,
}
"""The push of each event type of an execution; those of a job are all `job_event`."""

RequestId: TypeAlias = str | int


class WSMessage(BaseModel):
    """A message of the seed's protocol, in either direction. Unknown keys are ignored."""

    method: WSMethod
    data: dict[str, Any] | list[Any] | str | None = None
    success: bool | None = None
    channel: str | None = None
    error: str | None = None


# ---- requests ----------------------------------------------------------------------------------------------------


def _usable(value: str) -> str:
    try:
        encode_part(value)
    except ChannelError as error:
        raise ValueError(error.message) from None
    return value


Id: TypeAlias = Annotated[
    str,
    AfterValidator(_usable),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_PART_CHARS, "pattern": r"^[^*]*$"}),
]
Strict: TypeAlias = Annotated[bool, Field(strict=True)]


class _Since(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _from_digits(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19 else value


_OFFSET_SCHEMA: Final = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": MAX_POSITION},
        {"type": "string", "pattern": "^[0-9]{1,19}$"},
    ]
}


class SincePosition(_Since):
    """After the event with this offset, which may be written as a string."""

    epoch: str = Field(min_length=1, max_length=64)
    offset: Annotated[
        int, Field(strict=True, ge=0, le=MAX_POSITION), BeforeValidator(_from_digits), WithJsonSchema(_OFFSET_SCHEMA)
    ]


class SinceLast(_Since):
    """From the last `n` events on."""

    last: int = Field(strict=True, ge=0, le=MAX_OFFSET)


class SinceSeconds(_Since):
    """From the events of the last `n` seconds on."""

    seconds: float = Field(ge=0, le=10 * 365 * 86_400, allow_inf_nan=False)


Since: TypeAlias = SincePosition | SinceLast | SinceSeconds | Literal["earliest", "latest"]


class WSSubscribeGraphExecutionRequest(BaseModel):
    """`data` of `subscribe_graph_execution`."""

    graph_exec_id: Id
    since: Since | None = None
    outputs: Literal["each"] | None = None
    strict: Strict = False

    @property
    def subject(self) -> Subject:
        """What is asked for."""
        return Subject(Kind.EXECUTION, self.graph_exec_id)


class WSSubscribeGraphExecutionsRequest(BaseModel):
    """`data` of `subscribe_graph_executions`."""

    graph_id: Id
    since: Since | None = None
    strict: Strict = False

    @property
    def subject(self) -> Subject:
        """What is asked for."""
        return Subject(Kind.GRAPH, self.graph_id)


class WSSubscribeJobRequest(BaseModel):
    """`data` of `subscribe_job`."""

    job_id: Id
    since: Since | None = None
    strict: Strict = False

    @property
    def subject(self) -> Subject:
        """What is asked for."""
        return Subject(Kind.JOB, self.job_id)


class WSUnsubscribeRequest(BaseModel):
    """`data` of `unsubscribe`: one of the ids, or the channel that a subscribe was answered with."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": [name], "properties": {name: {"type": "string"}}}
                for name in ("graph_exec_id", "graph_id", "job_id", "channel")
            ]
        }
    )

    graph_exec_id: str | None = None
    graph_id: str | None = None
    job_id: str | None = None
    channel: str | None = None

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.subject is None and self.channel is None:
            raise ValueError("name a graph_exec_id, graph_id, job_id or channel")
        return self

    @property
    def subject(self) -> Subject | None:
        """What is named by its id."""
        if self.graph_exec_id is not None:
            return Subject(Kind.EXECUTION, self.graph_exec_id)
        if self.graph_id is not None:
            return Subject(Kind.GRAPH, self.graph_id)
        return None if self.job_id is None else Subject(Kind.JOB, self.job_id)


class WSRefreshRequest(BaseModel):
    """`data` of `refresh`: a newer token of the same user."""

    token: str = Field(min_length=1, max_length=MAX_TOKEN_CHARS, repr=False)


class WSStopRequest(BaseModel):
    """`data` of `stop_graph_execution`."""

    graph_exec_id: Id


SubscribeRequest: TypeAlias = (
    WSSubscribeGraphExecutionRequest | WSSubscribeGraphExecutionsRequest | WSSubscribeJobRequest
)
SUBSCRIBE_REQUESTS: Final[dict[WSMethod, type[SubscribeRequest]]] = {
    WSMethod.SUBSCRIBE_GRAPH_EXEC: WSSubscribeGraphExecutionRequest,
    WSMethod.SUBSCRIBE_GRAPH_EXECS: WSSubscribeGraphExecutionsRequest,
    WSMethod.SUBSCRIBE_JOB: WSSubscribeJobRequest,
}


# ---- events and pushes ---------------------------------------------------------------------------------------------


class Push:
    """What leaves for a client: built once, shared by everybody who gets it, so every form of it is made once.

    `data` is a message (its JSON, its block, its line), or several one after the other (`joined`); `size` the bytes
    of that, `count` how many messages they are.
    """

    __slots__ = ("_frame", "_parts", "_text", "count", "data", "size")

    def __init__(self, data: bytes, parts: tuple[Push, ...] = ()) -> None:
        self.data = data
        self.size = len(data)
        self.count = len(parts) or 1
        self._parts = parts
        self._frame: bytes | None = None
        self._text: str | None = None

    def __repr__(self) -> str:
        return f"Push({self.data[:200]!r})"

    @classmethod
    def joined(cls, pushes: Sequence[Push]) -> Push:
        """Several as one, for the same recipients, in order: they leave in one write."""
        if len(pushes) == 1:
            return pushes[0]
        parts = tuple([part for push in pushes for part in push.parts])
        return cls(b"".join([part.data for part in parts]), parts)

    @property
    def parts(self) -> tuple[Push, ...]:
        """The single messages."""
        return self._parts or (self,)

    @property
    def text(self) -> str:
        """For transports that take text; of one message. What a foreign publisher wrote may not be valid UTF-8."""
        text = self._text
        if text is None:
            text = self._text = self.data.decode("utf-8", "replace")
        return text

    @property
    def frame(self) -> bytes:
        """The WebSocket frames, for transports that take bytes: one for each message. Always valid UTF-8."""
        frame = self._frame
        if frame is None:
            parts = self._parts
            frame = b"".join([part.frame for part in parts]) if parts else text_frame(self.data)
            self._frame = frame
        return frame


def message(
    method: str,
    *,
    data: bytes = b"null",
    success: bytes = b"null",
    channel: bytes = b"null",
    error: bytes = b"null",
    more: bytes = b"",
) -> bytes:
    """The five keys in the order of the wire, values as JSON; `more` is what follows, with its leading comma."""
    return b'{"method":"%b","data":%b,"success":%b,"channel":%b,"error":%b%b}' % (
        method.encode(),
        data,
        success,
        channel,
        error,
        more,
    )


def event_push(event: TapeEvent, channel: bytes, *, is_job: bool = False) -> bytes | None:
    """The push of an event on a client channel (given as JSON); None for types that clients are not sent."""
    head = _JOB_HEAD if is_job else _EVENT_HEADS.get(event.event_type)
    if head is None:
        return None
    offset = event.offset
    if offset is None or event.mixed:
        end = b',"final":true}' if event.final else b"}"
    else:
        end = b',"offset":%d,"epoch":%b%b' % (offset, _epoch(event.epoch), b',"final":true}' if event.final else b"}")
    return b"".join((head, event.payload, b',"success":null,"channel":', channel, b',"error":null', end))


def _head(method: WSMethod) -> bytes:
    return b'{"method":"%b","data":' % method.encode()


_JOB_HEAD: Final = _head(WSMethod.JOB_EVENT)
_EVENT_HEADS: Final = {event_type: _head(method) for event_type, method in METHOD_OF_EVENT.items()}


@lru_cache(maxsize=4096)
def _epoch(epoch: str | None) -> bytes:
    return to_json(epoch)


@lru_cache(maxsize=4096)
def position_format(epoch: str) -> bytes:
    """How the envelope of a durable event ends, when it is not the last one, with `%d` for its offset; its push ends
    so, too."""
    return b',"offset":%%d,"epoch":%b}' % _epoch(epoch).replace(b"%", b"%%")


def event_head(event_type: str, *, is_job: bool) -> bytes | None:
    """What stands in a push before its data; None for types that clients are not sent."""
    return _JOB_HEAD if is_job else _EVENT_HEADS.get(event_type)


def channel_keys(channel: bytes) -> bytes:
    """What stands in a push between its data and its position."""
    return b',"success":null,"channel":%b,"error":null' % channel


def position_keys(offset: int | str, epoch: str | None) -> bytes:
    """`offset` and `epoch` as they stand at top level of a push."""
    return b',"offset":%b,"epoch":%b' % (to_json(offset), to_json(epoch))


def gap_push(channel: bytes, first: int | None, last: int | None, epoch: str | None) -> bytes:
    """Events from `first` to `last` cannot be delivered any more (None: it is not known which)."""
    return message(WSMethod.GAP, data=to_json({"from": first, "to": last, "epoch": epoch}), channel=channel)


def replay_complete_push(channel: bytes, offset: int | str, epoch: str | None) -> bytes:
    """What was missed has been sent up to this position (a string on a mixed tape); from here on it is live."""
    return message(WSMethod.REPLAY_COMPLETE, channel=channel, more=position_keys(offset, epoch))


def error_push(
    text: str,
    *,
    code: str | None = None,
    retry: bool | None = None,
    channel: bytes = b"null",
    request_id: RequestId | None = None,
    **more: object,
) -> bytes:
    """An error. Those of the seed have the five keys only; `code` and what follows stand in those that are ours."""
    keys: dict[str, object] = {}
    if request_id is not None:
        keys["id"] = request_id
    if code is not None:
        keys["code"] = code
    if retry is not None:
        keys["retry"] = retry
    keys |= more
    return message(
        WSMethod.ERROR,
        success=b"false",
        channel=channel,
        error=to_json(text),
        more=b"," + to_json(keys)[1:-1] if keys else b"",
    )


def reply(
    method: WSMethod, *, channel: str | None, data: bytes = b"null", request_id: RequestId | None = None
) -> bytes:
    """A success. Exactly five keys, and `id` when the client sent one."""
    return message(method, data=data, success=b"true", channel=to_json(channel), more=_id_key(request_id))


def heartbeat_reply(request_id: RequestId | None = None) -> bytes:
    """Exactly three keys, and `id` when the client sent one."""
    return b'{"method":"heartbeat","data":"pong","success":true%b}' % _id_key(request_id)


def _id_key(request_id: RequestId | None) -> bytes:
    return b"" if request_id is None else b',"id":' + to_json(request_id)
