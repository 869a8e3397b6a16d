"""The Recorder port: an event goes onto its tape and, in the same step, out to those who listen."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable
from typing import Final, NamedTuple

from livetape.errors import BusError, ClosedError, LivetapeError, NotFoundError
from livetape.events.bus import Bus
from livetape.events.codec import Envelope
from livetape.events.log import EventLog, NewEvent, Position, Tape
from livetape.events.tally import Tally
from livetape.observability import Metrics

KEPT_LOCKS: Final = 4096


class Live(NamedTuple):
    """How the bus copy of an event differs from the one on the tape.

    `payload` and `event_type` replace the event's (it was shortened, or is too large for the bus at all); None leaves
    them. `lossy` and `traceparent` stand beside the payload in the envelope.
    """

    payload: bytes | None = None
    event_type: str | None = None
    lossy: bool = False
    traceparent: str | None = None


AS_RECORDED: Final = Live()


class Recorded(NamedTuple):
    """What became of an event.

    `entry_id` is the id of its entry as a plain Redis client knows it (`<offset>-0`, or the server's own on a mixed
    tape). `receivers` is how many listened when it was pushed (a server counts links, which several subscriptions may
    share); None: it was not pushed, because the push failed or because it is a repetition. `repeated`: its
    idempotency key was there before, nothing was written, and `position` is that of the first. `mixed`: see
    `Tape.mixed`.
    """

    position: Position
    entry_id: str
    receivers: int | None
    repeated: bool = False
    mixed: bool = False


class Recorder(ABC):
    """Appends to tapes and pushes what it appended. Safe for concurrent use by tasks of one event loop.

    Per tape, events are pushed in the order of their offsets, and none before it is on the tape: nobody who listens
    sees number 6 before number 5, or a number that a reader of the log does not find.
    """

    @abstractmethod
    async def record(
        self,
        tape: str,
        channel: str,
        event: NewEvent,
        *,
        live: Live = AS_RECORDED,
        owner: str | None = None,
        any_owner: bool = False,
        idempotency_key: str | None = None,
    ) -> Recorded:
        """Returns once the event is durable and was pushed on `channel` with its offset and epoch.

        A tape that does not exist is made. `owner` becomes the tape's owner when it has none: the first writer wins.
        None claims nothing and is refused nothing. A mixed tape's events are pushed without a position.

        Calls that overlap for one tape are recorded in the order in which they were made. A call that was repeated
        inside after a broken link has been written once.

        Raises:
            NotFoundError: the tape belongs to somebody else (`any_owner` writes there all the same).
            LogUnavailableError: nothing is known about whether it was written; retry with an idempotency key.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give back what it opened itself; logs and buses that it was given stay open. Idempotent."""


async def counted(tally: Tally, answer: Awaitable[Recorded], event: NewEvent) -> Recorded:
    """What became of an event, and counts it."""
    begun = tally.begin()
    try:
        recorded = await answer
    except LivetapeError as error:
        tally.failed(error.code)
        raise
    if not recorded.repeated:
        tally.add(len(event.payload), recorded.receivers or 0, begun)
    return recorded


class LogRecorder(Recorder):
    """Any log and any bus of this process, one after the other under a lock per tape."""

    def __init__(self, log: EventLog, bus: Bus, *, metrics: Metrics | None = None) -> None:
        self._log = log
        self._bus = bus
        self._tally = Tally.of_recorder(metrics)
        self._locks: OrderedDict[str, asyncio.Lock] = OrderedDict()
        self._known: OrderedDict[str, Tape] = OrderedDict()

    async def record(
        self,
        tape: str,
        channel: str,
        event: NewEvent,
        *,
        live: Live = AS_RECORDED,
        owner: str | None = None,
        any_owner: bool = False,
        idempotency_key: str | None = None,
    ) -> Recorded:
        answer = self._record(tape, channel, event, live, owner, any_owner, idempotency_key)
        return await answer if self._tally is None else await counted(self._tally, answer, event)

    async def close(self) -> None:
        """The log and the bus are not its own."""
        if self._tally is not None:
            self._tally.hand_on()

    async def _record(
        self,
        tape: str,
        channel: str,
        event: NewEvent,
        live: Live,
        owner: str | None,
        any_owner: bool,
        idempotency_key: str | None,
    ) -> Recorded:
        async with self._lock(tape):
            await self._claim(tape, channel, owner, any_owner=any_owner)
            before = None if idempotency_key is None else await self._log.describe(tape)
            position = await self._log.append(tape, event, idempotency_key=idempotency_key)
            entry_id = f"{position.offset}-0"
            if before is not None and position.epoch == before.epoch and position.offset <= before.offset:
                return Recorded(position, entry_id, None, repeated=True)
            envelope = Envelope(
                event.payload if live.payload is None else live.payload,
                event.event_type if live.event_type is None else live.event_type,
                position.offset,
                position.epoch,
                final=event.final,
                lossy=live.lossy,
                traceparent=live.traceparent,
            )
            try:
                receivers: int | None = await self._bus.publish(channel, envelope.encode())
            except (BusError, ClosedError):
                receivers = None  # it is on the tape: whoever listens again finds it there
            return Recorded(position, entry_id, receivers)

    async def _claim(self, tape: str, channel: str, owner: str | None, *, any_owner: bool) -> None:
        known = self._known.get(tape)
        if known is None or (owner is not None and known.owner is None):
            known = await self._log.create(tape, owner=owner, channel=channel)
            self._known[tape] = known
            while len(self._known) > KEPT_LOCKS:
                self._known.popitem(last=False)
        if owner is not None and known.owner != owner and not any_owner:
            raise NotFoundError(f"there is no tape {tape}", tape=tape)

    def _lock(self, tape: str) -> asyncio.Lock:
        lock = self._locks.get(tape)
        if lock is None:
            lock = self._locks[tape] = asyncio.Lock()
            while len(self._locks) > KEPT_LOCKS:
                oldest, held = next(iter(self._locks.items()))
                if held.locked():
                    break
                del self._locks[oldest]
        else:
            self._locks.move_to_end(tape)
        return lock
