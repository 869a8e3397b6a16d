"""Events to envelope bytes and back (wire contract, section 1). Pure.

The wire form is compact UTF-8 JSON `{"payload":{…}}`; durable events carry their position beside the payload:
`{"payload":{…},"offset":7,"epoch":"k3v9x0aq","final":true}`. An event is encoded once, where it is published;
after that the payload travels as bytes and is spliced, never parsed and dumped again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, from_json, to_json

from livetape.errors import CodecError

DEFAULT_MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024

_PREFIX: Final = b'{"payload":'
_TYPE_FIRST: Final = b'{"event_type":"'
_TAIL_MARK: Final = b'},"offset":'
# What `Envelope.encode` writes after the payload in the common case: found without a parser.
_OUR_TAIL: Final = re.compile(
    rb'"offset":(\d{1,18}),"epoch":"([0-9A-Za-z]+)"'
    rb'(?:,"graph_offset":(\d{1,18}),"graph_epoch":"([0-9A-Za-z]+)")?(,"final":true)?}'
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message of the bus, split but not decoded.

    `payload` is the event's JSON as bytes. `offset` and `epoch` are the position on the event's own tape, absent
    on live-only events and on events of plain seed publishers. `graph_offset` and `graph_epoch` are the position
    on the graph's tape (graph events only). `final`: nothing follows on this tape. `lossy`: characters that UTF-8
    cannot carry were replaced.
    """

    payload: bytes
    event_type: str
    offset: int | None = None
    epoch: str | None = None
    graph_offset: int | None = None
    graph_epoch: str | None = None
    final: bool = False
    lossy: bool = False
    traceparent: str | None = None

    def encode(self) -> bytes:
        """The bytes for the bus."""
        parts = [_PREFIX, self.payload]
        if self.offset is not None:
            parts.append(b',"offset":%d,"epoch":"%s"' % (self.offset, (self.epoch or "").encode()))
        if self.graph_offset is not None:
            parts.append(
                b',"graph_offset":%d,"graph_epoch":"%s"' % (self.graph_offset, (self.graph_epoch or "").encode())
            )
        if self.final:
            parts.append(b',"final":true')
        if self.lossy:
            parts.append(b',"lossy":true')
        if self.traceparent is not None:
            parts.append(b',"traceparent":' + to_json(self.traceparent))
        parts.append(b"}")
        return b"".join(parts)


def encode_payload(event: BaseModel | dict[str, Any]) -> tuple[bytes, bool]:
    """The event's JSON (as `mode="json"`), and whether it lost characters.

    A lone surrogate becomes literal backslash text: the result is always valid UTF-8 and valid JSON, and the event
    is never lost because of it.

    Raises:
        CodecError: a value that JSON cannot carry (an object of an unknown class, for instance).
    """
    try:
        if isinstance(event, BaseModel):
            return event.__pydantic_serializer__.to_json(event), False
        return to_json(event), False
    except (PydanticSerializationError, UnicodeError, ValueError) as error:
        try:
            value = event.model_dump() if isinstance(event, BaseModel) else event
            return to_json(_without_surrogates(value)), True
        except (PydanticSerializationError, UnicodeError, ValueError):
            raise CodecError(f"this event cannot be written as JSON: {error}") from error


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_surrogates(v) for v in value]
    return value


def split(data: bytes) -> Envelope:
    """An envelope from the bytes of a bus message, its payload untouched.

    Any valid JSON of the wire form is taken, also of other publishers; our own form is recognised by its bytes and
    costs no parse of the payload.

    Raises:
        CodecError: not an envelope.
    """
    if data.startswith(_PREFIX):
        # A quote inside a JSON string is escaped, so the mark can only be structure; the last one is the
        # envelope's, unless there is none and a nested object has such a key: then the tail is no object.
        cut = data.rfind(_TAIL_MARK)
        if cut > 0:
            ours = _OUR_TAIL.fullmatch(data, cut + 2)
            if ours is not None:
                payload = data[len(_PREFIX) : cut + 1]
                offset, epoch, graph_offset, graph_epoch, final = ours.groups()
                return Envelope(
                    payload,
                    event_type_of(payload),
                    int(offset),
                    epoch.decode(),
                    None if graph_offset is None else int(graph_offset),
                    None if graph_epoch is None else graph_epoch.decode(),
                    final=final is not None,
                )
            try:
                tail = from_json(b"{" + data[cut + 2 :])
            except ValueError:
                tail = None
            if isinstance(tail, dict):
                payload = data[len(_PREFIX) : cut + 1]
                return _envelope(payload, tail)
    try:
        message = from_json(data)
    except ValueError as error:
        raise CodecError("not JSON") from error
    if not isinstance(message, dict) or not isinstance(message.get("payload"), dict):
        raise CodecError("no payload in this message")
    body = message.pop("payload")
    if data.startswith(_PREFIX) and not message:
        payload = data[len(_PREFIX) : data.rindex(b"}")].strip()
    else:
        payload = to_json(body)
    return _envelope(payload, message, str(body.get("event_type", "")))


def _envelope(payload: bytes, tail: dict[str, Any], event_type: str | None = None) -> Envelope:
    offset, epoch = tail.get("offset"), tail.get("epoch")
    graph_offset, graph_epoch = tail.get("graph_offset"), tail.get("graph_epoch")
    has_position = isinstance(offset, int) and isinstance(epoch, str)
    has_graph_position = isinstance(graph_offset, int) and isinstance(graph_epoch, str)
    traceparent = tail.get("traceparent")
    return Envelope(
        payload=payload,
        event_type=event_type_of(payload) if event_type is None else event_type,
        offset=offset if has_position else None,
        epoch=epoch if has_position else None,
        graph_offset=graph_offset if has_graph_position else None,
        graph_epoch=graph_epoch if has_graph_position else None,
        final=tail.get("final") is True,
        lossy=tail.get("lossy") is True,
        traceparent=traceparent if isinstance(traceparent, str) else None,
    )


def event_type_of(payload: bytes) -> str:
    """The `event_type` of an event's JSON; empty when it has none."""
    if payload.startswith(_TYPE_FIRST):
        end = payload.find(b'"', len(_TYPE_FIRST))
        name = payload[len(_TYPE_FIRST) : end]
        if end > 0 and b"\\" not in name:
            return name.decode()
    try:
        body = from_json(payload)
    except ValueError:
        return ""
    return str(body.get("event_type", "")) if isinstance(body, dict) else ""


def too_large_payload(size: int, limit: int) -> bytes:
    """What listeners receive in place of an event over the size limit (exact text of the seed)."""
    return (
        b'{"event_type":"error_comms_update","error":"Payload too large for Redis transmission",'
        b'"original_size_bytes":%d,"max_size_bytes":%d}' % (size, limit)
    )
