"""The base of all events and the events that belong to no other module.

An event is an immutable, typed fact that happened. `event_type` is its name on the wire and comes first in its
JSON, so that a reader of bytes can route it without parsing the rest.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr

from livetape.events.channel import split_channel


class Event(BaseModel):
    """A fact that happened. Subclasses declare `event_type: Literal["…"]` as their first field."""

    model_config = ConfigDict(frozen=True)

    # Whether it is written to a tape before it is published.
    durable: ClassVar[bool] = False


class CommunicationErrorEvent(Event):
    """Stands in for a message that was too large for the bus. The ids it belongs to are in the channel name."""

    event_type: Literal["error_comms_update"] = "error_comms_update"
    error: str
    original_size_bytes: int
    max_size_bytes: int
    _channel: str = PrivateAttr(default="")

    @classmethod
    def received(cls, payload: bytes, channel: str) -> Self:
        """From the JSON that came on a channel."""
        event = cls.model_validate_json(payload)
        event._channel = channel
        return event

    @property
    def channel(self) -> str:
        """Where it was received; empty when it was not received."""
        return self._channel

    @property
    def key(self) -> tuple[str, ...]:
        """The ids that it belongs to: the levels of the channel's key."""
        return split_channel(self._channel)[1] if self._channel else ()


class JobEvent(Event):
    """One step of a background job, as the seed's stream publisher writes it.

    `data` is any JSON object; `timestamp` is ISO 8601 or empty (what the publisher gave).
    """

    durable: ClassVar[bool] = True

    event_type: str
    job_id: str
    timestamp: str = ""
    data: Any = None


JOB_FINAL_TYPES = frozenset({"task_completed", "task_failed", "task_revoked"})
"""After one of these a job is over: streams end and the tape is marked final."""
