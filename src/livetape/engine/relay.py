"""Publishes what the store has committed: in order per execution, each at least once, with its number.

Normally it is handed the events by the commit itself, in the same process; after a crash it finds them in the log.
Graph events are first appended to the graph's tape (which allots their number there and publishes nothing), then
every event is published once on the execution's channel. Doing it twice is harmless: the number is the identity.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final

from livetape.errors import BusUnavailableError, LogUnavailableError, StoreUnavailableError
from livetape.events.bus import Bus
from livetape.events.channel import graph_tape
from livetape.events.codec import DEFAULT_MAX_MESSAGE_BYTES, Encoded, Envelope, JsonCodec
from livetape.events.executions import EXECUTION_EVENTS
from livetape.events.log import EventLog, NewEvent
from livetape.events.packing import WRAPPER_BYTES, Packer
from livetape.observability import Metrics, get_logger
from livetape.store.executions import Committed, TapeRelayStore

logger = get_logger(__name__)

MARK_EVERY_S: Final = 0.5
RETRY_S: Final = 0.5
GRAPH_EVENT: Final = "graph_execution_update"


@dataclass(slots=True)
class _Track:
    """One tape on its way out: `next` is the number to publish next, `waiting` what came before its turn."""

    committed: Committed
    next: int
    waiting: dict[int, NewEvent] = field(default_factory=dict)
    stuck: bool = False
    unsure: bool = False


class Relay:
    """One per process that writes state. `offer` may be called at any time from the loop of `run`."""

    def __init__(
        self,
        *,
        bus: Bus,
        log: EventLog,
        store: TapeRelayStore,
        metrics: Metrics,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        self._bus = bus
        self._log = log
        self._store = store
        self._metrics = metrics
        self._limit = max_message_bytes
        self._packer = Packer(JsonCodec(EXECUTION_EVENTS), max_message_bytes)
        self._tracks: dict[str, _Track] = {}
        self._dirty: deque[str] = deque()
        self._queued: set[str] = set()
        self._wake = asyncio.Event()
        self._published: dict[str, int] = {}
        self.ready = asyncio.Event()

    def offer(self, committed: Committed) -> None:
        """A commit of this process wrote these events."""
        track = self._tracks.get(committed.tape)
        if track is None:
            # Commits may be offered in another order than they were made: who sees a later one first asks the store.
            track = _Track(committed, committed.first, unsure=committed.first > 1)
            self._tracks[committed.tape] = track
        for number, event in enumerate(committed.events, committed.first):
            if track.unsure or number >= track.next:
                track.waiting[number] = event
        self._touch(committed.tape)

    def _touch(self, tape: str) -> None:
        if tape not in self._queued:
            self._queued.add(tape)
            self._dirty.append(tape)
            self._wake.set()

    async def run(self) -> None:
        """Publish for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._mark_forever(), name="relay marks")
            await self._catch_up()
            self.ready.set()
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._dirty:
                    tape = self._dirty.popleft()
                    self._queued.discard(tape)
                    track = self._tracks.get(tape)
                    if track is None:
                        continue  # it ended while this turn was waiting
                    try:
                        await self._publish(track)
                    except (BusUnavailableError, LogUnavailableError, StoreUnavailableError) as error:
                        logger.warning("relay of %s waits: %s", tape, error, extra={"action": "relay_retry"})
                        self._metrics.count("relay_retries_total")
                        await asyncio.sleep(RETRY_S)
                        self._touch(tape)

    async def _catch_up(self) -> None:
        """What an earlier process committed and did not publish."""
        while True:
            tapes = await self._store.unpublished()
            found = [c for c in tapes if c.tape not in self._tracks]
            for committed in found:
                self._tracks[committed.tape] = _Track(committed, committed.first, stuck=True)
                self._touch(committed.tape)
            for track in list(self._tracks.values()):
                if track.stuck:
                    await self._publish(track)
            if not found:
                return
            await self._mark()

    async def _publish(self, track: _Track) -> None:
        if track.unsure:
            track.next = await self._store.published(track.committed.tape) + 1
            track.unsure = False
            for number in [number for number in track.waiting if number < track.next]:
                del track.waiting[number]
        if track.stuck or (track.waiting and track.next not in track.waiting):
            await self._read_missing(track)
        final, before = False, track.next
        while (event := track.waiting.get(track.next)) is not None:
            await self._publish_one(track, event)
            del track.waiting[track.next]
            track.next += 1
            final = final or event.final
        self._published[track.committed.tape] = track.next - 1
        self._metrics.count("events_published_total", track.next - before)
        if final and not track.waiting:
            # Terminal never changes: nothing will follow.
            del self._tracks[track.committed.tape]

    async def _read_missing(self, track: _Track) -> None:
        """Events of this tape that nobody offered: read them from the log."""
        after = track.next - 1
        while entries := await self._log.read(track.committed.tape, after):
            for entry in entries:
                track.waiting.setdefault(entry.offset, NewEvent(entry.event_type, entry.payload, entry.final))
                after = entry.offset
        track.stuck = False

    async def _publish_one(self, track: _Track, event: NewEvent) -> None:
        committed = track.committed
        graph_offset: int | None = None
        graph_epoch: str | None = None
        if event.event_type == GRAPH_EVENT:
            position = await self._log.append(
                graph_tape(committed.graph_id),
                NewEvent(event.event_type, event.payload),
                idempotency_key=f"{committed.execution_id}:{track.next}",
            )
            graph_offset, graph_epoch = position.offset, position.epoch
        envelope = Envelope(
            payload=event.payload,
            event_type=event.event_type,
            offset=track.next,
            epoch=committed.epoch,
            graph_offset=graph_offset,
            graph_epoch=graph_epoch,
            final=event.final,
        )
        message = envelope.encode()
        if len(message) > self._limit:  # the tape keeps the whole event
            message = self._fitted(envelope, committed.channel, len(message)).encode()
        await self._bus.publish(committed.channel, message)

    def _fitted(self, envelope: Envelope, channel: str, size: int) -> Envelope:
        """The envelope of `size` bytes with values of its event shortened, or with the notice in its place."""
        whole = Encoded(envelope.payload, envelope.event_type)
        beside = size - len(whole.payload) - WRAPPER_BYTES
        live = self._packer.live_copy(whole, channel, beside=beside)
        return replace(
            envelope,
            payload=live.payload or whole.payload,
            event_type=live.event_type or whole.event_type,
            lossy=live.lossy,
        )

    async def _mark_forever(self) -> None:
        while True:
            await asyncio.sleep(MARK_EVERY_S)
            await self._mark()

    async def _mark(self) -> None:
        upto, self._published = self._published, {}
        try:
            await self._store.mark_published(upto)
        except StoreUnavailableError as error:
            self._published = upto | self._published
            logger.warning("relay cannot note its place: %s", error, extra={"action": "relay_mark"})
