"""The shapes of all messages of the socket, for whoever describes or checks them. Pure; nothing here builds one.

Requests are those that the session accepts. What the server sends is described as `messages.py` splices it: the keys
stand here in the order of the wire, an optional key is absent rather than null, and there are no others. Events are
pushed as they were published, unchecked; here they have the shape that livetape's own publishers give them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, NotRequired, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from livetape.events.event import CommunicationErrorEvent, JobEvent
from livetape.events.executions import GraphExecutionEvent, NodeExecutionEvent, NodeOutputEvent
from livetape.events.notifications import NotificationPayload
from livetape.gateway.messages import (
    RequestId,
    WSMethod,
    WSRefreshRequest,
    WSStopRequest,
    WSSubscribeGraphExecutionRequest,
    WSSubscribeGraphExecutionsRequest,
    WSSubscribeJobRequest,
    WSUnsubscribeRequest,
)

EXACT: Final = ConfigDict(extra="forbid")

# ---- requests --------------------------------------------------------------------------------------------------------


class Request(BaseModel):
    """What every request may carry. Keys that are not named here are ignored."""

    id: RequestId | None = Field(None, description="Comes back in the answer.")
    success: bool | None = None
    channel: str | None = None
    error: str | None = None


class SubscribeGraphExecution(Request):
    """Watch one execution: its state, and that of its nodes."""

    method: Literal["subscribe_graph_execution"]
    data: WSSubscribeGraphExecutionRequest


class SubscribeGraphExecutions(Request):
    """Watch all executions of a graph: their state, without that of their nodes."""

    method: Literal["subscribe_graph_executions"]
    data: WSSubscribeGraphExecutionsRequest


class SubscribeJob(Request):
    """Watch one job."""

    method: Literal["subscribe_job"]
    data: WSSubscribeJobRequest


class Unsubscribe(Request):
    """Watch it no more."""

    method: Literal["unsubscribe"]
    data: WSUnsubscribeRequest


class Heartbeat(BaseModel):
    """Ask for a sign of life. Nothing but `method` and `id` is looked at."""

    method: Literal["heartbeat"]
    data: Any = None
    id: RequestId | None = Field(None, description="Comes back in the answer.")


class Refresh(Request):
    """Go on with another token of the same user."""

    method: Literal["refresh"]
    data: WSRefreshRequest


class StopGraphExecution(Request):
    """Stop an execution."""

    method: Literal["stop_graph_execution"]
    data: WSStopRequest


class ClientError(Request):
    """The client tells of an error on its side. It is logged and not answered."""

    method: Literal["error"]
    data: dict[str, Any] | list[Any] | str | None = None


# ---- replies ---------------------------------------------------------------------------------------------------------

Id: TypeAlias = Annotated[RequestId, Field(description="The one of the request; absent when it had none.")]
Offset: TypeAlias = Annotated[int, Field(ge=0)]
MixedOffset: TypeAlias = Annotated[str, Field(pattern="^[0-9]+$", description="On a mixed tape (`mixed`).")]


@with_config(EXACT)
class SubscriptionStart(TypedDict):
    """Where a subscription with `since` begins. `count`: at most so many events follow before `replay_complete`."""

    epoch: str | None
    offset: Offset | MixedOffset
    recovered: Annotated[bool, Field(description="False: what lies before could not be had, read the state anew.")]
    count: Offset
    mixed: NotRequired[Literal[True]]


@with_config(EXACT)
class SubscribeGraphExecutionReply(TypedDict):
    """The execution is watched. `data` is null unless `since` was asked for."""

    method: Literal["subscribe_graph_execution"]
    data: SubscriptionStart | None
    success: Literal[True]
    channel: str
    error: None
    id: NotRequired[Id]


@with_config(EXACT)
class SubscribeGraphExecutionsReply(TypedDict):
    """The graph is watched. `data` is null unless `since` was asked for."""

    method: Literal["subscribe_graph_executions"]
    data: SubscriptionStart | None
    success: Literal[True]
    channel: str
    error: None
    id: NotRequired[Id]


@with_config(EXACT)
class SubscribeJobReply(TypedDict):
    """The job is watched. `data` is null unless `since` was asked for."""

    method: Literal["subscribe_job"]
    data: SubscriptionStart | None
    success: Literal[True]
    channel: str
    error: None
    id: NotRequired[Id]


@with_config(EXACT)
class UnsubscribeReply(TypedDict):
    """It is not watched any more; `channel` is null when it was not."""

    method: Literal["unsubscribe"]
    data: None
    success: Literal[True]
    channel: str | None
    error: None
    id: NotRequired[Id]


@with_config(EXACT)
class HeartbeatReply(TypedDict):
    """The sign of life."""

    method: Literal["heartbeat"]
    data: Literal["pong"]
    success: Literal[True]
    id: NotRequired[Id]


@with_config(EXACT)
class Expiry(TypedDict):
    """When the token ends; null when it does not."""

    expires_at: datetime | None


@with_config(EXACT)
class RefreshReply(TypedDict):
    """The new token counts."""

    method: Literal["refresh"]
    data: Expiry
    success: Literal[True]
    channel: None
    error: None
    id: NotRequired[Id]


@with_config(EXACT)
class Accepted(TypedDict):
    """It is written down and will be done, whatever dies."""

    accepted: Literal[True]


@with_config(EXACT)
class StopGraphExecutionReply(TypedDict):
    """The wish to stop is committed."""

    method: Literal["stop_graph_execution"]
    data: Accepted
    success: Literal[True]
    channel: None
    error: None
    id: NotRequired[Id]


# ---- events ----------------------------------------------------------------------------------------------------------

Base64: TypeAlias = Annotated[str, Field(pattern="^[A-Za-z0-9+/]*={0,2}$")]


@with_config(EXACT)
class EncryptedBody(TypedDict):
    """AES-256-GCM: `kid` names the key; nonce, and text with its seal."""

    v: int
    kid: Annotated[str, Field(pattern="^[A-Za-z0-9._-]{1,64}$")]
    nonce: Base64
    data: Base64


@with_config(EXACT)
class EncryptedEvent(TypedDict):
    """An event that only those with the key can read."""

    event_type: str
    encrypted: EncryptedBody


Epoch: TypeAlias = Annotated[str, Field(description="With `offset`, the position: `since` takes it.")]
Last: TypeAlias = Annotated[Literal[True], Field(description="The last event of its tape.")]
Truncated: TypeAlias = Annotated[Literal[True], Field(description="It was too large, and long values are shortened.")]


@with_config(EXACT)
class GraphExecutionPush(TypedDict):
    """An execution has a new state: all of it."""

    method: Literal["graph_execution_event"]
    data: GraphExecutionEvent | EncryptedEvent
    success: None
    channel: str
    error: None
    offset: NotRequired[Offset]
    epoch: NotRequired[Epoch]
    final: NotRequired[Last]
    truncated: NotRequired[Truncated]


@with_config(EXACT)
class NodeExecutionPush(TypedDict):
    """A node of a watched execution has a new state: all of it, with everything it took and gave so far."""

    method: Literal["node_execution_event"]
    data: NodeExecutionEvent | EncryptedEvent
    success: None
    channel: str
    error: None
    offset: NotRequired[Offset]
    epoch: NotRequired[Epoch]
    truncated: NotRequired[Truncated]


@with_config(EXACT)
class NodeOutputPush(TypedDict):
    """A node gave one value. Only on a subscription with `outputs: "each"`."""

    method: Literal["node_output_event"]
    data: NodeOutputEvent | EncryptedEvent
    success: None
    channel: str
    error: None
    offset: NotRequired[Offset]
    epoch: NotRequired[Epoch]
    truncated: NotRequired[Truncated]


@with_config(EXACT)
class JobPush(TypedDict):
    """A step of a watched job."""

    method: Literal["job_event"]
    data: JobEvent | EncryptedEvent | CommunicationErrorEvent
    success: None
    channel: str
    error: None
    offset: NotRequired[Offset]
    epoch: NotRequired[Epoch]
    final: NotRequired[Last]
    truncated: NotRequired[Truncated]


@with_config(EXACT)
class NotificationPush(TypedDict):
    """For every socket of the user, without a subscription."""

    method: Literal["notification"]
    data: NotificationPayload
    success: None
    channel: None
    error: None


# ---- what the server says by itself ----------------------------------------------------------------------------------


@with_config(EXACT)
class ReplayCompletePush(TypedDict):
    """What was missed has been sent up to this position; from here on it is live."""

    method: Literal["replay_complete"]
    data: None
    success: None
    channel: str
    error: None
    offset: Offset | MixedOffset
    epoch: str | None


Missing = TypedDict("Missing", {"from": Offset | None, "to": Offset | None, "epoch": str | None})
with_config(EXACT)(Missing)
Missing.__doc__ = "The first and the last number of what is missing; null: it is not known."


@with_config(EXACT)
class GapPush(TypedDict):
    """Events cannot be delivered any more: read the state anew."""

    method: Literal["gap"]
    data: Missing
    success: None
    channel: str
    error: None


@with_config(EXACT)
class TokenExpiringPush(TypedDict):
    """The token is about to end: send a `refresh`, or the socket is closed."""

    method: Literal["token_expiring"]
    data: Expiry
    success: None
    channel: None
    error: None


@with_config(EXACT)
class ReconnectAfter(TypedDict):
    """How long to wait before, so that not all come at once."""

    after_ms: Offset


@with_config(EXACT)
class ReconnectPush(TypedDict):
    """This server is about to stop: connect again, with the positions that you have."""

    method: Literal["reconnect"]
    data: ReconnectAfter
    success: None
    channel: None
    error: None


@with_config(EXACT)
class UnsubscribedPush(TypedDict):
    """The server ended this subscription; nothing comes on its channel any more."""

    method: Literal["unsubscribed"]
    data: None
    success: None
    channel: str
    error: None


ErrorCode: TypeAlias = Literal[
    "channel",
    "internal",
    "invalid_token",
    "not_found",
    "payload_too_large",
    "rate_limited",
    "too_many_channels",
    "too_many_sockets",
    "unavailable",
]


@with_config(EXACT)
class ErrorPush(TypedDict):
    """Something could not be done; the socket stays open. Errors without `code` are those of the older protocol."""

    method: Literal["error"]
    data: None
    success: Literal[False]
    channel: str | None
    error: Annotated[str, Field(description="What went wrong, in words.")]
    id: NotRequired[Id]
    code: NotRequired[ErrorCode]
    retry: NotRequired[Annotated[bool, Field(description="Whether the same may go well later.")]]
    retry_after: NotRequired[Annotated[Offset, Field(description="Seconds to wait before.")]]
    correlation_id: NotRequired[Annotated[str, Field(description="Under which the server's log tells more.")]]
    offset: NotRequired[Offset]
    epoch: NotRequired[str]


# ---- all of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answered:
    """A request, and what it is answered with when it went well; None: it is never answered."""

    request: type[BaseModel]
    reply: Any = None


REQUESTS: Final[Mapping[WSMethod, Answered]] = {
    WSMethod.SUBSCRIBE_GRAPH_EXEC: Answered(SubscribeGraphExecution, SubscribeGraphExecutionReply),
    WSMethod.SUBSCRIBE_GRAPH_EXECS: Answered(SubscribeGraphExecutions, SubscribeGraphExecutionsReply),
    WSMethod.SUBSCRIBE_JOB: Answered(SubscribeJob, SubscribeJobReply),
    WSMethod.UNSUBSCRIBE: Answered(Unsubscribe, UnsubscribeReply),
    WSMethod.HEARTBEAT: Answered(Heartbeat, HeartbeatReply),
    WSMethod.REFRESH: Answered(Refresh, RefreshReply),
    WSMethod.STOP_GRAPH_EXEC: Answered(StopGraphExecution, StopGraphExecutionReply),
    WSMethod.ERROR: Answered(ClientError),
}
"""Everything that a client may send."""

PUSHES: Final[Mapping[WSMethod, Any]] = {
    WSMethod.GRAPH_EXECUTION_EVENT: GraphExecutionPush,
    WSMethod.NODE_EXECUTION_EVENT: NodeExecutionPush,
    WSMethod.NODE_OUTPUT_EVENT: NodeOutputPush,
    WSMethod.JOB_EVENT: JobPush,
    WSMethod.NOTIFICATION: NotificationPush,
    WSMethod.REPLAY_COMPLETE: ReplayCompletePush,
    WSMethod.GAP: GapPush,
    WSMethod.TOKEN_EXPIRING: TokenExpiringPush,
    WSMethod.RECONNECT: ReconnectPush,
    WSMethod.UNSUBSCRIBED: UnsubscribedPush,
    WSMethod.ERROR: ErrorPush,
}
"""Everything that the server says without having been asked, and errors."""
