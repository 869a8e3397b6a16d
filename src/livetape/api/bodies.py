"""Bodies that a process without an engine sends and takes, too: errors, positions, jobs, health."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from livetape.events.log import Position, Tape
from livetape.events.recorder import Recorded

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _without_control_characters(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("control characters are not allowed here")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_without_control_characters)]
"""An id or a name in a path or a body: 1 to 200 characters, none of them a control character."""

IdempotencyKey = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[\x20-\x7e]+$")]
"""1 to 255 printable ASCII characters."""


class ErrorItem(BaseModel):
    """One fault of a request: where it is and what is wrong.

    `location` is the part of the request (body, query, path, header), or `graph` or `server`; `pointer` is a JSON
    pointer into it.
    """

    location: str
    pointer: str
    detail: str
    code: str


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 and above."""

    message: str
    detail: str | list[Any] | dict[str, Any]
    hint: str
    type: str
    title: str
    status: int
    instance: str
    code: str
    errors: list[ErrorItem]


class StreamPosition(BaseModel):
    """A place on a tape: after the event with this offset."""

    epoch: str
    offset: int

    @classmethod
    def of(cls, position: Position) -> StreamPosition:
        return cls(epoch=position.epoch, offset=position.offset)


class PublishJobEvent(BaseModel):
    """One event for the tape of a job. `timestamp` is ISO 8601; the server's time when it is left out."""

    event_type: Name
    data: Any = None
    timestamp: Annotated[str, Field(max_length=64), AfterValidator(_without_control_characters)] | None = None
    idempotency_key: IdempotencyKey | None = None


class JobPosition(BaseModel):
    """Where a published event stands on the tape of its job.

    `mixed`: somebody else writes to the tape too; its offsets are strings, JSON numbers do not carry them exactly.
    """

    epoch: str
    offset: int | str
    mixed: Literal[True] | None = None

    @classmethod
    def of(cls, recorded: Recorded) -> JobPosition:
        epoch, offset = recorded.position.epoch, recorded.position.offset
        return cls(epoch=epoch, offset=str(offset), mixed=True) if recorded.mixed else cls(epoch=epoch, offset=offset)


class JobInfo(BaseModel):
    """What is known of the tape of a job."""

    job_id: str
    events: int
    first_offset: int
    final: bool
    epoch: str
    stream: StreamPosition

    @classmethod
    def of(cls, job_id: str, tape: Tape) -> JobInfo:
        return cls(
            job_id=job_id,
            events=tape.offset,
            first_offset=tape.first_offset,
            final=tape.final,
            epoch=tape.epoch,
            stream=StreamPosition.of(tape.position),
        )


class Health(BaseModel):
    """The server answers."""

    status: Literal["healthy", "alive", "ready"]


class Readiness(Health):
    """The server can serve. `degraded`: what is not as it should be and stops nobody, by name: `queue` while doorbells
    wait in the database. Not there when there is nothing."""

    degraded: list[str] = []


class Version(BaseModel):
    """What runs here."""

    name: str
    version: str
