"""The events of a bus as they come: decoded, one after the other, until closed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from enum import StrEnum
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar

from livetape.errors import BusError, ClosedError, CodecError, DecryptionError, LogError
from livetape.events.backoff import Backoff
from livetape.events.bus import BusMessage, Subscription
from livetape.events.codec import Codec, event_type_of, live_payload, plain_payload, split
from livetape.events.event import CommunicationErrorEvent
from livetape.events.listener import Sleep
from livetape.events.log import Position
from livetape.events.recovery import Gap
from livetape.events.tape_event import TapeEvent
from livetape.observability import Metrics, get_logger

logger = get_logger(__name__)

M = TypeVar("M")
T = TypeVar("T")

_TOO_LARGE: Final = b'{"event_type":"error_comms_update"'


class ListenerState(StrEnum):
    """`new`: nothing is subscribed yet. `connecting`: it tries to. `listening`. `closed`: it yields nothing more."""

    NEW = "new"
    CONNECTING = "connecting"
    LISTENING = "listening"
    CLOSED = "closed"


class Feed(Protocol):
    """Where a listener's messages come from."""

    def __aiter__(self) -> AsyncIterator[BusMessage | TapeEvent | Gap]: ...

    async def close(self) -> None: ...


class OpenFeed(Protocol):
    """Subscribes; returns when nothing that is published from now on will be missed."""

    async def __call__(self) -> Feed: ...


