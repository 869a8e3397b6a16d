"""The messages of the socket (wire contract, section 3): what clients send, what they are answered, what is pushed.

Inbound messages are validated by models. Outbound ones are spliced from bytes in the exact key order of the wire:
`method, data, success, channel, error`, then what is new. An event's payload is never decoded.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import to_json

from livetape.errors import ChannelError
from livetape.events.channel import encode_part
from livetape.events.tape_event import TapeEvent
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


Id: TypeAlias = Annotated[str, AfterValidator(_usable)]
Strict: TypeAlias = Annotated[bool, Field(strict=True)]


class _Since(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _from_digits(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19 else value


class SincePosition(_Since):
    """After the event with this offset, which may be written as a string."""

    epoch: str = Field(min_length=1, max_length=64)
    offset: Annotated[int, Field(strict=True, ge=0, le=MAX_POSITION), BeforeValidator(_from_digits)]


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
    """A message ready to leave. Built once, shared by everybody who gets it, so every form of it is made once."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"Push({self.data[:200]!r})"

    @property
    def size(self) -> int:
        """Bytes on the wire, without frame."""
        return len(self.data)

    @cached_property
    def text(self) -> str:
        """For transports that take text. What a foreign publisher wrote may not be valid UTF-8."""
        return self.data.decode("utf-8", "replace")


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
    method = WSMethod.JOB_EVENT if is_job else METHOD_OF_EVENT.get(event.event_type)
    if method is None:
        return None
    more = b"" if event.offset is None or event.mixed else position_keys(event.offset, event.epoch)
    if event.final:
        more += b',"final":true'
    return message(method, data=event.payload, channel=channel, more=more)


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
