"""livetape: a live, replayable tape of every step of graphs and background jobs.

These are the main names of the event library; `livetape.events` has them all. It needs Pydantic alone. What makes and
serves executions is imported from its own packages. Names are loaded when they are first used: `livetape --help`
passes through here too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from livetape.errors import (
        BusError,
        BusUnavailableError,
        ChannelError,
        ClosedError,
        CodecError,
        ConfigError,
        DecryptionError,
        LivetapeError,
        LogError,
        LogUnavailableError,
        NotFoundError,
        PositionLostError,
        TapeHoleError,
    )
    from livetape.events.bus import Bus, BusMessage, Subscription
    from livetape.events.buses import (
        AsyncRedisEventBus,
        AsyncRedisExecutionEventBus,
        AsyncRedisNotificationEventBus,
        BaseRedisEventBus,
        RedisEventBus,
        RedisExecutionEventBus,
        RedisNotificationEventBus,
    )
    from livetape.events.codec import Codec, Envelope, JsonCodec
    from livetape.events.delivery import DeliveryPolicy
    from livetape.events.encrypted import encrypted
    from livetape.events.event import CommunicationErrorEvent, Event, JobEvent
    from livetape.events.event_listener import EventListener
    from livetape.events.executions import (
        ExecutionEvent,
        ExecutionEventType,
        ExecutionStatus,
        GraphExecutionEvent,
        NodeExecutionEvent,
        NodeOutputEvent,
    )
    from livetape.events.groups import ConsumerGroups
    from livetape.events.jobs import Jobs
    from livetape.events.keyring import KeyRing
    from livetape.events.log import Entry, EventLog, NewEvent, Position, Tape
    from livetape.events.notifications import NotificationEvent, NotificationPayload
    from livetape.events.open import Backend, open_backend, open_client
    from livetape.events.publisher import Publisher
    from livetape.events.reader import JobReader
    from livetape.events.recorder import Recorded, Recorder
    from livetape.events.result import Published
    from livetape.events.streams import RedisStreamPublisher
    from livetape.events.tokens import TokenStream
    from livetape.events.typed import EventBus

_HOME = {
    "AsyncRedisEventBus": "livetape.events.buses",
    "AsyncRedisExecutionEventBus": "livetape.events.buses",
    "AsyncRedisNotificationEventBus": "livetape.events.buses",
    "Backend": "livetape.events.open",
    "BaseRedisEventBus": "livetape.events.buses",
    "Bus": "livetape.events.bus",
    "BusError": "livetape.errors",
    "BusMessage": "livetape.events.bus",
    "BusUnavailableError": "livetape.errors",
    "ChannelError": "livetape.errors",
    "ClosedError": "livetape.errors",
    "Codec": "livetape.events.codec",
    "CodecError": "livetape.errors",
    "CommunicationErrorEvent": "livetape.events.event",
    "ConfigError": "livetape.errors",
    "ConsumerGroups": "livetape.events.groups",
    "DecryptionError": "livetape.errors",
    "DeliveryPolicy": "livetape.events.delivery",
    "Entry": "livetape.events.log",
    "Envelope": "livetape.events.codec",
    "Event": "livetape.events.event",
    "EventBus": "livetape.events.typed",
    "EventListener": "livetape.events.event_listener",
    "EventLog": "livetape.events.log",
    "ExecutionEvent": "livetape.events.executions",
    "ExecutionEventType": "livetape.events.executions",
    "ExecutionStatus": "livetape.events.executions",
    "GraphExecutionEvent": "livetape.events.executions",
    "JobEvent": "livetape.events.event",
    "JobReader": "livetape.events.reader",
    "Jobs": "livetape.events.jobs",
    "JsonCodec": "livetape.events.codec",
    "KeyRing": "livetape.events.keyring",
    "LivetapeError": "livetape.errors",
    "LogError": "livetape.errors",
    "LogUnavailableError": "livetape.errors",
    "NewEvent": "livetape.events.log",
    "NodeExecutionEvent": "livetape.events.executions",
    "NodeOutputEvent": "livetape.events.executions",
    "NotFoundError": "livetape.errors",
    "NotificationEvent": "livetape.events.notifications",
    "NotificationPayload": "livetape.events.notifications",
    "Position": "livetape.events.log",
    "PositionLostError": "livetape.errors",
    "Published": "livetape.events.result",
    "Publisher": "livetape.events.publisher",
    "Recorded": "livetape.events.recorder",
    "Recorder": "livetape.events.recorder",
    "RedisEventBus": "livetape.events.buses",
    "RedisExecutionEventBus": "livetape.events.buses",
    "RedisNotificationEventBus": "livetape.events.buses",
    "RedisStreamPublisher": "livetape.events.streams",
    "Subscription": "livetape.events.bus",
    "Tape": "livetape.events.log",
    "TapeHoleError": "livetape.errors",
    "TokenStream": "livetape.events.tokens",
    "encrypted": "livetape.events.encrypted",
    "open_backend": "livetape.events.open",
    "open_client": "livetape.events.open",
}

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
    if name not in _HOME:
        raise AttributeError(f"module 'livetape' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
