"""Hands frames to the sockets of many clients by few system calls (`ring.py`)."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Final, NamedTuple, cast

from livetape.gateway.member import Writer
from livetape.gateway.sender import PlainSender, Row, Sender
from livetape.gateway.transports.ring import ENTRY_BYTES, MAX_BYTES, Ring, RingError
from livetape.gateway.transports.ways import Ways
from livetape.observability import Metrics, NoMetrics, get_logger

logger = get_logger(__name__)

FEWEST: Final = 6
"""For fewer sockets a call of each one's writer is as quick."""

MAX_FRAME: Final = 64 * 1024
"""Larger frames go by the writer: what they cost is to copy them, and a part of them would remain."""


_NO_LIMIT: Final = 1 << 30


class _Way:
    """One socket: its writer, and what is needed to send past its transport."""

    __slots__ = ("_busy", "_write", "entry", "name", "transport", "waiting")

    def __init__(self, transport: asyncio.Transport, descriptor: int, name: int, busy: set[_Way]) -> None:
        self.transport = transport
        self.name = name
        self.entry = Ring.entry(descriptor, name)
        self._write: Callable[[bytes], object] = transport.write
        self._busy = busy
        self.waiting: Callable[[], int] = transport.get_write_buffer_size
        """How many bytes wait in the transport: what is sent past it must not overtake them."""
        if isinstance(transport, asyncio.Transport):
            # asyncio's own loops forget what waits when they cut off, be it in the middle of a frame.
            self.waiting = partial(_waiting, transport)

    def __call__(self, data: bytes) -> None:
        self._busy.add(self)
        self._write(data)

    def cut(self) -> None:
        """It takes nothing more, whoever may still hold it: its descriptor is about to be another client's."""
        self.entry = Ring.nothing(self.name)
        self._write = _ignore
        self._busy.discard(self)
        self._busy = set()


class _Prepared(NamedTuple):
    """The entries of a row, as long as nobody was cut."""

    entries: bytes
    cuts: int


