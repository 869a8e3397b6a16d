"""livetape: a live, replayable tape of every step of graphs and background jobs.

These are the main names of the event library; `livetape.events` has them all. It needs Pydantic alone. What makes and
serves executions is imported from its own packages. Names are loaded when they are first used: `livetape --help`
passes through here too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from livetape.events import (
        AsyncRedisEventBus,
        AsyncRedisExecutionEventBus,
        AsyncRedisNotificationEventBus,
        Backend,
        BaseRedisEventBus,
        Bus,
        BusError,
        BusMessage,
        BusUnavailableError,
        ChannelError,
        ClosedError,
        Codec,
        CodecError,
        CommunicationErrorEvent,
        ConfigError,
        ConsumerGroups,
        DecryptionError,
        DeliveryPolicy,
        Entry,
        Envelope,
        Event,
        EventBus,
        EventListener,
        EventLog,
        ExecutionEvent,
        ExecutionEventType,
        ExecutionStatus,
        GraphExecutionEvent,
        JobEvent,
        JobReader,
        Jobs,
        JsonCodec,
        KeyRing,
        LivetapeError,
        LogError,
        LogUnavailableError,
        NewEvent,
        NodeExecutionEvent,
        NodeOutputEvent,
        NotFoundError,
        NotificationEvent,
        NotificationPayload,
        Position,
        PositionLostError,
        Published,
        Publisher,
        Recorded,
        Recorder,
        RedisEventBus,
        RedisExecutionEventBus,
        RedisNotificationEventBus,
        RedisStreamPublisher,
        Subscription,
        Tape,
        TapeHoleError,
        TokenStream,
        open_backend,
        open_client,
    )
    from livetape.events.encrypted import encrypted

__all__ = [
    "AsyncRedisEventBus",
    "AsyncRedisExecutionEventBus",
    "AsyncRedisNotificationEventBus",
    "Backend",
    "BaseRedisEventBus",
    "Bus",
    "BusError",
    "BusMessage",
    "BusUnavailableError",
    "ChannelError",
    "ClosedError",
    "Codec",
    "CodecError",
    "CommunicationErrorEvent",
    "ConfigError",
    "ConsumerGroups",
    "DecryptionError",
    "DeliveryPolicy",
    "Entry",
    "Envelope",
    "Event",
    "EventBus",
    "EventListener",
    "EventLog",
    "ExecutionEvent",
    "ExecutionEventType",
    "ExecutionStatus",
    "GraphExecutionEvent",
    "JobEvent",
    "JobReader",
    "Jobs",
    "JsonCodec",
    "KeyRing",
    "LivetapeError",
    "LogError",
    "LogUnavailableError",
    "NewEvent",
    "NodeExecutionEvent",
    "NodeOutputEvent",
    "NotFoundError",
    "NotificationEvent",
    "NotificationPayload",
    "Position",
    "PositionLostError",
    "Published",
    "Publisher",
    "Recorded",
    "Recorder",
    "RedisEventBus",
    "RedisExecutionEventBus",
    "RedisNotificationEventBus",
    "RedisStreamPublisher",
    "Subscription",
    "Tape",
    "TapeHoleError",
    "TokenStream",
    "encrypted",
    "open_backend",
    "open_client",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'livetape' has no attribute {name!r}")
    # a function of the name of its module, which is what `livetape.events` has under it
    home = "livetape.events.encrypted" if name == "encrypted" else "livetape.events"
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