class EventListener(AsyncGenerator[M | CommunicationErrorEvent, None], Generic[M]):
    """An independent listener: an async iterator, and a context manager that closes it.

    It is subscribed once `async with` has entered, `ready` has returned or the first `anext` has begun to wait. While
    the server is away those two raise within the adapter's bound; `anext` tries for ever, and when it had to, tells a
    gap first. One task iterates over it; any task of the event loop may close it. A listener that is forgotten is
    closed.

    What cannot be decoded is counted in `skipped`, logged once per kind and left out; only a `DecryptionError` is
    raised, and the iteration can go on after it. In place of an event that was too large for the bus comes a
    `CommunicationErrorEvent` whose `key` has the ids of the channel. `gaps` counts the places where events may be
    missing; `on_gap` is called for each with its channel (empty: it may be any).
    """

    def __init__(
        self,
        open_feed: OpenFeed,
        codec: Codec[M],
        channel: str,
        *,
        skip_types: frozenset[str] = frozenset(),
        on_gap: Callable[[str], None] | None = None,
        metrics: Metrics,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.state = ListenerState.NEW
        self.gaps = 0
        self.skipped = 0
        self.position: Position | None = None
        """Where the last event stands on its tape, if on any: `listen(key, after=position)` goes on from there."""
        self.channel = channel
        """Where the last event came from; at first what is listened to."""
        self._pattern = channel
        self._open_feed = open_feed
        self._codec = codec
        self._skip_types = skip_types
        self._on_gap = on_gap
        self._metrics = metrics
        self._sleep = sleep
        self._feed: Feed | None = None
        self._arriving: AsyncIterator[BusMessage | TapeEvent | Gap] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._under_way: set[asyncio.Timeout] = set()
        """What `close` interrupts: opening the feed, or waiting to try again."""
        self._kinds: Counter[str] = Counter()

    async def ready(self) -> Self:
        """Returns when it is subscribed: what is published from now on will be yielded. Idempotent.

        Raises:
            BusError, LogError: it cannot be listened to now.
            ClosedError: the bus is closed.
        """
        if self.state is ListenerState.NEW:
            self.state = ListenerState.CONNECTING
        try:
            await self._open()
        except BaseException:
            if self.state is ListenerState.CONNECTING:
                self.state = ListenerState.NEW
            raise
        return self

    async def __anext__(self) -> M | CommunicationErrorEvent:
        if self._arriving is None:
            await self._open_at_last()
        while self._arriving is not None:
            try:
                arrived = await anext(self._arriving)
            except StopAsyncIteration:
                await self.close()
                break
            if isinstance(arrived, BusMessage):
                if arrived.gap:
                    self._gap(arrived.channel)
                    continue
                event = self._live(arrived)
            elif isinstance(arrived, Gap):
                self._gap(self._pattern)
                continue
            else:
                event = self._of_tape(arrived)
            if event is not None:
                return event
        raise StopAsyncIteration

    async def close(self) -> None:
        """End the iteration. Idempotent."""
        self.state = ListenerState.CLOSED
        while self._under_way:
            self._under_way.pop().reschedule(0)
        feed, self._feed, self._arriving = self._feed, None, None
        if feed is not None:
            await feed.close()

    async def __aenter__(self) -> Self:
        return await self.ready()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- as an asynchronous generator, which the seed's listeners are ------------------------------------------------

    async def asend(self, value: None) -> M | CommunicationErrorEvent:
        """`anext`."""
        return await anext(self)

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> M | CommunicationErrorEvent:
        """Close it and raise this."""
        await self.close()
        raise typ if isinstance(typ, BaseException) or not isinstance(val, BaseException) else val

    async def aclose(self) -> None:
        """`close`."""
        await self.close()

    def __del__(self) -> None:
        # Left in the middle of a loop, as is usual with generators: nobody will close it.
        feed, loop = self._feed, self._loop
        if feed is not None and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(_close_later, feed)

    # ---- opening ---------------------------------------------------------------------------------------------------

    def _is_closed(self) -> bool:
        return self.state is ListenerState.CLOSED

    async def _open(self) -> None:
        """Try once. Returns without a feed when it has been closed."""
        async with self._opening:
            if self._feed is not None or self._is_closed():
                return
            feed = await self._until_closed(self._open_feed())
            if feed is None:
                return
            if self._is_closed():  # closed while the feed opened, too late to interrupt it
                await feed.close()
                return
            self._feed, self._arriving = feed, aiter(feed)
            self._loop = asyncio.get_running_loop()
            self.state = ListenerState.LISTENING

    async def _open_at_last(self) -> None:
        """Try until it succeeds or is closed."""
        backoff = Backoff()
        while self.state not in (ListenerState.LISTENING, ListenerState.CLOSED):
            self.state = ListenerState.CONNECTING
            try:
                await self._open()
            except (BusError, LogError) as error:
                if not error.retryable:
                    self.state = ListenerState.NEW
                    raise
                wait_s = backoff.next()
                if backoff.tries == 1:
                    logger.warning(
                        "%s cannot be listened to yet, and is tried for ever: %s",
                        self._pattern,
                        error,
                        extra={"action": "listen_failed", "channel": self._pattern},
                    )
                await self._until_closed(self._sleep(wait_s))
        if backoff.tries and self.state is ListenerState.LISTENING:
            self._gap(self._pattern)  # what was published since the first try

    async def _until_closed(self, work: Awaitable[T]) -> T | None:
        """What this gives; None when the listener was closed first. In this task: nothing waits for a turn."""
        try:
            async with asyncio.timeout(None) as end:
                self._under_way.add(end)
                try:
                    return await work
                finally:
                    self._under_way.discard(end)
        except (TimeoutError, ClosedError):
            if self._is_closed():
                return None
            raise

    # ---- one message -----------------------------------------------------------------------------------------------

    def _live(self, message: BusMessage) -> M | CommunicationErrorEvent | None:
        channel, data, _ = message
        payload = live_payload(data) or plain_payload(data)
        self.position = None
        if payload is None:
            try:
                envelope = split(data)
            except CodecError as error:
                self._skip("envelope", channel, error)
                return None
            payload = envelope.payload
            if envelope.offset is not None and envelope.epoch is not None:
                self.position = Position(envelope.epoch, envelope.offset)
        self.channel = channel
        return self._decode(payload, channel, data)

    def _of_tape(self, event: TapeEvent) -> M | CommunicationErrorEvent | None:
        self.position = None
        if event.offset is not None and event.epoch is not None:
            self.position = Position(event.epoch, event.offset)
        return self._decode(event.payload, self._pattern, None)

    def _decode(self, payload: bytes, channel: str, message: bytes | None) -> M | CommunicationErrorEvent | None:
        if self._skip_types and event_type_of(payload) in self._skip_types:
            return None
        try:
            if payload.startswith(_TOO_LARGE):
                return CommunicationErrorEvent.received(payload, channel)
            return self._codec.decode(payload, channel)
        except DecryptionError:
            self._metrics.count("events_skipped_total", reason="decryption")
            raise
        except Exception as error:
            again = self._found_by_parser(payload, message)
            if again is not None:
                return self._decode(again, channel, None)
            self._skip(error.code if isinstance(error, CodecError) else type(error).__name__, channel, error)
            return None

    def _found_by_parser(self, payload: bytes, message: bytes | None) -> bytes | None:
        """Another payload than the one that was found by the look of the bytes."""
        if message is None:
            return None
        try:
            found = split(message, by_parser=True).payload
        except CodecError:
            return None
        return None if found == payload else found

    def _skip(self, kind: str, channel: str, error: Exception) -> None:
        self.skipped += 1
        self._metrics.count("events_skipped_total", reason=kind)
        self._kinds[kind] += 1
        if self._kinds[kind] == 1:
            logger.warning(
                "a message on %s was skipped: %s",
                channel,
                error,
                extra={"action": "event_skipped", "channel": channel, "reason": kind},
            )

    def _gap(self, channel: str) -> None:
        self.gaps += 1
        self._metrics.count("event_gaps_total")
        if self._on_gap is not None:
            try:
                self._on_gap(channel)
            except Exception:
                logger.exception("on_gap failed", extra={"action": "callback_failed"})


def _close_later(feed: Feed) -> None:
    task = asyncio.ensure_future(feed.close())
    task.add_done_callback(lambda done: done.cancelled() or done.exception())


class LiveFeed:
    """A subscription of the bus."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def __aiter__(self) -> AsyncIterator[BusMessage | TapeEvent | Gap]:
        return aiter(self._subscription)

    async def close(self) -> None:
        """Unsubscribe."""
        await self._subscription.close()


class TapeFeed(AsyncIterator[BusMessage | TapeEvent | Gap]):
    """A tape that is followed, by a task of its own: whoever waits for an event may give up and wait again."""

    def __init__(self, items: AsyncGenerator[TapeEvent | Gap, None], *, most_waiting: int = 256) -> None:
        self._items = items
        self._queue: asyncio.Queue[TapeEvent | Gap | BaseException] = asyncio.Queue(most_waiting)
        self._task = asyncio.create_task(self._pump())

    def __aiter__(self) -> AsyncIterator[BusMessage | TapeEvent | Gap]:
        return self

    async def __anext__(self) -> TapeEvent | Gap:
        item = await self._queue.get()
        if isinstance(item, BaseException):
            self._end(item)  # and so it stays
            raise item
        return item

    async def close(self) -> None:
        """Stop following."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._end(StopAsyncIteration())

    async def _pump(self) -> None:
        try:
            async for item in self._items:
                await self._queue.put(item)
        except Exception as error:
            await self._queue.put(error)
        else:
            await self._queue.put(StopAsyncIteration())
        finally:
            await self._items.aclose()

    def _end(self, how: BaseException) -> None:
        if not self._queue.full():  # else nobody waits for it
            self._queue.put_nowait(how)
