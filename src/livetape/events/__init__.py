"""The event library: typed buses, job streams, and the ports that they stand on.

It needs Pydantic alone; drivers are loaded by the URL that asks for them. What belongs to Celery is imported from
`livetape.events.celery`, and functions named like their module from there (`livetape.events.follow`, `.encrypted`).
Names are loaded when they are first used.
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
    from livetape.events.alert_watcher import AlertStats, AlertWatcher
    from livetape.events.alerts import Alert, Failed, JobSeen, Rule, Silent, TooFrequent
    from livetape.events.archive import Archived, ArchivedLog, Archiver
    from livetape.events.batching import Batch
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
    from livetape.events.codec import Codec, Encoded, Envelope, JsonCodec
    from livetape.events.delivery import CircuitState, DeliveryPolicy
    from livetape.events.encryption import EncryptedCodec
    from livetape.events.event import CommunicationErrorEvent, Event, JobEvent
    from livetape.events.event_listener import EventListener, ListenerState
    from livetape.events.executions import (
        ExecutionEvent,
        ExecutionEventType,
        ExecutionStats,
        ExecutionStatus,
        GraphExecution,
        GraphExecutionEvent,
        GraphExecutionMeta,
        NodeExecutionEvent,
        NodeExecutionResult,
        NodeOutputEvent,
    )
    from livetape.events.follow import FollowOptions
    from livetape.events.groups import ConsumerGroups, Delivered, Pending
    from livetape.events.job_groups import JobGroup, Taken
    from livetape.events.job_record import JobRecord
    from livetape.events.jobs import Jobs
    from livetape.events.keyring import KeyRing
    from livetape.events.log import Entry, EventLog, NewEvent, Position, Tape
    from livetape.events.notifications import (
        CopilotCompletionPayload,
        NotificationEvent,
        NotificationPayload,
        OnboardingNotificationPayload,
    )
    from livetape.events.open import Backend, open_backend, open_client
    from livetape.events.options import Stats
    from livetape.events.process_links import ProcessLinks
    from livetape.events.publisher import Publisher
    from livetape.events.reader import Found, JobInfo, JobPage, JobReader
    from livetape.events.recorder import Live, LogRecorder, Recorded, Recorder
    from livetape.events.recovery import Gap
    from livetape.events.result import Dropped, Published
    from livetape.events.retention import Retention, RetentionPolicy, RetentionReport
    from livetape.events.streams import RedisStreamPublisher
    from livetape.events.sync import Portal, SyncIterator
    from livetape.events.tape_retention import TapeRetention
    from livetape.events.text_assembler import TextAssembler, TextChange, TokenRecord
    from livetape.events.token_text import TextPart, TokenText, follow_text, read_text
    from livetape.events.tokens import JobWriter, TokenStream, onto_job
    from livetape.events.typed import EventBus

_HOME = {
    "Alert": "livetape.events.alerts",
    "AlertStats": "livetape.events.alert_watcher",
    "AlertWatcher": "livetape.events.alert_watcher",
    "Archived": "livetape.events.archive",
    "ArchivedLog": "livetape.events.archive",
    "Archiver": "livetape.events.archive",
    "AsyncRedisEventBus": "livetape.events.buses",
    "AsyncRedisExecutionEventBus": "livetape.events.buses",
    "AsyncRedisNotificationEventBus": "livetape.events.buses",
    "Backend": "livetape.events.open",
    "BaseRedisEventBus": "livetape.events.buses",
    "Batch": "livetape.events.batching",
    "Bus": "livetape.events.bus",
    "BusError": "livetape.errors",
    "BusMessage": "livetape.events.bus",
    "BusUnavailableError": "livetape.errors",
    "ChannelError": "livetape.errors",
    "CircuitState": "livetape.events.delivery",
    "ClosedError": "livetape.errors",
    "Codec": "livetape.events.codec",
    "CodecError": "livetape.errors",
    "CommunicationErrorEvent": "livetape.events.event",
    "ConfigError": "livetape.errors",
    "ConsumerGroups": "livetape.events.groups",
    "CopilotCompletionPayload": "livetape.events.notifications",
    "DecryptionError": "livetape.errors",
    "Delivered": "livetape.events.groups",
    "DeliveryPolicy": "livetape.events.delivery",
    "Dropped": "livetape.events.result",
    "Encoded": "livetape.events.codec",
    "EncryptedCodec": "livetape.events.encryption",
    "Entry": "livetape.events.log",
    "Envelope": "livetape.events.codec",
    "Event": "livetape.events.event",
    "EventBus": "livetape.events.typed",
    "EventListener": "livetape.events.event_listener",
    "EventLog": "livetape.events.log",
    "ExecutionEvent": "livetape.events.executions",
    "ExecutionEventType": "livetape.events.executions",
    "ExecutionStats": "livetape.events.executions",
    "ExecutionStatus": "livetape.events.executions",
    "Failed": "livetape.events.alerts",
    "FollowOptions": "livetape.events.follow",
    "Found": "livetape.events.reader",
    "Gap": "livetape.events.recovery",
    "GraphExecution": "livetape.events.executions",
    "GraphExecutionEvent": "livetape.events.executions",
    "GraphExecutionMeta": "livetape.events.executions",
    "JobEvent": "livetape.events.event",
    "JobGroup": "livetape.events.job_groups",
    "JobInfo": "livetape.events.reader",
    "JobPage": "livetape.events.reader",
    "JobReader": "livetape.events.reader",
    "JobRecord": "livetape.events.job_record",
    "JobSeen": "livetape.events.alerts",
    "JobWriter": "livetape.events.tokens",
    "Jobs": "livetape.events.jobs",
    "JsonCodec": "livetape.events.codec",
    "KeyRing": "livetape.events.keyring",
    "ListenerState": "livetape.events.event_listener",
    "Live": "livetape.events.recorder",
    "LivetapeError": "livetape.errors",
    "LogError": "livetape.errors",
    "LogRecorder": "livetape.events.recorder",
    "LogUnavailableError": "livetape.errors",
    "NewEvent": "livetape.events.log",
    "NodeExecutionEvent": "livetape.events.executions",
    "NodeExecutionResult": "livetape.events.executions",
    "NodeOutputEvent": "livetape.events.executions",
    "NotFoundError": "livetape.errors",
    "NotificationEvent": "livetape.events.notifications",
    "NotificationPayload": "livetape.events.notifications",
    "OnboardingNotificationPayload": "livetape.events.notifications",
    "Pending": "livetape.events.groups",
    "Portal": "livetape.events.sync",
    "Position": "livetape.events.log",
    "PositionLostError": "livetape.errors",
    "ProcessLinks": "livetape.events.process_links",
    "Published": "livetape.events.result",
    "Publisher": "livetape.events.publisher",
    "Recorded": "livetape.events.recorder",
    "Recorder": "livetape.events.recorder",
    "RedisEventBus": "livetape.events.buses",
    "RedisExecutionEventBus": "livetape.events.buses",
    "RedisNotificationEventBus": "livetape.events.buses",
    "RedisStreamPublisher": "livetape.events.streams",
    "Retention": "livetape.events.retention",
    "RetentionPolicy": "livetape.events.retention",
    "RetentionReport": "livetape.events.retention",
    "Rule": "livetape.events.alerts",
    "Silent": "livetape.events.alerts",
    "Stats": "livetape.events.options",
    "Subscription": "livetape.events.bus",
    "SyncIterator": "livetape.events.sync",
    "Taken": "livetape.events.job_groups",
    "Tape": "livetape.events.log",
    "TapeHoleError": "livetape.errors",
    "TapeRetention": "livetape.events.tape_retention",
    "TextAssembler": "livetape.events.text_assembler",
    "TextChange": "livetape.events.text_assembler",
    "TextPart": "livetape.events.token_text",
    "TokenRecord": "livetape.events.text_assembler",
    "TokenStream": "livetape.events.tokens",
    "TokenText": "livetape.events.token_text",
    "TooFrequent": "livetape.events.alerts",
    "follow_text": "livetape.events.token_text",
    "onto_job": "livetape.events.tokens",
    "open_backend": "livetape.events.open",
    "open_client": "livetape.events.open",
    "read_text": "livetape.events.token_text",
}

__all__ = [
    "Alert",
    "AlertStats",
    "AlertWatcher",
    "Archived",
    "ArchivedLog",
    "Archiver",
    "AsyncRedisEventBus",
    "AsyncRedisExecutionEventBus",
    "AsyncRedisNotificationEventBus",
    "Backend",
    "BaseRedisEventBus",
    "Batch",
    "Bus",
    "BusError",
    "BusMessage",
    "BusUnavailableError",
    "ChannelError",
    "CircuitState",
    "ClosedError",
    "Codec",
    "CodecError",
    "CommunicationErrorEvent",
    "ConfigError",
    "ConsumerGroups",
    "CopilotCompletionPayload",
    "DecryptionError",
    "Delivered",
    "DeliveryPolicy",
    "Dropped",
    "Encoded",
    "EncryptedCodec",
    "Entry",
    "Envelope",
    "Event",
    "EventBus",
    "EventListener",
    "EventLog",
    "ExecutionEvent",
    "ExecutionEventType",
    "ExecutionStats",
    "ExecutionStatus",
    "Failed",
    "FollowOptions",
    "Found",
    "Gap",
    "GraphExecution",
    "GraphExecutionEvent",
    "GraphExecutionMeta",
    "JobEvent",
    "JobGroup",
    "JobInfo",
    "JobPage",
    "JobReader",
    "JobRecord",
    "JobSeen",
    "JobWriter",
    "Jobs",
    "JsonCodec",
    "KeyRing",
    "ListenerState",
    "Live",
    "LivetapeError",
    "LogError",
    "LogRecorder",
    "LogUnavailableError",
    "NewEvent",
    "NodeExecutionEvent",
    "NodeExecutionResult",
    "NodeOutputEvent",
    "NotFoundError",
    "NotificationEvent",
    "NotificationPayload",
    "OnboardingNotificationPayload",
    "Pending",
    "Portal",
    "Position",
    "PositionLostError",
    "ProcessLinks",
    "Published",
    "Publisher",
    "Recorded",
    "Recorder",
    "RedisEventBus",
    "RedisExecutionEventBus",
    "RedisNotificationEventBus",
    "RedisStreamPublisher",
    "Retention",
    "RetentionPolicy",
    "RetentionReport",
    "Rule",
    "Silent",
    "Stats",
    "Subscription",
    "SyncIterator",
    "Taken",
    "Tape",
    "TapeHoleError",
    "TapeRetention",
    "TextAssembler",
    "TextChange",
    "TextPart",
    "TokenRecord",
    "TokenStream",
    "TokenText",
    "TooFrequent",
    "follow_text",
    "onto_job",
    "open_backend",
    "open_client",
    "read_text",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'livetape.events' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
