"""Events and settings that the tests of the log on Redis share."""

from __future__ import annotations

from typing import Any

from livetape.events.channel import job_tape
from livetape.events.codec import encode_payload
from livetape.events.event import JobEvent
from livetape.events.log import NewEvent

JOB = job_tape("j1")
SAFE = {"appendonly": "yes", "appendfsync": "always"}
"""With these no acknowledged write is lost."""


def step(event_type: str = "task_progress", **data: Any) -> NewEvent:
    """An event of the job."""
    event = JobEvent(event_type=event_type, job_id="j1", timestamp="2030-01-02T03:04:05+00:00", data=data)
    return NewEvent(event_type, encode_payload(event)[0], final=event_type in {"task_completed", "task_failed"})


def said(text: str) -> NewEvent:
    """An event of another kind, told apart by its text."""
    return NewEvent("said", b'{"event_type":"said","text":"%s"}' % text.encode())
