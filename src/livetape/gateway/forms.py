"""How one event looks to one kind of client: a socket's push, an SSE block, a line of JSON. Pure, bytes only.

Forms compare equal when their bytes are equal, so that all who share one also share what is built with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from pydantic_core import to_json

from livetape.events.log import Position
from livetape.events.tape_event import TapeEvent
from livetape.gateway import messages

TOO_LARGE: Final = "Event too large"
TOO_LARGE_CODE: Final = "payload_too_large"

_MIXED: Final = b',"mixed":true'
_TRUNCATED: Final = b',"truncated":true}'


class Form(Protocol):
    """Builds what leaves. None: this client is not sent that."""

    def event(self, event: TapeEvent) -> bytes | None: ...

    def next_event(self, event_type: str, payload: bytes, offset: int, epoch: str, tail: bytes) -> bytes | None:
        """The same of an event that is not the last; `tail` is how its envelope ends, from `,"offset":` on."""
        return self.event(TapeEvent(event_type, payload, offset, epoch))

    def shortened(self, event: TapeEvent) -> bytes | None:
        """The same of an event whose payload was cut. A form without a place for saying so sends `too_large`."""

    def gap(self, first: int | None, last: int | None, epoch: str | None) -> bytes: ...

    def replay_complete(self, position: Position, *, mixed: bool = False) -> bytes | None: ...

    def too_large(self, offset: int | None, epoch: str | None, *, mixed: bool = False) -> bytes: ...


@dataclass(frozen=True, slots=True)
class SocketForm(Form):
    """Pushes on a client channel; `channel` is its name as JSON.

    Events of a mixed tape are pushed without position: there is nothing that a client could tell from it.
    """

    channel: bytes
    is_job: bool
    middle: bytes = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "middle", messages.channel_keys(self.channel))

    @classmethod
    def of(cls, channel: str, *, is_job: bool) -> SocketForm:
        """For the channel of this name."""
        return cls(to_json(channel), is_job)

    def event(self, event: TapeEvent) -> bytes | None:
        return messages.event_push(event, self.channel, is_job=self.is_job)

    def next_event(self, event_type: str, payload: bytes, offset: int, epoch: str, tail: bytes) -> bytes | None:
        head = messages.event_head(event_type, is_job=self.is_job)
        return None if head is None else b"".join((head, payload, self.middle, tail))

    def around(self, event_type: str) -> tuple[bytes, bytes] | None:
        """What stands before the payload, and between it and the `tail`, in `next_event`."""
        head = messages.event_head(event_type, is_job=self.is_job)
        return None if head is None else (head, self.middle)

    def shortened(self, event: TapeEvent) -> bytes | None:
        push = messages.event_push(event, self.channel, is_job=self.is_job)
        return None if push is None else push[:-1] + _TRUNCATED

    def gap(self, first: int | None, last: int | None, epoch: str | None) -> bytes:
        return messages.gap_push(self.channel, first, last, epoch)

    def replay_complete(self, position: Position, *, mixed: bool = False) -> bytes | None:
        offset = str(position.offset) if mixed else position.offset
        return messages.replay_complete_push(self.channel, offset, position.epoch or None)

    def too_large(self, offset: int | None, epoch: str | None, *, mixed: bool = False) -> bytes:
        where = {} if offset is None or mixed else {"offset": offset, "epoch": epoch}
        return messages.error_push(TOO_LARGE, code=TOO_LARGE_CODE, retry=False, channel=self.channel, **where)


@dataclass(frozen=True, slots=True)
class SseForm(Form):
    """Server-sent events: `id: <epoch>-<offset>`, `event: <event_type>`, `data:` the event's JSON in one line."""

    def event(self, event: TapeEvent) -> bytes | None:
        head = b"" if event.offset is None else b"id: %b-%d\n" % ((event.epoch or "").encode(), event.offset)
        return head + _block(event.event_type, one_line(event.payload))

    def shortened(self, event: TapeEvent) -> bytes | None:
        return self.too_large(event.offset, event.epoch, mixed=event.mixed)

    def gap(self, first: int | None, last: int | None, epoch: str | None) -> bytes:
        return _block("gap", to_json({"from": first, "to": last, "epoch": epoch}))

    def replay_complete(self, position: Position, *, mixed: bool = False) -> bytes | None:
        return None

    def too_large(self, offset: int | None, epoch: str | None, *, mixed: bool = False) -> bytes:
        head = b"" if offset is None else b"id: %b-%d\n" % ((epoch or "").encode(), offset)
        return head + _block("error", to_json({"error": TOO_LARGE, "code": TOO_LARGE_CODE}))


@dataclass(frozen=True, slots=True)
class LinesForm(Form):
    """NDJSON: one object a line, `{offset, epoch, event_type, data, final?, mixed?, truncated?}`.

    On a mixed tape (`"mixed":true`) the offset is a string: JSON numbers do not carry it exactly.
    """

    def event(self, event: TapeEvent) -> bytes | None:
        return event_object(event) + b"\n"

    def shortened(self, event: TapeEvent) -> bytes | None:
        return event_object(event)[:-1] + _TRUNCATED + b"\n"

    def gap(self, first: int | None, last: int | None, epoch: str | None) -> bytes:
        return b'{"event_type":"gap","data":%b}\n' % to_json({"from": first, "to": last, "epoch": epoch})

    def replay_complete(self, position: Position, *, mixed: bool = False) -> bytes | None:
        return None

    def too_large(self, offset: int | None, epoch: str | None, *, mixed: bool = False) -> bytes:
        error = to_json({"error": TOO_LARGE, "code": TOO_LARGE_CODE})
        return b'{"offset":%b,"epoch":%b,"event_type":"error","data":%b%b}\n' % (
            _number(offset, mixed=mixed),
            to_json(epoch),
            error,
            _MIXED if mixed else b"",
        )


def event_object(event: TapeEvent) -> bytes:
    """An event as a JSON object in one line, its payload spliced in."""
    return b'{"offset":%b,"epoch":%b,"event_type":%b,"data":%b%b%b}' % (
        _number(event.offset, mixed=event.mixed),
        to_json(event.epoch),
        to_json(event.event_type),
        one_line(event.payload),
        b',"final":true' if event.final else b"",
        _MIXED if event.mixed else b"",
    )


def _number(offset: int | None, *, mixed: bool) -> bytes:
    return to_json(str(offset) if mixed and offset is not None else offset)


def one_line(payload: bytes) -> bytes:
    """The same JSON without line breaks: outside strings they are white space, inside strings JSON has none."""
    if b"\n" in payload or b"\r" in payload:
        return payload.replace(b"\r", b" ").replace(b"\n", b" ")
    return payload


def _block(name: str, data: bytes) -> bytes:
    safe = name.replace("\r", " ").replace("\n", " ").replace("\0", " ").encode("utf-8", "replace")
    return b"event: %b\ndata: %b\n\n" % (safe, data)
