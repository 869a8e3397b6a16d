"""The ways out of the relay: straight to the bus, or copied onto a tape elsewhere and pushed from there."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from livetape.clock import Clock
from livetape.errors import (
    BusUnavailableError,
    LivetapeError,
    LogError,
    LogUnavailableError,
    NotFoundError,
    StoreUnavailableError,
    TapeHoleError,
)
from livetape.events.bus import Bus
from livetape.events.channel import execution_pattern, graph_tape, split_channel
from livetape.events.codec import DEFAULT_MAX_MESSAGE_BYTES, Encoded, Envelope, JsonCodec
from livetape.events.copier import Copier
from livetape.events.executions import EXECUTION_EVENTS
from livetape.events.log import EventLog, NewEvent, Position
from livetape.events.packing import WRAPPER_BYTES, Packer
from livetape.observability import Metrics, NoMetrics, get_logger
from livetape.store.executions import Committed

logger = get_logger(__name__)

GRAPH_EVENT: Final = "graph_execution_update"
KEPT_GRAPHS: Final = 10_000
REFILL_EVENTS: Final = 64
"""Copied at once when a tape is filled again."""
KEPT_SENT: Final = 2_000
KEPT_SENT_S: Final = 3_600.0
"""Tapes that are filled again although nothing new comes for them: so many at most, for so long after their end."""
LOOK_S: Final = 2.0
"""So often is looked whether the other log has lost something."""


class Outlet(ABC):
    """Where committed events go. One call at a time for a tape; calls for different tapes may overlap."""

    tapes_at_once: int = 1
    waits_for_leftovers: bool = True
    """Whether what an earlier process left goes out before anything new is written."""
    retried: tuple[type[LivetapeError], ...] = (BusUnavailableError, LogUnavailableError, StoreUnavailableError)
    """Errors after which it is tried again. Any other ends the relay, and with it the process."""

    async def run(self) -> None:
        """What there is to do beside, for ever."""
        await asyncio.get_running_loop().create_future()

    @abstractmethod
    async def send(self, committed: Committed, first: int, events: Sequence[NewEvent]) -> int:
        """Send these events of a tape, numbered from `first`, in order; returns how many of them are out.

        Fewer than all: try again with the rest.

        Raises:
            LivetapeError (retryable): none is out, later perhaps.
        """


class LiveMessages:
    """Makes the bus copy of events; a graph event is first appended to the graph's tape, which allots its number."""

    def __init__(self, graphs: EventLog, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self._graphs = graphs
        self._limit = max_message_bytes
        self._packer = Packer(JsonCodec(EXECUTION_EVENTS), max_message_bytes)

    async def of(self, committed: Committed, number: int, event: NewEvent) -> bytes:
        """The message for the bus. Making it twice is harmless."""
        on_graph = await self.on_graph(committed, number, event) if event.event_type == GRAPH_EVENT else None
        envelope = Envelope(
            payload=event.payload,
            event_type=event.event_type,
            offset=number,
            epoch=committed.epoch,
            graph_offset=None if on_graph is None else on_graph.offset,
            graph_epoch=None if on_graph is None else on_graph.epoch,
            final=event.final,
        )
        message = envelope.encode()
        if len(message) > self._limit:  # the tape keeps the whole event
            message = self._fitted(envelope, committed.channel, len(message)).encode()
        return message

    async def on_graph(self, committed: Committed, number: int, event: NewEvent) -> Position:
        """Put it on the graph's tape, once, and publish nothing."""
        return await self._graphs.append(
            graph_tape(committed.graph_id),
            NewEvent(event.event_type, event.payload),
            idempotency_key=f"{committed.execution_id}:{number}",
        )

    def _fitted(self, envelope: Envelope, channel: str, size: int) -> Envelope:
        """The envelope of `size` bytes with values of its event shortened, or with the notice in its place."""
        whole = Encoded(envelope.payload, envelope.event_type)
        beside = size - len(whole.payload) - WRAPPER_BYTES
        live = self._packer.live_copy(whole, channel, beside=beside)
        return envelope._replace(
            payload=live.payload or whole.payload,
            event_type=live.event_type or whole.event_type,
            lossy=live.lossy,
        )


class BusOutlet(Outlet):
    """The log of the store is the log that is read: all that is left to do is to publish.

    `tapes_at_once`: more than one where graph events that are appended together share a commit at a server.
    """

    def __init__(self, bus: Bus, messages: LiveMessages, *, tapes_at_once: int = 1) -> None:
        self._bus = bus
        self._messages = messages
        self.tapes_at_once = tapes_at_once

    async def send(self, committed: Committed, first: int, events: Sequence[NewEvent]) -> int:
        sent = 0
        try:
            for number, event in enumerate(events, first):
                await self._bus.publish(committed.channel, await self._messages.of(committed, number, event))
                sent += 1
        except LivetapeError as error:
            if not sent or not error.retryable:
                raise
        return sent


class CopyOutlet(Outlet):
    """Copies every event onto a tape of another log, under its own number and epoch, and publishes it with that.

    What that log has lost is copied again from `source`, without being published again: of a tape that goes on when
    its next event comes, of the tapes of the last hour within some seconds. `log` also numbers the tapes of graphs.
    """

    tapes_at_once = 64
    waits_for_leftovers = False  # the other log may be away, and the engine does not wait for it
    retried = (LivetapeError,)

    def __init__(
        self,
        copier: Copier,
        log: EventLog,
        source: EventLog,
        bus: Bus,
        *,
        clock: Clock,
        metrics: Metrics | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        self._copier = copier
        self._log = log
        self._source = source
        self._bus = bus
        self._clock = clock
        self._metrics = metrics or NoMetrics()
        self._messages = _OwnedGraphs(log, max_message_bytes)
        self._sent: OrderedDict[str, _Sent] = OrderedDict()
        self._looked_at = clock.monotonic()
        self._suspects = False

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except LivetapeError as error:
                self._suspects = True
                logger.debug("cannot look after copies: %s", error)

    async def send(self, committed: Committed, first: int, events: Sequence[NewEvent]) -> int:
        messages = await self._prepare(committed, first, events)
        outcomes = await asyncio.gather(
            *(
                self._copier.copy(
                    committed.tape, Position(committed.epoch, number), event, channel=committed.channel, message=message
                )
                for number, (event, message) in enumerate(zip(events, messages, strict=False), first)
            ),
            return_exceptions=True,
        )
        copied = next((n for n, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)), len(outcomes))
        if copied:
            self._remember(committed, first + copied - 1)
        if copied == len(outcomes):
            return copied
        error = outcomes[copied]
        assert isinstance(error, BaseException)
        self._suspects = True
        try:
            if await self._mend(committed, first + copied, error):
                return copied
            await self._bus.publish(committed.channel, messages[copied])
            return copied + 1
        except LivetapeError:
            if not copied:
                raise
            return copied

    async def refill(self, committed: Committed, upto: int) -> int:
        """Copy again what is missing of a tape up to this number; returns how many events that were.

        Nothing is published: it was, when it was new.

        Raises:
            LogUnavailableError: later, perhaps.
            LogError: never: the source has forgotten them, or the tape is somebody else's.
        """
        await create_copy(self._log, committed)
        known = await self._log.describe(committed.tape)
        after = 0 if known is None else known.offset
        filled = 0
        while after < upto:
            entries = await self._source.read(committed.tape, after, limit=min(REFILL_EVENTS, upto - after))
            if not entries or entries[0].offset != after + 1:
                raise LogError("what is missing of the tape is not there any more", tape=committed.tape)
            puts = [
                self._log.put(
                    committed.tape,
                    Position(committed.epoch, entry.offset),
                    NewEvent(entry.event_type, entry.payload, entry.final, entry.at_us),
                )
                for entry in entries
            ]
            for outcome in await asyncio.gather(*puts, return_exceptions=True):
                if isinstance(outcome, TapeHoleError | NotFoundError):
                    raise LogUnavailableError("the tape was lost again while it was filled") from outcome
                if isinstance(outcome, BaseException):
                    raise outcome
            filled += len(entries)
            after = entries[-1].offset
        if filled:
            self._metrics.count("relay_refilled_total", filled)
            logger.info("filled %s again: %d events", committed.tape, filled, extra={"action": "relay_refill"})
        return filled

    async def _prepare(self, committed: Committed, first: int, events: Sequence[NewEvent]) -> list[bytes]:
        """The messages of as many of the first events as can be made now, at least one."""
        messages: list[bytes] = []
        for number, event in enumerate(events, first):
            try:
                messages.append(await self._messages.of(committed, number, event))
            except LivetapeError:
                if not messages:
                    raise
                break
        return messages

    async def _mend(self, committed: Committed, number: int, error: BaseException) -> bool:
        """Do what the failed copy of this number needs before it can be tried again. False: it can never be made."""
        if isinstance(error, TapeHoleError | NotFoundError):
            try:
                await self.refill(committed, number - 1)
                return True
            except LogError as hopeless:
                if hopeless.retryable:
                    raise
                error = hopeless
        if isinstance(error, LogError) and not error.retryable:
            self._metrics.count("relay_refused_total")
            logger.error("%s is not kept: %s", committed.tape, error, extra={"action": "relay_refused"})
            return False
        raise error

    # ---- what the other log may lose -------------------------------------------------------------------------------

    def _remember(self, committed: Committed, upto: int) -> None:
        now = self._clock.monotonic()
        self._sent[committed.tape] = _Sent(replace(committed, events=()), upto, now)
        self._sent.move_to_end(committed.tape)
        while len(self._sent) > KEPT_SENT or next(iter(self._sent.values())).at < now - KEPT_SENT_S:
            self._sent.popitem(last=False)

    async def look(self) -> None:
        """Whether the other log still has what it took; what it has lost is copied again.

        What was sent since the last look is looked at, and one tape from before: a log that loses more than its end
        has lost that one too. After a doubt, everything is.

        Raises:
            LivetapeError (retryable): later.
        """
        since, self._looked_at = self._looked_at, self._clock.monotonic()
        looked_at: list[_Sent] = []
        for sent in reversed(self._sent.values()):
            looked_at.append(sent)
            if sent.at < since and not self._suspects:
                break
        behind = await self._behind(looked_at)
        if behind and not self._suspects:
            behind = await self._behind(list(self._sent.values()))
        if behind:
            logger.warning("the event log has lost events: copying them again", extra={"action": "relay_loss"})
        for sent in behind:
            try:
                await self.refill(sent.committed, sent.upto)
            except LogError as error:
                if error.retryable:
                    raise
                self._sent.pop(sent.committed.tape, None)  # said once is enough
                logger.error("%s stays lost: %s", sent.committed.tape, error, extra={"action": "relay_refused"})
        self._suspects = False

    async def _behind(self, sent: Sequence[_Sent]) -> list[_Sent]:
        """Those that the other log has not as far as they were sent."""
        behind = []
        for begin in range(0, len(sent), REFILL_EVENTS):
            part = sent[begin : begin + REFILL_EVENTS]
            tapes = await asyncio.gather(*(self._log.describe(one.committed.tape) for one in part))
            for one, tape in zip(part, tapes, strict=True):
                if tape is None or tape.offset < one.upto:
                    behind.append(one)
        return behind


class _Sent(NamedTuple):
    """A tape that was copied up to a number, and when by the monotonic clock."""

    committed: Committed
    upto: int
    at: float


async def create_copy(log: EventLog, committed: Committed) -> None:
    """Make the tape of an execution elsewhere, with its owner and its epoch. Making it again changes nothing."""
    await log.create(
        committed.tape,
        owner=_owner(committed),
        channel=committed.channel,
        graph_id=committed.graph_id,
        epoch=committed.epoch,
    )


class _OwnedGraphs(LiveMessages):
    """Sees to it that the tape of a graph has its owner, also after it was lost and began anew."""

    def __init__(self, log: EventLog, max_message_bytes: int) -> None:
        super().__init__(log, max_message_bytes)
        self._log = log
        self._epochs: OrderedDict[str, str] = OrderedDict()

    async def on_graph(self, committed: Committed, number: int, event: NewEvent) -> Position:
        graph_id = committed.graph_id
        if graph_id not in self._epochs:
            await self._own(committed)
        position = await super().on_graph(committed, number, event)
        if self._epochs.get(graph_id) != position.epoch:
            await self._own(committed)
            self._epochs[graph_id] = position.epoch
        return position

    async def _own(self, committed: Committed) -> None:
        tape = await self._log.create(
            graph_tape(committed.graph_id),
            owner=_owner(committed),
            channel=execution_pattern(_owner(committed), committed.graph_id),
            graph_id=committed.graph_id,
        )
        self._epochs[committed.graph_id] = tape.epoch
        self._epochs.move_to_end(committed.graph_id)
        while len(self._epochs) > KEPT_GRAPHS:
            self._epochs.popitem(last=False)


def _owner(committed: Committed) -> str:
    """The user whose execution it is stands in its channel."""
    _, (user_id, *_) = split_channel(committed.channel)
    return user_id
