"""An accepted WebSocket that lives by the event loop's callbacks alone: no task, no queue, no parser while it is idle.

It is the asyncio protocol of its TCP (or TLS) transport and the gateway's `Transport` in one object. The handshake is
somebody else's (`Handshake`), and so are the frames in what the client says (`Inbound`); what is here is the life after
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum
from typing import Final, Protocol

from websockets.frames import CloseCode, Frame, Opcode

from livetape.auth import ConnectionFacts
from livetape.gateway.frames import close_frame, close_payload, ping_frame, pong_frame
from livetape.gateway.messages import Push
from livetape.gateway.transport import LEAVING_CODES, Receiver, Transport
from livetape.gateway.transports.inbound import Inbound, sole_frame
from livetape.gateway.transports.ways import Ways

HIGH_WATER_BYTES: Final = 256 * 1024
"""So much may wait for the client to read before `Receiver.congested`."""

GOODBYE_SECONDS: Final = 5.0
"""How long a client may take to read a close that it caused itself, or that a server's stop caused."""


FRAMES_PER_SECOND: Final = 200.0
FRAMES_AT_ONCE: Final = 2_000
"""So many frames that no message ends with may a client send: pings, pongs that nobody asked for, parts of messages.
Whole messages are counted by whoever is told of them."""

THROTTLE_SECONDS: Final = 0.25
"""A client that has sent more is not listened to for so long."""


_LONG_AGO: Final = float("-inf")


class Handshake(Protocol):
    """What comes before. Both raise `TransportClosedError` when the client has gone."""

    def facts(self) -> ConnectionFacts: ...

    async def reject(self, status: int, text: str) -> None: ...

    async def accept(self, socket: LiveSocket) -> None:
        """Answer the client, and call `socket.connected` when it has."""


class Phase(IntEnum):
    """How far a socket is."""

    HANDSHAKE = 0
    OPEN = 1
    CLOSING = 2  # our close was sent, the client's answer is missing
    ENDING = 3  # nothing more is said, the connection's end is missing
    LOST = 4


