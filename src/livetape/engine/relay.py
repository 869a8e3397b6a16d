"""Sends out what the store has committed: in order per execution, each at least once, with its number.

Normally it is handed the events by the commit itself, in the same process; after a crash, or when more waits than it
holds, it finds them in the log. Where they go, and by which steps, is its outlet's business. Doing it twice is
harmless: the number is the identity.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from livetape.engine.outlets import Outlet
from livetape.errors import LivetapeError, LogUnavailableError, StoreUnavailableError
from livetape.events.log import EventLog, NewEvent
from livetape.observability import Metrics, get_logger
from livetape.store.executions import Committed, TapeRelayStore

logger = get_logger(__name__)

MARK_EVERY_S: Final = 0.5
RETRY_S: Final = 0.5
SENT_AT_ONCE: Final = 64
SENT_BYTES: Final = 1024 * 1024
READ_AT_ONCE: Final = 256
HELD_BYTES: Final = 64 * 1024 * 1024
"""Of events that wait for their turn. What comes beyond is read from the log when its turn comes."""
LEFTOVERS: Final = 1000
LOOK_S: Final = 1.0
FRUITLESS: Final = 3
IDLE_S: Final = 60.0
"""A tape that others write to as well is forgotten when nothing was offered for so long."""


@dataclass(slots=True)
class _Track:
    """One tape on its way out: `next` is the number to send next, `waiting` what came before its turn.

    `stuck`: there is more in the log than waits here. `unsure`: `next` has to be asked for. `busy`: it has its turn.
    `ended`: its last event is out.
    """

    committed: Committed
    next: int
    waiting: dict[int, NewEvent] = field(default_factory=dict)
    stuck: bool = False
    unsure: bool = False
    busy: bool = False
    ended: bool = False
    offered_at: float = 0.0


class Relay:
    """One per process that writes state. `offer` may be called at any time from the loop of `run`.

    `log` is the log in which the store writes. `shared`: other processes write there too, to the same tapes. Each
    sends what it has committed, with what comes before it on the tape; what one of them left behind when it died is
    looked for again and again, and sent by the process that the store names it to.
    """

    def __init__(
        self, outlet: Outlet, *, log: EventLog, store: TapeRelayStore, metrics: Metrics, shared: bool = False
    ) -> None:
        self._outlet = outlet
        self._log = log
        self._store = store
        self._metrics = metrics
        self._shared = shared
        self._tracks: dict[str, _Track] = {}
        self._dirty: deque[str] = deque()
        self._queued: set[str] = set()
        self._wake = asyncio.Event()
        self._published: dict[str, int] = {}
        self._held_bytes = 0
        self._stalled = False
        self.ready = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many tapes have events that are not out yet, as far as is known."""
        return sum(1 for track in self._tracks.values() if track.waiting or track.stuck)

    async def relayed(self, upto: Mapping[str, int]) -> dict[str, int]:
        """Of the events of each of these tapes up to a number: up to which they are certainly out.

        Of a tape that others write to as well, they may be further than they have noted.
        """
        sent: dict[str, int] = {}
        unknown: list[str] = []
        for tape, number in upto.items():
            track = self._tracks.get(tape)
            is_known = track is not None and not track.unsure
            known = track.next - 1 if track is not None and is_known else self._published.get(tape, 0)
            sent[tape] = min(number, known)
            if known < number and (self._shared or track is None):
                unknown.append(tape)
        noted = await self._store.published_all(unknown) if unknown else {}
        for tape in unknown:
            sent[tape] = min(upto[tape], max(sent[tape], noted.get(tape, 0)))
        return sent

    def offer(self, committed: Committed) -> None:
        """A commit of this process wrote these events."""
        track = self._tracks.get(committed.tape)
        if track is None:
            # Commits may be offered in another order than they were made: who sees a later one first asks the store.
            track = _Track(committed, committed.first, unsure=committed.first > 1)
            self._tracks[committed.tape] = track
        if self._shared:
            track.offered_at = asyncio.get_running_loop().time()
        if self._held_bytes > HELD_BYTES:
            track.stuck = True
        else:
            for number, event in enumerate(committed.events, committed.first):
                if track.unsure or number >= track.next:
                    self._hold(track, number, event)
        self._touch(track)

    def _hold(self, track: _Track, number: int, event: NewEvent) -> None:
        if number not in track.waiting:
            track.waiting[number] = event
            self._held_bytes += len(event.payload)

    def _drop(self, track: _Track, number: int) -> None:
        self._held_bytes -= len(track.waiting.pop(number).payload)

    def _touch(self, track: _Track) -> None:
        tape = track.committed.tape
        if tape not in self._queued and not track.busy:
            self._queued.add(tape)
            self._dirty.append(tape)
            self._wake.set()

    async def run(self) -> None:
        """Send for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._mark_forever(), name="relay marks")
            tasks.create_task(self._outlet.run(), name="relay outlet")
            if self._outlet.waits_for_leftovers:
                await self._catch_up()
            else:
                await self._find_leftovers()
            tasks.create_task(self._find_more(), name="relay leftovers")
            self.ready.set()
            room = asyncio.Semaphore(self._outlet.tapes_at_once)
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._dirty:
                    tape = self._dirty.popleft()
                    self._queued.discard(tape)
                    track = self._tracks.get(tape)
                    if track is None:
                        continue  # it ended while this turn was waiting
                    if self._outlet.tapes_at_once == 1:
                        await self._turn(track)
                    else:
                        track.busy = True  # before it waits: what is offered meanwhile must not get a second turn
                        await room.acquire()
                        turn = tasks.create_task(self._turn(track), name="relay turn")
                        turn.add_done_callback(lambda _: room.release())

    async def _turn(self, track: _Track) -> None:
        try:
            await self._publish(track)
        except self._outlet.retried as error:
            self._metrics.count("relay_retries_total")
            if not self._stalled:
                self._stalled = True
                logger.warning("the relay waits: %s", error, extra={"action": "relay_retry"})
            await asyncio.sleep(RETRY_S)
            track.busy = False
            self._touch(track)
        else:
            if self._stalled:
                self._stalled = False
                logger.info("the relay goes on", extra={"action": "relay_goes_on"})
            track.busy = False
            if track.stuck or track.next in track.waiting:  # came while it had its turn
                self._touch(track)

    # ---- what an earlier process left ------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Send it all."""
        seen: set[str] = set()
        # Nothing may be left of a tape but its number: its events were trimmed.
        while (found := await self._find_leftovers()) - seen:
            seen |= found
            for track in [track for track in self._tracks.values() if track.stuck]:
                await self._publish(track)
            await self._mark()

    async def _find_leftovers(self) -> set[str]:
        """Queue what was committed and not sent; returns the tapes that were found."""
        found: set[str] = set()
        for committed in await self._store.unpublished(limit=LEFTOVERS):
            if committed.tape in self._published:
                continue
            track = self._tracks.get(committed.tape)
            if track is None:
                track = self._tracks[committed.tape] = _Track(committed, committed.first)
            elif track.busy or track.waiting or track.stuck:
                continue
            # Nobody offered it: another process wrote it and died, or the commit was not heard of here.
            found.add(committed.tape)
            track.next = max(track.next, committed.first)
            track.stuck = True
            track.offered_at = asyncio.get_running_loop().time()
            self._touch(track)
        return found

    def _forget_idle(self) -> None:
        """Tapes whose last events another process sends have no end here."""
        before = asyncio.get_running_loop().time() - IDLE_S
        idle = [
            name
            for name, track in self._tracks.items()
            if track.offered_at < before and not (track.busy or track.waiting or track.stuck or track.unsure)
        ]
        for name in idle:
            del self._tracks[name]

    async def _find_more(self) -> None:
        """The store names so many at once only: look again when most of them are out, and for what nobody offered."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._shared:
                self._forget_idle()
            if self.waiting > LEFTOVERS // 2:
                continue
            try:
                await self._mark()
                await self._find_leftovers()
            except StoreUnavailableError as error:
                logger.warning("cannot look for leftovers: %s", error, extra={"action": "relay_leftovers"})

    # ---- one tape --------------------------------------------------------------------------------------------------

    async def _publish(self, track: _Track) -> None:
        committed = track.committed
        if track.unsure:
            track.next = await self._store.published(committed.tape) + 1
            track.unsure = False
            for number in [number for number in track.waiting if number < track.next]:
                self._drop(track, number)
        fruitless = 0
        while events := await self._due(track):
            sent = await self._outlet.send(committed, track.next, events)
            for number in range(track.next, track.next + sent):
                self._drop(track, number)
            track.next += sent
            self._published[committed.tape] = track.next - 1
            self._metrics.count("events_published_total", sent)
            track.ended = track.ended or any(event.final for event in events[:sent])
            fruitless = 0 if sent else fruitless + 1
            if fruitless == FRUITLESS:
                raise LogUnavailableError("the event log does not keep what it is given", tape=committed.tape)
        if track.ended and not track.waiting and not track.stuck:
            # Terminal never changes: nothing will follow.
            self._tracks.pop(committed.tape, None)

    async def _due(self, track: _Track) -> list[NewEvent]:
        """The events that are to leave next, as many as go together."""
        if track.next not in track.waiting and (track.stuck or track.waiting):
            await self._read_missing(track)
        events: list[NewEvent] = []
        size = 0
        while len(events) < SENT_AT_ONCE and (event := track.waiting.get(track.next + len(events))) is not None:
            size += len(event.payload)
            if events and size > SENT_BYTES:
                break
            events.append(event)
        return events

    async def _read_missing(self, track: _Track) -> None:
        """Events of this tape that nobody offered: read the next of them from the log."""
        track.stuck = False  # what is dropped from here on, says so again
        try:
            entries = await self._log.read(track.committed.tape, track.next - 1, limit=READ_AT_ONCE)
        except LivetapeError:
            track.stuck = True
            raise
        for entry in entries:
            self._hold(track, entry.offset, NewEvent(entry.event_type, entry.payload, entry.final, entry.at_us))
        track.stuck = track.stuck or len(entries) == READ_AT_ONCE

    # ---- the mark --------------------------------------------------------------------------------------------------

    async def _mark_forever(self) -> None:
        while True:
            await asyncio.sleep(MARK_EVERY_S)
            self._metrics.gauge("relay_waiting_tapes", self.waiting)
            await self._mark()

    async def _mark(self) -> None:
        upto, self._published = self._published, {}
        try:
            await self._store.mark_published(upto)
        except StoreUnavailableError as error:
            self._published = upto | self._published
            logger.warning("relay cannot note its place: %s", error, extra={"action": "relay_mark"})
