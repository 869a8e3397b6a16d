"""The inward half of a socket: bytes in, frames out, in order and a slice at a time. No I/O and no clock."""

from __future__ import annotations

import logging
from collections import deque
from types import GeneratorType
from typing import Final, NamedTuple

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Protocol as Parser
from websockets.protocol import Side, State
from websockets.streams import StreamReader

from livetape.gateway.frames import MAX_CONTROL_BYTES

SLICE_BYTES: Final = 4096
"""So much of a client is looked at in one turn of the loop: thousands of tiny frames in one read hold up nobody."""


class Fault(NamedTuple):
    """How a client broke the rules: what our close says about it."""

    code: int
    reason: str


def max_frame_bytes(max_size: int) -> int:
    """The parser's limit holds for a control frame between two parts of a message, too."""
    return max_size + MAX_CONTROL_BYTES


class Inbound:
    """What a client has said and nobody has taken yet.

    It is needed only while it is not `idle`: a socket throws an idle one away, because most sockets are silent most of
    the time. One that is given a `parser` goes on with it, and is never idle.
    """

    __slots__ = ("_frames", "_given", "_max_size", "_parser", "_unread")

    def __init__(self, max_size: int | None, parser: Parser | None = None) -> None:
        self._max_size = max_size
        self._given = parser is not None
        self._parser = parser
        self._unread = bytearray()
        self._frames: deque[Frame] = deque()

    def feed(self, data: bytes) -> None:
        self._unread += data

    @property
    def unread(self) -> bool:
        """Whether there is something to `parse`."""
        return bool(self._unread)

    @property
    def idle(self) -> bool:
        """It holds nothing, not even the beginning of a frame or of a fragmented message."""
        return self._parser is None and not self._frames and not self._unread

    def take(self) -> Frame | None:
        """The next frame of what was parsed. None: there is none, so look for a `fault`."""
        return self._frames.popleft() if self._frames else None

    @property
    def fault(self) -> Fault | None:
        """What comes after the last frame; nothing comes after it."""
        parser = self._parser
        if parser is None or parser.parser_exc is None:
            return None
        said = parser.close_sent
        if said is None:  # it had read the client's close before it failed
            return Fault(CloseCode.PROTOCOL_ERROR, "")
        return Fault(said.code, said.reason)

    def parse(self) -> None:
        """Look at the next slice. To be called when all that was parsed before is taken."""
        data = bytes(self._unread[:SLICE_BYTES])
        del self._unread[:SLICE_BYTES]
        if self._parser is None:
            frame = None if self._unread else sole_frame(data)
            if frame is not None:
                self._frames.append(frame)
                return
            self._parser = self._new_parser()
        parser = self._parser
        parser.receive_data(data)
        self._frames.extend(frame for frame in parser.events_received() if isinstance(frame, Frame))
        parser.data_to_send()  # its answers to pings and its closes: the socket gives them in their turn
        if not self._given and _is_between_messages(parser):
            self.drop()

    def drop(self) -> None:
        """Let go of the parser, which refers to itself: it is not left to the garbage collector."""
        if self._parser is not None:
            self._parser.parser.close()
            self._parser = None

    def _new_parser(self) -> Parser:
        max_size = None if self._max_size is None else max_frame_bytes(self._max_size)
        return Parser(Side.SERVER, state=State.OPEN, max_size=max_size, logger=logging.getLogger("uvicorn.error"))


def _is_between_messages(parser: Parser) -> bool:
    """So a new one can do its work."""
    if parser.parser_exc is not None or parser.current_size is not None or parser.close_rcvd is not None:
        return False
    steps = parser.parser
    inner = steps.gi_yieldfrom if isinstance(steps, GeneratorType) else None
    return isinstance(inner, GeneratorType) and inner.gi_code is StreamReader.at_eof.__code__


def sole_frame(data: bytes) -> Frame | None:
    """The frame, if these bytes are one text of less than 64 KiB or one short pong and nothing else.

    Nearly everything that clients say is, and a parser for it costs more than all the rest of its way.
    """
    size, head = len(data) - 6, 2
    if size > 127:
        size, head = size - 2, 4
    if size < 0 or data[0] not in (_SHORT if head == 2 else _LONG):
        return None
    told = data[1] == 0x80 | size if head == 2 else data[1] == 0xFE and data[2] << 8 | data[3] == size
    if not told or (head == 2 and size > 125):
        return None
    mask = (data[head : head + 4] * (size // 4 + 1))[:size]
    payload = int.from_bytes(data[head + 4 :], "big") ^ int.from_bytes(mask, "big")
    return Frame(_SHORT[data[0]], payload.to_bytes(size, "big"))


_LONG: Final = frozenset({0x81})
_SHORT: Final = {0x81: Opcode.TEXT, 0x8A: Opcode.PONG}
