"""livetape: a live, replayable tape of every step of graphs and background jobs.

These are the names of the event library; it needs Pydantic alone. What makes and serves executions is imported from
its own packages. Names are loaded when they are first used: `livetape --help` passes through here too.
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
        LivetapeError,
        LogError,
        LogUnavailableError,
        NotFoundError,
        PositionLostError,
        TapeHoleError,
    )
    from livetape.events.bus import Bus, BusMessage, Subscription
    from livetape.events.codec import Envelope
    from livetape.events.event import CommunicationErrorEvent, Event, JobEvent
    from livetape.events.executions import (
        ExecutionEvent,
        ExecutionEventType,
        ExecutionStatus,
        GraphExecutionEvent,
        NodeExecutionEvent,
        NodeOutputEvent,
    )
    from livetape.events.jobs import Jobs
    from livetape.events.log import Entry, EventLog, NewEvent, Position, Tape
    from livetape.events.publisher import Publisher

_HOME = {
    "Bus": "livetape.events.bus",
    "BusError": "livetape.errors",
    "BusMessage": "livetape.events.bus",
    "BusUnavailableError": "livetape.errors",
    "ChannelError": "livetape.errors",
    "ClosedError": "livetape.errors",
    "CodecError": "livetape.errors",
    "CommunicationErrorEvent": "livetape.events.event",
    "Entry": "livetape.events.log",
    "Envelope": "livetape.events.codec",
    "Event": "livetape.events.event",
    "EventLog": "livetape.events.log",
    "ExecutionEvent": "livetape.events.executions",
    "ExecutionEventType": "livetape.events.executions",
    "ExecutionStatus": "livetape.events.executions",
    "GraphExecutionEvent": "livetape.events.executions",
    "JobEvent": "livetape.events.event",
    "Jobs": "livetape.events.jobs",
    "LivetapeError": "livetape.errors",
    "LogError": "livetape.errors",
    "LogUnavailableError": "livetape.errors",
    "NewEvent": "livetape.events.log",
    "NodeExecutionEvent": "livetape.events.executions",
    "NodeOutputEvent": "livetape.events.executions",
    "NotFoundError": "livetape.errors",
    "Position": "livetape.events.log",
    "PositionLostError": "livetape.errors",
    "Publisher": "livetape.events.publisher",
    "Subscription": "livetape.events.bus",
    "Tape": "livetape.events.log",
    "TapeHoleError": "livetape.errors",
}

__all__ = [
    "Bus",
    "BusError",
    "BusMessage",
    "BusUnavailableError",
    "ChannelError",
    "ClosedError",
    "CodecError",
    "CommunicationErrorEvent",
    "Entry",
    "Envelope",
    "Event",
    "EventLog",
    "ExecutionEvent",
    "ExecutionEventType",
    "ExecutionStatus",
    "GraphExecutionEvent",
    "JobEvent",
    "Jobs",
    "LivetapeError",
    "LogError",
    "LogUnavailableError",
    "NewEvent",
    "NodeExecutionEvent",
    "NodeOutputEvent",
    "NotFoundError",
    "Position",
    "PositionLostError",
    "Publisher",
    "Subscription",
    "Tape",
    "TapeHoleError",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'livetape' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
