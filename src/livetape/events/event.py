"""The base of all events and the events that belong to no other module.

An event is an immutable, typed fact that happened. `event_type` is its name on the wire and comes first in its
JSON, so that a reader of bytes can route it without parsing the rest.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict


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


class JobEvent(Event):
    """One step of a background job, as the seed's stream publisher writes it.

    `data` is any JSON object; `timestamp` is ISO 8601 or empty (what the publisher gave).
    """

    durable: ClassVar[bool] = True

    event_type: str
    job_id: str
    timestamp: str = ""
    data: Any = None


JOB_FINAL_TYPES = frozenset({"task_completed", "task_failed"})
"""After one of these a job is over: streams end and the tape is marked final."""
