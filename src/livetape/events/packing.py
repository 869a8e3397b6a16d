"""From an event to what is sent: the copy for the bus within the size limit, and the whole one for the tape."""

from __future__ import annotations

from typing import Final, Generic, NamedTuple, TypeVar

from pydantic import BaseModel

from livetape.errors import CodecError
from livetape.events.codec import Codec, Encoded, Envelope, live_message, too_large_payload
from livetape.events.executions import ExecutionEventType
from livetape.events.recorder import Live
from livetape.events.shorten import shorten_event
from livetape.observability import current_traceparent

M = TypeVar("M")

WRAPPER_BYTES: Final = len(b'{"payload":}')
TRACE_BYTES: Final = len(b',"traceparent":""') + 55
POSITION_BYTES: Final = 100
"""At least as long as offset, epoch, `final` and `lossy` beside a payload."""

_SHARES: Final = (1.0, 0.6)
"""A codec that makes events longer may need a second, stronger cut."""


class Packed(NamedTuple):
    """`whole`: the event. `live`: how its copy on the bus differs. `replaced`: the copy is only the notice."""

    whole: Encoded
    live: Live
    replaced: bool


def uncut_live(whole: Encoded, limit: int) -> Live:
    """How the bus copy differs of an event on a tape of which nothing may be cut, in a message of `limit` bytes."""
    room = limit - WRAPPER_BYTES - POSITION_BYTES
    size = len(whole.payload)
    return Live(lossy=whole.lossy, traceparent=_trace(size, room)) if size <= room else _notice(size, limit)


def _trace(size: int, room: int) -> str | None:
    """What is optional never makes an event too large."""
    return current_traceparent() if size + TRACE_BYTES <= room else None


def _notice(size: int, limit: int) -> Live:
    """What stands in for an event whose JSON has so many bytes."""
    return Live(too_large_payload(size + WRAPPER_BYTES, limit), ExecutionEventType.ERROR_COMMS_UPDATE.value)


class Packer(Generic[M]):
    """Encodes events for a bus whose messages have at most `limit` bytes."""

    def __init__(self, codec: Codec[M], limit: int) -> None:
        self._codec = codec
        self._limit = limit

    def pack(self, event: M, channel: str, *, recorded: bool) -> Packed:
        """`recorded`: a position will stand beside the payload.

        Raises:
            CodecError: this event cannot be encoded.
        """
        whole = self._codec.encode(event, channel)
        room = self._limit - WRAPPER_BYTES - (POSITION_BYTES if recorded else 0)
        if len(whole.payload) <= room:
            return Packed(whole, Live(lossy=whole.lossy, traceparent=_trace(len(whole.payload), room)), False)
        cut = self._shortened(event, channel, len(whole.payload), room)
        if cut is not None:
            trace = _trace(len(cut.payload), room)
            return Packed(whole, Live(cut.payload, cut.event_type, whole.lossy or cut.lossy, trace), False)
        return Packed(whole, _notice(len(whole.payload), self._limit), True)

    def live_copy(self, whole: Encoded, channel: str, *, beside: int) -> Live:
        """How the copy on the bus differs of an event whose JSON is there already and stands on a tape.

        `beside`: so many bytes stand in the message beside the payload and its wrapper.
        """
        room = self._limit - WRAPPER_BYTES - beside
        if len(whole.payload) <= room:
            return Live(lossy=whole.lossy)
        try:
            cut = self._shortened(self._codec.decode(whole.payload, channel), channel, len(whole.payload), room)
        except CodecError:  # not an event of this codec: nothing is known of what may be cut
            cut = None
        if cut is not None:
            return Live(cut.payload, cut.event_type, whole.lossy or cut.lossy)
        return _notice(len(whole.payload), self._limit)

    def message(self, packed: Packed) -> bytes:
        """The bytes for the bus of an event that is on no tape."""
        payload = packed.whole.payload if packed.live.payload is None else packed.live.payload
        if packed.live.traceparent is not None and not packed.live.lossy:
            return live_message(payload, packed.live.traceparent)
        return Envelope(
            payload, packed.whole.event_type, lossy=packed.live.lossy, traceparent=packed.live.traceparent
        ).encode()

    def _shortened(self, event: M, channel: str, size: int, room: int) -> Encoded | None:
        if not isinstance(event, BaseModel):
            return None
        for share in _SHARES:
            cut = shorten_event(event, size, int(room * share))
            if cut is None:
                return None
            encoded = self._codec.encode(cut, channel)
            if len(encoded.payload) <= room:
                return encoded
        return None
