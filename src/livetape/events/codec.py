"""Events to envelope bytes and back (wire contract, section 1). Pure.

The wire form is compact UTF-8 JSON `{"payload":{…}}`; durable events carry their position beside the payload:
`{"payload":{…},"offset":7,"epoch":"k3v9x0aq","final":true}`. An event is encoded once, where it is published;
after that the payload travels as bytes and is spliced, never parsed and dumped again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, time
from enum import Enum
from functools import partial
from types import UnionType
from typing import (
    Any,
    Final,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
)
from uuid import UUID

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from livetape.errors import CodecError
from livetape.events.json_values import DEEP_BYTES, check_values

DEFAULT_MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024

M = TypeVar("M")

_PREFIX: Final = b'{"payload":'
_PREFIX_OPEN: Final = b'{"payload":{'
_TYPE_FIRST: Final = b'{"event_type":"'
_TAIL_MARK: Final = b'},"offset":'
# What `Envelope.encode` writes after the payload in the common case: found without a parser.
_OUR_TAIL: Final = (
    rb'"offset":(\d{1,18}),"epoch":"([0-9A-Za-z]+)"'
    rb'(?:,"graph_offset":(\d{1,18}),"graph_epoch":"([0-9A-Za-z]+)")?(,"final":true)?(,"lossy":true)?'
    rb'(?:,"traceparent":"([0-9a-f-]{1,100})")?}'
)
_is_our_tail: Final = re.compile(_OUR_TAIL).fullmatch
# The whole of it, when the event begins with its type as ours do. The last mark is found from the end.
_is_ours: Final = re.compile(rb'\{"payload":(\{"event_type":"([^"\\]*)".*}),' + _OUR_TAIL, re.DOTALL).fullmatch
_POSITION_ONLY: Final = 4
"""The last group of it that is found when beside the payload there is nothing but the position."""
# The same for live-only events: the trace alone, always as long as this.
_TRACE_MARK: Final = b'},"traceparent":"'
_TRACE_TAIL_BYTES: Final = len(b'},"traceparent":""}') + 55
_TRACE_MARK_END: Final = len(_TRACE_MARK) - _TRACE_TAIL_BYTES
_NEW: Final = tuple.__new__  # without keyword arguments: half the time


class Envelope(NamedTuple):
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


def live_payload(data: bytes) -> bytes | None:
    """The payload of what `live_message` made; None for everything else (which may be an envelope all the same).

    By the look of the bytes: a quote inside a JSON string is escaped, so the mark can only be structure. Of another
    envelope that ends alike it takes too much, which is then no JSON.
    """
    if data[-_TRACE_TAIL_BYTES:_TRACE_MARK_END] == _TRACE_MARK and data.startswith(_PREFIX_OPEN):
        return data[len(_PREFIX) : 1 - _TRACE_TAIL_BYTES]
    return None


def plain_payload(data: bytes) -> bytes | None:
    """The payload of an envelope that has nothing else, as plain publishers write it; with the reserve above."""
    if data.startswith(_PREFIX_OPEN) and data.endswith(b"}}"):
        return data[len(_PREFIX) : -1]
    return None


def live_message(payload: bytes, traceparent: str) -> bytes:
    """The bytes for the bus of an event that is on no tape: what `Envelope` writes, in one step."""
    return b'{"payload":%b,"traceparent":"%b"}' % (payload, traceparent.encode())


def durable_message(
    payload: bytes, offset: int, epoch: str, *, final: bool = False, lossy: bool = False, traceparent: str | None = None
) -> bytes:
    """The bytes for the bus of an event that is on a tape: what `Envelope` writes, in one step."""
    return b'{"payload":%b,"offset":%d,"epoch":"%b"%b%b%b}' % (
        payload,
        offset,
        epoch.encode(),
        b',"final":true' if final else b"",
        b',"lossy":true' if lossy else b"",
        b"" if traceparent is None else b',"traceparent":' + to_json(traceparent),
    )


def encode_payload(event: BaseModel | dict[str, Any], *, as_any: bool = False) -> tuple[bytes, bool]:
    """The event's JSON (as `mode="json"`), and whether it lost characters.

    `as_any`: what stands in a field is written as what it is, with all the fields of its own class, also when the
    field was declared with a base of that class.

    A lone surrogate becomes literal backslash text: the result is always valid UTF-8 and valid JSON, and the event
    is never lost because of it.

    Raises:
        CodecError: a value that JSON cannot carry (an object of an unknown class, for instance).
    """
    try:
        if isinstance(event, BaseModel):
            return event.__pydantic_serializer__.to_json(event, serialize_as_any=as_any), False
        return to_json(event, inf_nan_mode="null"), False
    except (PydanticSerializationError, UnicodeError, ValueError) as error:
        try:
            return to_json(_without_surrogates(_dumped(event, as_any=as_any)), inf_nan_mode="null"), True
        except (PydanticSerializationError, UnicodeError, ValueError, RecursionError):
            raise CodecError(f"this event cannot be written as JSON: {error}") from error


def _dumped(event: BaseModel | dict[str, Any], *, as_any: bool) -> Any:
    if not isinstance(event, BaseModel):
        return event
    try:
        return event.model_dump(mode="json", serialize_as_any=as_any)
    except (PydanticSerializationError, UnicodeError, ValueError):
        return event.model_dump(serialize_as_any=as_any)  # a key may hold a surrogate here


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_surrogates(v) for v in value]
    return value


def split(data: bytes, *, by_parser: bool = False) -> Envelope:
    """An envelope from the bytes of a bus message, its payload untouched.

    Any valid JSON of the wire form is taken, also of other publishers; our own form is recognised by its bytes and
    costs no parse of the payload. `by_parser` does not look for our own form: for the message of somebody who writes
    objects of his own between the payload and keys of ours.

    Raises:
        CodecError: not an envelope.
    """
    if by_parser:
        return _parsed(data)
    if data[-_TRACE_TAIL_BYTES:_TRACE_MARK_END] == _TRACE_MARK:
        live = live_payload(data)
        if live is not None:
            return Envelope(live, event_type_of(live), traceparent=data[-57:-2].decode())
    elif data[-2:] != b"}}":  # what ends so has nothing beside its payload: spare it the search
        found = _is_ours(data)
        if found is not None:
            try:
                return _ours(found)
            except UnicodeDecodeError:
                pass  # in the event's type
    if data.startswith(_PREFIX):
        # A quote inside a JSON string is escaped, so the mark can only be structure; the last one is the
        # envelope's, unless there is none and a nested object has such a key: then the tail is no object.
        cut = data.rfind(_TAIL_MARK)
        if cut > 0:
            ours = _is_our_tail(data, cut + 2)
            if ours is not None:
                payload = data[len(_PREFIX) : cut + 1]
                return _positioned(payload, event_type_of(payload), *ours.groups())
            try:
                tail = from_json(b"{" + data[cut + 2 :])
            except ValueError:
                tail = None
            if isinstance(tail, dict):
                payload = data[len(_PREFIX) : cut + 1]
                return _envelope(payload, tail)
    return _parsed(data)


def _ours(found: re.Match[bytes]) -> Envelope:
    if found.lastindex == _POSITION_ONLY:
        payload, event_type, offset, epoch = found.group(1, 2, 3, 4)
        event_type, epoch = event_type.decode(), epoch.decode()
        return _NEW(Envelope, (payload, event_type, int(offset), epoch, None, None, False, False, None))
    payload, event_type, *beside = found.groups()
    return _positioned(payload, event_type.decode(), *beside)


def _positioned(
    payload: bytes,
    event_type: str,
    offset: bytes,
    epoch: bytes,
    graph_offset: bytes | None,
    graph_epoch: bytes | None,
    final: bytes | None,
    lossy: bytes | None,
    traceparent: bytes | None,
) -> Envelope:
    return _NEW(
        Envelope,
        (
            payload,
            event_type,
            int(offset),
            epoch.decode(),
            None if graph_offset is None else int(graph_offset),
            None if graph_epoch is None else graph_epoch.decode(),
            final is not None,
            lossy is not None,
            None if traceparent is None else traceparent.decode(),
        ),
    )


def _parsed(data: bytes) -> Envelope:
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
            return name.decode("utf-8", "replace")
    if b'"event_type"' not in payload:
        return ""  # a key that is spelled with escapes is nobody's
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


class Encoded(NamedTuple):
    """An event as bytes. `payload` is a JSON object; `lossy`: characters that UTF-8 cannot carry were replaced."""

    payload: bytes
    event_type: str
    lossy: bool = False


class Codec(Protocol[M]):
    """Events to payloads and back. `channel` is where the event goes or came from, for codecs that need its ids."""

    def encode(self, event: M, channel: str) -> Encoded:
        """The event as it is published and stored.

        Raises:
            CodecError: not an event of this codec, or data that JSON cannot carry.
        """
        ...

    def decode(self, payload: bytes, channel: str) -> M:
        """The event again.

        Raises:
            CodecError: not such an event.
            DecryptionError: it may be one, but cannot be read with the keys that are here.
        """
        ...


class JsonCodec(Generic[M]):
    """Events of one model as their JSON.

    `model` is a Pydantic class, a dataclass or typed dictionary, a union of such (`Annotated` with a discriminator,
    too) or a `TypeAdapter`. A subclass of a model is written with all its fields, at any depth.
    """

    def __init__(self, model: type[M] | TypeAdapter[M]) -> None:
        self._adapter: TypeAdapter[M] = model if isinstance(model, TypeAdapter) else TypeAdapter(model)
        self.writers: dict[type, Callable[[Any], bytes]] = {}
        """Of classes whose instances are known to be events of the model: what writes their JSON, for who is in a
        hurry. It raises where `encode` finds a way or says what is wrong."""
        self._known: dict[type, _Writer] = {}

    def encode(self, event: M, channel: str) -> Encoded:
        """The event's JSON. Raises CodecError as `Codec.encode` does."""
        known = self._known.get(type(event))
        if known is None:
            return self._encode_first(event)
        write, event_type, as_any = known
        try:
            payload = write(event)
        except (PydanticSerializationError, UnicodeError, ValueError):
            if not isinstance(event, BaseModel):
                raise
            payload, lossy = encode_payload(event, as_any=as_any)
            check_values(event, payload, type(event).model_validate_json)
        else:
            lossy = False
        if event_type is None:
            event_type = _name(getattr(event, "event_type", ""))
        return tuple.__new__(Encoded, (payload, event_type, lossy))  # without its keyword arguments: half the time

    def decode(self, payload: bytes, channel: str) -> M:
        """The event again. Raises CodecError as `Codec.decode` does."""
        try:
            return self._adapter.validate_json(payload)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the event"
            raise CodecError(f"not an event of this model: {where}: {first['msg']}") from None

    def _encode_first(self, event: M) -> Encoded:
        """Of this class for the first time: is it an event of the model at all?"""
        try:
            checked = self._adapter.validate_python(event)
        except ValidationError as error:
            raise CodecError(
                f"a {type(event).__name__} is not an event of this bus ({error.error_count()} problems)"
            ) from None
        if checked is not event:  # built from a dictionary, for instance
            return self._encode_first(checked) if isinstance(checked, BaseModel) else self._encode_other(checked)
        if isinstance(event, BaseModel):
            known = self._known[type(event)] = _writer(type(event))
            self.writers[type(event)] = known[0]
            return self.encode(event, "")
        return self._encode_other(event)

    def _encode_other(self, event: M) -> Encoded:
        try:
            payload, lossy = self._adapter.dump_json(event, serialize_as_any=True), False
        except (PydanticSerializationError, UnicodeError, ValueError):
            payload, lossy = encode_payload({"_": self._adapter.dump_python(event, serialize_as_any=True)})
            payload = payload[len(b'{"_":') : -1]
        if not payload.startswith(b"{"):
            raise CodecError("an event is a JSON object")
        check_values(event, payload, self._adapter.validate_json)
        return Encoded(payload, event_type_of(payload), lossy)