class LiveSocket(asyncio.Protocol, Transport):
    """One socket. All of it in the thread of the event loop.

    `send` is one write to the transport. While the client is behind (more than `HIGH_WATER_BYTES` wait), what is sent
    is kept here, so that `close(drop=True)` can leave it out: the client then gets what had been handed over before,
    and the close after it, provided that it reads within the time given; no frame is ever cut.

    `congested` and `drained` are called from within `send`, too.

    `lost(clean=True)` only when our close was answered with its own code after everything had left: a client that
    closes first may not have read what was on its way.

    The end of a connection is not noticed while `pause` holds.
    """

    __slots__ = (
        "_awaited_pong",
        "_begun",
        "_clean",
        "_close_code",
        "_congested",
        "_connections",
        "_handshake",
        "_heard_at",
        "_held",
        "_inbound",
        "_late_pong",
        "_left",
        "_loop",
        "_max_size",
        "_partial",
        "_partial_is_text",
        "_paused",
        "_phase",
        "_pings",
        "_receiver",
        "_scheduled",
        "_spent",
        "_timer",
        "_transport",
        "_ways",
        "_write",
        "_writer",
    )

    def __init__(
        self,
        handshake: Handshake,
        loop: asyncio.AbstractEventLoop,
        *,
        max_size: int | None,
        ways: Ways | None = None,
    ) -> None:
        self._handshake: Handshake | None = handshake
        self._loop = loop
        self._max_size = max_size
        self._transport: asyncio.Transport | None = None
        self._connections: set[object] = set()
        self._receiver: Receiver | None = None
        self._phase = Phase.HANDSHAKE
        self._begun = False  # the receiver may be told
        self._clean = False
        self._left = False
        self._close_code: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        # outwards
        self._write: Callable[[bytes], object] = _ignore
        self._ways = ways
        self._writer: Callable[[bytes], object] = _ignore
        self._held: list[bytes] | None = None  # what is sent while the transport takes no more
        self._congested = False
        self._pings = 0
        self._awaited_pong: bytes | None = None
        self._late_pong: bytes | None = None
        # inwards
        self._paused = False
        self._scheduled = False
        self._spent = _LONG_AGO  # up to this time of the loop the frames are paid for that are no messages
        self._inbound: Inbound | None = None
        self._partial: bytearray | None = None  # of a fragmented message
        self._partial_is_text = False

    # ---- the handshake ---------------------------------------------------------------------------------------------

    @property
    def facts(self) -> ConnectionFacts:
        """To be asked before `accept`: a socket does not keep what its handshake held."""
        assert self._handshake is not None, "ask before accept"
        return self._handshake.facts()

    async def reject(self, status: int, text: str) -> None:
        assert self._handshake is not None
        await self._handshake.reject(status, text)
        self.forget_handshake()

    async def accept(self, receiver: Receiver) -> None:
        assert self._handshake is not None
        self._receiver = receiver
        try:
            await self._handshake.accept(self)
        finally:
            self.forget_handshake()

    def connected(self, transport: asyncio.Transport, connections: set[object], early: bytes) -> None:
        """The handshake is through, and the transport is this socket's from here on.

        `early` is what the client sent before it was let in. `connections` is the server's set of open connections.
        """
        self._transport = transport
        self._connections = connections
        self._phase = Phase.OPEN
        self._writer = self._write = transport.write if self._ways is None else self._ways.open(transport)
        self._heard_at = self._loop.time()
        if early:
            self._feed(early)
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        transport.set_protocol(self)
        connections.add(self)
        self._scheduled = True
        self._loop.call_soon(self._begin)

    def forget_handshake(self) -> None:
        """Let go of what it holds: request, scope, queue."""
        self._handshake = None

    def _begin(self) -> None:
        """Not before `accept` has returned."""
        assert self._receiver is not None
        self._begun = True
        self._scheduled = False
        if self._phase is Phase.LOST:
            self._tell_lost()
            return
        if self._congested:
            self._receiver.congested()
        self._work()

    # ---- the port --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Returns at once."""

    def send(self, push: Push) -> None:
        self._write(push.frame)

    @property
    def writer(self) -> Callable[[bytes], object] | None:
        if self._phase is not Phase.OPEN or self._congested:
            return None
        return self._writer

    def ping(self) -> None:
        if self._phase is Phase.OPEN:
            self._pings = (self._pings + 1) & 0xFFFFFFFF
            self._awaited_pong = self._pings.to_bytes(4, "big")
            self._write(ping_frame(self._awaited_pong))

    @property
    def heard_at(self) -> float:
        return self._heard_at

    def pause(self) -> None:
        if self._phase is Phase.OPEN and not self._paused:
            self._paused = True
            self._read_or_not()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._schedule()

    def close(self, code: int, reason: str, *, within: float, drop: bool = False) -> None:
        if self._phase is Phase.OPEN:
            self._phase = Phase.CLOSING
            self._close_code = code
            self._say_last(close_frame(close_payload(code, reason)), drop=drop)
            self._end_within(within)
            self._paused = False  # the answer must be read
            self._schedule()

    # ---- the server's side -----------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """The server stops. Does nothing when the gateway has closed the socket before."""
        self.close(CloseCode.SERVICE_RESTART, "service restart", within=GOODBYE_SECONDS)

    # ---- the event loop's side -------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._phase > Phase.CLOSING:
            return  # it is heard to its end, so that the close which is on its way is not torn up by a reset
        self._heard_at = self._loop.time()
        if self._inbound is None and not self._scheduled and not self._paused:
            frame = sole_frame(data)
            if frame is not None:  # there is nothing before it, and nothing after it
                self._take(frame)
                self._read_or_not()
                return
        self._feed(data)
        if self._scheduled:
            self._read_or_not()
        else:
            self._work()

    def eof_received(self) -> None:
        """The transport closes itself, when the rest has left."""
        if self._phase <= Phase.CLOSING:
            self._close_straight_way()
            self._phase = Phase.ENDING
            self._write = _ignore
            self._end_within(GOODBYE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        # First of all: the event loop closes the descriptor when this returns.
        if self._ways is not None:
            self._ways.cut(self._writer)
        self._writer = _ignore
        self._phase = Phase.LOST
        self._connections.discard(self)
        self._write = _ignore
        self._held = None
        self._partial = None
        self._drop_inbound()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._begun:
            self._tell_lost()

    def pause_writing(self) -> None:
        if self._phase is Phase.OPEN:
            self._held = []
            self._write = self._held.append
            if not self._congested:
                self._congested = True
                if self._begun and self._receiver is not None:
                    self._receiver.congested()

    def resume_writing(self) -> None:
        if self._phase is not Phase.OPEN or self._held is None:
            return
        held, self._held = self._held, None
        self._write = self._writer
        if self._late_pong is not None:
            held.append(self._late_pong)
            self._late_pong = None
        if held:
            self._writer(b"".join(held))
        if not self._is_behind():  # the write may have filled the transport again
            self._congested = False
            if self._begun and self._receiver is not None:
                self._receiver.drained()

    # ---- outwards --------------------------------------------------------------------------------------------------

    def _say_last(self, frame: bytes, *, drop: bool) -> None:
        self._close_straight_way()
        held, self._held = self._held, None
        self._write = _ignore
        self._writer(frame if drop or not held else b"".join((*held, frame)))

    def _close_straight_way(self) -> None:
        """Nothing may leave any more but what is written here."""
        if self._ways is not None and self._transport is not None:
            self._ways.cut(self._writer)
            self._writer = self._transport.write
        if not self._congested:
            self._congested = True
            if self._begun and self._receiver is not None:
                self._receiver.congested()

    def _end_within(self, seconds: float) -> None:
        """Cut it off when it has not ended by then; the first limit holds."""
        if self._timer is None:
            assert self._transport is not None
            self._timer = self._loop.call_later(seconds, self._transport.abort)

    def _is_behind(self) -> bool:
        return self._held is not None

    def _tell_lost(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.lost(clean=self._clean, left=self._left)

    # ---- inwards ---------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._scheduled = False
        self._work()

    def _feed(self, data: bytes) -> None:
        if self._inbound is None:
            self._inbound = Inbound(self._max_size)
        self._inbound.feed(data)

    def _work(self) -> None:
        """Take what the client says, in order, until there is nothing left or the receiver wants no more of it."""
        inbound, parsed = self._inbound, False
        # Once it is scheduled it goes on then.
        while (
            inbound is not None and not (self._paused or self._scheduled) and self._phase in (Phase.OPEN, Phase.CLOSING)
        ):
            frame = inbound.take()
            if frame is not None:
                self._take(frame)
            elif (fault := inbound.fault) is not None:
                self._fail(*fault)
            elif not inbound.unread:
                break
            elif parsed:
                self._schedule()
            else:
                inbound.parse()
                parsed = True
        if inbound is not None and inbound.idle:
            self._drop_inbound()
        self._read_or_not()

    def _drop_inbound(self) -> None:
        if self._inbound is not None:
            self._inbound.drop()
            self._inbound = None

    def _pong(self, frame: bytes) -> None:
        if self._held is None:
            self._write(frame)
        else:
            self._late_pong = frame  # who sends pings and does not read gets one answer in the end

    def _take(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            self._take_close(bytes(frame.data))
        elif self._phase is not Phase.OPEN:
            self._charge()  # nobody listens any more
        elif frame.opcode is Opcode.PONG:
            if self._awaited_pong is not None and frame.data == self._awaited_pong:
                self._awaited_pong = None
                if self._receiver is not None:
                    self._receiver.ponged()
            else:
                self._charge()
        elif frame.opcode is Opcode.PING:
            self._pong(pong_frame(bytes(frame.data)))
            self._charge()
        else:
            self._take_data(frame)

    def _charge(self) -> None:
        """A frame that is no message of its own. Who sends too many of them is not listened to for a while.

        One number per socket, and a client is the less in debt the later it is.
        """
        now = self._loop.time()
        self._spent = max(self._spent, now - FRAMES_AT_ONCE / FRAMES_PER_SECOND) + 1 / FRAMES_PER_SECOND
        if self._spent > now and not self._scheduled:
            self._scheduled = True
            self._loop.call_later(THROTTLE_SECONDS, self._continue)

    def _take_data(self, frame: Frame) -> None:
        if frame.opcode is not Opcode.CONT:
            self._partial_is_text = frame.opcode is Opcode.TEXT
        else:
            self._charge()
        data: bytes | bytearray | memoryview = frame.data
        if self._partial is not None:
            self._partial += data
            data = self._partial
        if self._max_size is not None and len(data) > self._max_size:
            self._fail(CloseCode.MESSAGE_TOO_BIG, f"more than {self._max_size} bytes")
        elif frame.fin:
            self._partial = None
            self._deliver(bytes(data))
        elif self._partial is None:
            self._partial = bytearray(data)

    def _deliver(self, data: bytes) -> None:
        assert self._receiver is not None
        if not self._partial_is_text:
            self._receiver.received(data)
            return
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            self._fail(CloseCode.INVALID_DATA, f"{error.reason} at position {error.start}")
        else:
            self._receiver.received(text)

    def _take_close(self, payload: bytes) -> None:
        assert self._transport is not None
        if self._phase is Phase.OPEN:
            self._left = int.from_bytes(payload[:2], "big") in LEAVING_CODES
            self._say_last(close_frame(payload), drop=True)
        else:
            answered = payload[:2] == (self._close_code or 0).to_bytes(2, "big")
            self._clean = answered and not self._transport.get_write_buffer_size()
        self._phase = Phase.ENDING
        self._end_within(GOODBYE_SECONDS)
        self._transport.close()

    def _fail(self, code: int, reason: str) -> None:
        """The client broke the rules: say so, and hear it to its end."""
        assert self._transport is not None
        if self._phase is Phase.OPEN:
            self._say_last(close_frame(close_payload(code, reason)), drop=True)
        self._phase = Phase.ENDING
        self._drop_inbound()
        self._end_within(GOODBYE_SECONDS)
        try:
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()
        except OSError:  # the client has gone, which asyncio's own loops find out here
            self._transport.abort()

    def _read_or_not(self) -> None:
        if self._transport is None or self._phase is Phase.LOST:
            return
        if self._phase is not Phase.ENDING and (self._paused or self._has_unread()):
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _has_unread(self) -> bool:
        return self._inbound is not None and self._inbound.unread


def _ignore(data: bytes) -> None:
    """Where writes go when nothing may be written."""