class RingSender(Sender, Ways):
    """Sends past the transports of the sockets between `open` and `cut`. All others, and those where something may
    wait, get their frames by their writers. For one event loop.
    """

    def __init__(self, ring: Ring, metrics: Metrics | None = None) -> None:
        self._ring: Ring | None = ring
        self._metrics = metrics or NoMetrics()
        self._plain = PlainSender()
        self._busy: set[_Way] = set()
        """Those to whose transports something was written since nothing waited there."""
        self._names = count(1)
        self._cuts = 0

    def close(self) -> None:
        """From here on it calls writers. Idempotent."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    # ---- Ways ------------------------------------------------------------------------------------------------------

    def open(self, transport: asyncio.Transport) -> Writer:
        socket = transport.get_extra_info("socket")
        if socket is None or transport.get_extra_info("sslcontext") is not None:
            return transport.write
        way = _Way(transport, socket.fileno(), next(self._names), self._busy)
        self._busy.add(way)  # the answer to its handshake may still be there
        return way

    def cut(self, writer: Writer) -> None:
        if isinstance(writer, _Way):
            writer.cut()
            self._cuts += 1

    # ---- Sender ----------------------------------------------------------------------------------------------------

    def send_all(self, writers: Sequence[Writer], frame: bytes) -> int:
        return self.send_row(Row(writers), 0, len(writers), frame)

    def send_row(self, row: Row, begin: int, end: int, frame: bytes) -> int:
        ring, prepared = self._ring, row.prepared
        if ring is None or end - begin < FEWEST or len(frame) > MAX_FRAME:
            return self._plain.send_row(row, begin, end, frame)
        writers = row.writers[begin:end]
        if not isinstance(prepared, _Prepared) or prepared.cuts != self._cuts:
            entries = _entries_of(row.writers)
            row.prepared = prepared = None if entries is None else _Prepared(b"".join(entries), self._cuts)
        if prepared is None or self._is_busy(writers):
            return self._send_apart(ring, writers, frame)
        return self._send(ring, writers, prepared.entries[begin * ENTRY_BYTES : end * ENTRY_BYTES], frame)

    def send_each(self, writers: Sequence[Writer], frames: Sequence[bytes]) -> list[int]:
        ring = self._ring
        if ring is None or len(writers) < FEWEST:
            return self._plain.send_each(writers, frames)
        lengths = array("I", map(len, frames))
        if sum(lengths) > MAX_BYTES:
            half = len(frames) // 2
            failed = self.send_each(writers[:half], frames[:half])
            return failed + [half + place for place in self.send_each(writers[half:], frames[half:])]
        entries = None if self._is_busy(writers) else _entries_of(writers)
        if entries is None:
            return self._send_each_apart(writers, frames)
        if len(set(entries)) < len(writers):
            # A part of a frame might be taken, and then another frame of the same socket.
            return self._plain.send_each(writers, frames)
        try:
            results = ring.send_each(b"".join(entries), frames, lengths)
        except BaseException as error:
            self._give_up(writers, error)
            return []
        return [] if results is None else self._send_rest(writers, frames, results)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _is_busy(self, writers: Sequence[Writer]) -> bool:
        """Whether something may wait in the transport of one of them."""
        busy = self._busy
        if not busy or busy.isdisjoint(writers):
            return False
        some = busy.intersection(writers)  # of the others there may be many, who have stopped to read
        waiting = {way for way in some if way.waiting()}
        busy -= some - waiting
        return bool(waiting)

    def _send(self, ring: Ring, writers: Sequence[Writer], entries: bytes, frame: bytes) -> int:
        try:
            results = ring.send_all(entries, frame)
        except BaseException as error:
            self._give_up(writers, error)
            return 0
        return 0 if results is None else len(self._send_rest(writers, [frame] * len(writers), results))

    def _send_apart(self, ring: Ring, writers: Sequence[Writer], frame: bytes) -> int:
        """Where something waits, or nothing is known, by the writer."""
        free: list[Writer] = []
        others: list[Writer] = []
        for writer in writers:
            (free if isinstance(writer, _Way) and writer not in self._busy else others).append(writer)
        # These first: a writer may call back, and then something may wait for them, too.
        entries = _entries_of(free) if len(free) >= FEWEST else None
        if entries is None:
            failed = self._plain.send_all(free, frame)
        else:
            failed = self._send(ring, free, b"".join(entries), frame)
        return failed + self._plain.send_all(others, frame)

    def _send_each_apart(self, writers: Sequence[Writer], frames: Sequence[bytes]) -> list[int]:
        is_free = [isinstance(writer, _Way) and writer not in self._busy for writer in writers]
        failed: list[int] = []
        # The free ones first, as above.
        for send, wanted in ((self.send_each, True), (self._plain.send_each, False)):
            places = [place for place, free in enumerate(is_free) if free is wanted]
            some = send([writers[place] for place in places], [frames[place] for place in places])
            failed += [places[index] for index in some]
        return failed

    def _send_rest(self, writers: Sequence[Writer], frames: Sequence[bytes], results: list[int]) -> list[int]:
        """What was not taken goes to the transports, which find out why. Returns the places of those that failed."""
        places = [place for place, taken in enumerate(results) if taken < len(frames[place])]
        rests = [frames[place][max(results[place], 0) :] for place in places]
        some = [writers[place] for place in places]
        transports = [way.transport for way in some if isinstance(way, _Way) and not way.transport.is_closing()]
        limits = [transport.get_write_buffer_limits() for transport in transports]
        # A write may call back, and then others be sent something: not before they have the rest of this.
        for transport in transports:
            transport.set_write_buffer_limits(high=_NO_LIMIT)
        failed = self._plain.send_each(some, rests)
        for transport, (low, high) in zip(transports, limits, strict=True):
            transport.set_write_buffer_limits(high, low)
        return [places[index] for index in failed]

    def _give_up(self, writers: Sequence[Writer], error: BaseException) -> None:
        """Who may have got a part of a frame can be sent nothing more: its client comes back and goes on from there.

        Raises all but a `RingError` on.
        """
        logger.error("sockets are cut off: %s", error, extra={"action": "ring_broken"})
        self._metrics.count("internal_errors_total", part="ring")
        self.close()
        for writer in writers:
            if isinstance(writer, _Way):
                writer.transport.abort()
        if not isinstance(error, RingError):
            raise error


def _entries_of(writers: Sequence[Writer]) -> list[bytes] | None:
    """None when one of them is no way of ours."""
    try:
        return [way.entry for way in cast("Sequence[_Way]", writers)]
    except AttributeError:
        return None


def _ignore(data: bytes) -> None:
    """Where writes of a socket go that is gone."""


def _waiting(transport: asyncio.Transport) -> int:
    return transport.is_closing() or transport.get_write_buffer_size()


def open_sender(metrics: Metrics | None = None) -> RingSender | None:
    """None where the system has no ring for us; then frames leave by the writers alone."""
    try:
        return RingSender(Ring(), metrics)
    except RingError as error:
        logger.info("each frame is sent by itself: %s", error, extra={"action": "no_ring"})
        return None