_Writer: TypeAlias = tuple[Callable[[Any], bytes], str | None, bool]
"""Writes the JSON; the event type if all instances have the same; and whether it writes "as any"."""


def _writer(model: type[BaseModel]) -> _Writer:
    plain_write = model.__pydantic_serializer__.to_json
    as_any = _holds_models(model)
    write: Callable[[Any], bytes] = partial(plain_write, serialize_as_any=True) if as_any else plain_write
    field = model.model_fields.get("event_type")
    names = get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()
    # What holds only texts, whole numbers and the like can be neither too deep nor without a number: no look at it.
    is_plain = model.model_config.get("extra") != "allow"
    if not is_plain or not all(_is_plain(field.annotation) for field in model.model_fields.values()):
        write = partial(_write_checked, write)
    return (
        write,
        _name(names[0]) if len(names) == 1 else None,
        as_any,
    )


def _name(event_type: object) -> str:
    value = getattr(event_type, "value", event_type)  # a member of an enumeration
    return value if isinstance(value, str) else ""


def _holds_models(model: type[BaseModel]) -> bool:
    """Whether a field is declared as a model, in whose place there may be a subclass with more fields."""
    return any(_mentions_model(field.annotation) for field in model.model_fields.values())


def _mentions_model(annotation: object) -> bool:
    if isinstance(annotation, type) and not get_args(annotation):
        return issubclass(annotation, BaseModel) or hasattr(annotation, "__dataclass_fields__")
    if isinstance(annotation, TypeVar):
        return True
    if hasattr(annotation, "__value__"):  # a named alias
        return _mentions_model(annotation.__value__)
    return any(_mentions_model(part) for part in get_args(annotation))


_PLAIN: Final = (str, int, Enum, date, time, UUID, type(None))


def _is_plain(annotation: object) -> bool:
    """Whether such a value has no floating point number and nothing inside it."""
    if isinstance(annotation, type) and not get_args(annotation):
        return issubclass(annotation, _PLAIN)
    if get_origin(annotation) is Literal:
        return True
    if get_origin(annotation) in {Union, UnionType}:
        return all(_is_plain(part) for part in get_args(annotation))
    return False


def _write_checked(write: Callable[[Any], bytes], event: Any) -> bytes:
    payload = write(event)
    # Only what has a null or is long is looked at: a NaN is written as null unless the model says otherwise.
    if b"null" in payload or len(payload) > DEEP_BYTES:
        check_values(event, payload, type(event).model_validate_json)
    return payload
