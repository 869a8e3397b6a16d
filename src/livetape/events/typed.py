"""The typed event bus: events of one model in, events of that model out."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, Unpack, overload
from weakref import WeakSet

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

from livetape.clock import Clock, IdPool
from livetape.errors import BusError, BusUnavailableError, ClosedError, ConfigError, LivetapeError
from livetape.events.batching import Batch
from livetape.events.bus import Bus
from livetape.events.channel import bus_tape, check_bus_name, is_pattern, key_channel, key_pattern
from livetape.events.codec import DEFAULT_MAX_MESSAGE_BYTES, Codec, JsonCodec, live_message
from livetape.events.delivery import CircuitState, Delivery, DeliveryPolicy, OnDrop, Outgoing, Record, Sleep
from livetape.events.event import CommunicationErrorEvent
from livetape.events.event_listener import EventListener, Feed, LiveFeed, TapeFeed
from livetape.events.follow import follow
from livetape.events.log import NewEvent, Position
from livetape.events.open import Backend
from livetape.events.options import Key, OnError, Options, Start, Stats
from livetape.events.packing import Packer
from livetape.events.patience import Patience
from livetape.events.ports import Ports, Source
from livetape.events.recovery import Gap
from livetape.events.result import Published, delivered
from livetape.events.tape_event import TapeEvent
from livetape.observability import Metrics, NoMetrics, current_traceparent, get_logger

logger = get_logger(__name__)

M = TypeVar("M")
_NO_BUFFER: Final = DeliveryPolicy(buffer_events=0)
_FIRST_LOGGED: Final = frozenset(10**power for power in range(10))


async def _not_open(channel: str, data: bytes) -> int:
    raise ClosedError("the bus is not open")


class EventBus(Generic[M]):
    """Publishes and delivers events of one model on the channels `{name}/{key}`.

    `model` is a Pydantic class, dataclass, typed dictionary, union or `TypeAdapter`; a `codec` replaces its JSON. The
    adapter is one of `url` (opened and closed here), `client` (of redis-py; never closed), `backend` or `bus` (never
    closed). Nothing is connected before the first use.

    `on_error="count"`: `publish` never raises, its result tells the truth. `"raise"`: what was neither delivered nor
    taken into the local buffer raises; there is no local buffer unless the `policy` gives one.

    `durable=True`: an event is first written to the tape of its channel and then pushed, and listeners of a channel
    without `*` miss nothing while the bus or the log is away.

    For the tasks of one event loop. When that loop has ended, the next use opens the adapter again in the present one.

    Raises:
        ConfigError: none or several adapters, an unusable URL, or `durable` with a bus alone. An adapter that keeps
            nothing for a durable bus is found with the first use.
        ChannelError: a name that cannot begin a channel.
    """

    @overload
    def __init__(
        self,
        model: type[M] | TypeAdapter[M],
        *,
        name: str,
        codec: Codec[M] | None = None,
        **options: Unpack[Options],
    ) -> None: ...
    @overload
    def __init__(
        self: EventBus[Any], model: object, *, name: str, codec: Codec[Any] | None = None, **options: Unpack[Options]
    ) -> None: ...
    def __init__(
        self,
        model: Any,
        *,
        name: str,
        codec: Codec[M] | None = None,
        url: str | None = None,
        bus: Bus | None = None,
        backend: Backend | None = None,
        client: object | None = None,
        on_error: OnError = "count",
        durable: bool = False,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        policy: DeliveryPolicy | None = None,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        on_drop: OnDrop | None = None,
        on_gap: Callable[[str], None] | None = None,
    ) -> None:
        self.name = check_bus_name(name)
        self._metrics = metrics or NoMetrics()
        self._source = Source(url=url, bus=bus, backend=backend, client=client, durable=durable, metrics=self._metrics)
        self._codec: Codec[M] = codec if codec is not None else JsonCodec(model)
        self._packer = Packer(self._codec, max_message_bytes)
        self._raises = on_error == "raise"
        self._durable = durable
        self._policy = policy or (_NO_BUFFER if self._raises else DeliveryPolicy())
        self._patience = Patience(self._policy.wait_s)
        self._sleep = sleep
        self._on_gap = on_gap
        self._ids = IdPool()
        self._numbers = itertools.count()
        self._delivery = Delivery(
            self._carry,
            self._policy,
            name=self.name,
            clock=clock,
            sleep=sleep,
            jitter=jitter,
            metrics=self._metrics,
            on_drop=on_drop,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._push: Callable[[str, bytes], Awaitable[int]] = _not_open
        self._max_message_bytes = max_message_bytes
        self._writers: dict[type, Callable[[Any], bytes]] = {}
        if isinstance(self._codec, JsonCodec) and not durable:
            self._writers = self._codec.writers
        self._soon: Batch[M] | None = None
        self._listeners: WeakSet[EventListener[M]] = WeakSet()
        self._failures: Counter[str] = Counter()
        self._closed = False

    # ---- state -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> CircuitState:
        """Of the circuit breaker. `open`: the bus is away, events wait in the local buffer or are refused."""
        return self._delivery.state

    @property
    def stats(self) -> Stats:
        """What went wrong so far, and what waits."""
        return Stats(self._failures.total(), self._delivery.dropped, self._delivery.buffered)

    async def __aenter__(self) -> Self:
        self._attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def flush(self, timeout: float | None = None) -> int:
        """Send what waits, for at most `timeout` seconds; returns how many events still wait."""
        if self._soon is not None:
            await self._soon.flush()
        return await self._delivery.flush(timeout)

    async def close(self) -> None:
        """End the listeners, flush within the policy's bound, and close what was opened here. Idempotent.

        What could not be sent is logged, counted and given to `on_drop`.
        """
        if self._closed:
            return
        for listener in tuple(self._listeners):
            await listener.close()
        if self._loop is asyncio.get_running_loop():
            if self._soon is not None:
                await self._soon.close()
            await self._delivery.close()
        self._closed = True
        self._loop, self._push = None, _not_open
        await self._source.close()

    # ---- publishing ------------------------------------------------------------------------------------------------

    async def publish(self, event: M, key: Key, *, idempotency_key: str | None = None) -> Published:
        """Publish one event. While the bus is away, see `DeliveryPolicy`.

        `idempotency_key`, on a durable bus alone: a repetition writes nothing and returns the first position.

        Raises:
            LivetapeError: only with `on_error="raise"`: what would stand in the result's `error`.
        """
        # The way of nearly all events: nothing waits, nothing has to be cut. Everything else goes the other way.
        number = next(self._numbers)
        write = self._writers.get(type(event))
        if (
            write is None
            or idempotency_key is not None
            or not self._delivery.clear
            or self._loop is not asyncio.get_running_loop()
        ):
            return await self._publish(event, key, number, idempotency_key)
        try:
            channel = key_channel(self.name, key)
            data = live_message(write(event), current_traceparent())
        except Exception:
            return await self._publish(event, key, number, idempotency_key)
        if len(data) > self._max_message_bytes:
            return await self._publish(event, key, number, idempotency_key)
        self._patience.begin(number)
        try:
            return delivered(await self._push(channel, data))
        except asyncio.CancelledError:
            if not self._patience.is_over(number):
                raise
            silent = BusUnavailableError(f"the bus did not answer in {self._policy.wait_s:g} s")
            return self._told(self._delivery.give_up(Outgoing(number, channel, "", len(data), data), silent))
        except LivetapeError as error:
            if not error.retryable:
                return self.failed(error)
            self._patience.end(number)  # `rescue` has a bound of its own
            item = Outgoing(number, channel, "", len(data), data)
            return self._told(await self._delivery.rescue(item, error))
        except Exception as error:
            return self.failed(error)
        finally:
            self._patience.end(number)

    def publish_soon(self, event: M, key: Key) -> bool:
        """Publish without waiting: events gather for some milliseconds and leave together, in order.

        False when the event cannot be sent or too many wait; with `on_error="raise"` an event that cannot be sent
        raises. What becomes of the others is seen in `stats` and `on_drop`.
        """
        if self._soon is None:
            self._soon = self.batch()
        try:
            return self._soon.publish(event, key)
        except ClosedError as error:
            self.failed(error)
            return False

    def batch(self, *, max_events: int = 256, max_bytes: int = 256 * 1024, max_delay_s: float = 0.005) -> Batch[M]:
        """A publisher that sends when so many events or bytes wait, or the first of them has waited so long.

        It refuses by False what it cannot take; with `on_error="raise"` an event that cannot be sent raises.
        """
        return Batch(
            self._for_batch,
            self._send_many,
            self._refuse,
            max_events=max_events,
            max_bytes=max_bytes,
            max_delay_s=max_delay_s,
        )

    def failed(self, error: Exception) -> Published:
        """The outcome of an event that could not be published, or not even made: counted and logged.

        Raises:
            LivetapeError: it, with `on_error="raise"`.
        """
        result = self._count(error)
        if self._raises and result.error is not None:
            raise result.error
        return result

    # ---- listening -------------------------------------------------------------------------------------------------

    def listen(
        self,
        key: Key = "*",
        *,
        after: Start = None,
        skip_types: Collection[str] = (),
        on_gap: Callable[[str], None] | None = None,
    ) -> EventListener[M]:
        """A new listener, independent of all others; `*` in the key is a wildcard.

        `after`, on a durable bus and without a wildcard: a position or "earliest"; None: from now on. Events of
        `skip_types` are left out.

        Raises:
            ChannelError: an unusable key.
            ConfigError: `after` where there is nothing to read.
        """
        channel = key_pattern(self.name, key)
        followed = self._durable and not is_pattern(channel)
        if after is not None and not followed:
            raise ConfigError(
                "only a durable bus can be listened to from a position, and only one channel of it",
                fix="durable=True and a key without *",
            )
        listener = EventListener(
            partial(self._follow, channel, after) if followed else partial(self._subscribe, channel),
            self._codec,
            channel,
            skip_types=frozenset(skip_types),
            on_gap=on_gap or self._on_gap,
            metrics=self._metrics,
            sleep=self._sleep,
        )
        self._listeners.add(listener)
        return listener

    async def wait_for(self, key: Key, timeout: float | None = None) -> M | CommunicationErrorEvent | None:
        """The next event of this key, None after `timeout` seconds without one, also when the server is away so long.

        What is published once it is subscribed is not missed. To act only after that, use `listen`.

        Raises:
            ChannelError: an unusable key.
            BusError, LogError: it cannot be listened to; without a `timeout`: it cannot be listened to now.
            ClosedError: the bus is closed, or was meanwhile.
            DecryptionError: the event needs a key that is not here.
        """
        listener = self.listen(key)
        try:
            async with asyncio.timeout(timeout) as limit:
                if timeout is None:
                    await listener.ready()
                return await anext(listener)
        except StopAsyncIteration:
            raise ClosedError("the bus was closed") from None
        except TimeoutError:
            if not limit.expired():
                raise
            return None
        finally:
            await listener.close()

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _attach(self) -> Ports:
        """The ports, opened in the running loop."""
        if self._closed:
            raise ClosedError("the event bus is closed")
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return self._source.ports
        if self._loop is not None and self._loop.is_running():
            raise ConfigError("this event bus is in use by another event loop", fix="give each loop one of its own")
        ports = self._source.open()
        self._push = ports.bus.publish
        if self._loop is not None:
            self._soon = None
            self._delivery.rebind()
            self._patience.rebind()
        self._loop = loop
        return ports

    async def _subscribe(self, channel: str) -> Feed:
        return LiveFeed(await self._attach().bus.subscribe(channel))

    async def _follow(self, channel: str, after: Start) -> Feed:
        ports = self._attach()
        tape = bus_tape(channel)
        assert ports.log is not None  # it is durable
        if after is None:
            known = await ports.log.describe(tape)
            after = Position("", 0) if known is None else known.position
        items: AsyncGenerator[TapeEvent | Gap, None] = follow(
            ports.log, ports.bus, tape, channel, after=after, sleep=self._sleep, metrics=self._metrics
        )
        return TapeFeed(items)

    async def _publish(self, event: M, key: Key, number: int, idempotency_key: str | None) -> Published:
        try:
            channel = key_channel(self.name, key)
            self._attach()
            outcome = await self._send(self._packed(event, channel, number, idempotency_key))
        except Exception as error:
            return self.failed(error)
        return self._told(outcome)

    def _packed(self, event: M, channel: str, number: int, idempotency_key: str | None) -> Outgoing:
        packed = self._packer.pack(event, channel, recorded=self._durable)
        whole = packed.whole
        if not self._durable:
            if idempotency_key is not None:
                raise ConfigError("only a durable bus knows repetitions", fix="durable=True, or no idempotency_key")
            data = self._packer.message(packed)
            return Outgoing(number, channel, whole.event_type, len(data), data, replaced=packed.replaced)
        record = Record(
            bus_tape(channel),
            NewEvent(whole.event_type, whole.payload),
            packed.live,
            idempotency_key or self._ids(),
        )
        return Outgoing(number, channel, whole.event_type, len(whole.payload), record=record, replaced=packed.replaced)

    async def _send(self, item: Outgoing) -> Published:
        if not self._delivery.clear:
            return await self._delivery.rescue(item, None)
        begun = asyncio.get_running_loop().time()
        try:  # the recorder has a bound of its own
            async with asyncio.timeout(None if self._durable else self._policy.wait_s) as limit:
                (outcome,) = await self._carry((item,))
        except TimeoutError:
            if not limit.expired():
                raise
            outcome = BusUnavailableError(f"the bus did not answer in {self._policy.wait_s:g} s")
        if isinstance(outcome, Published):
            return outcome
        if isinstance(outcome, LivetapeError) and outcome.retryable:
            if asyncio.get_running_loop().time() - begun >= self._policy.wait_s:
                return self._delivery.give_up(item, outcome)
            return await self._delivery.rescue(item, outcome)
        raise outcome

    async def _send_many(self, items: Sequence[Outgoing]) -> Sequence[Published]:
        outcomes: Sequence[Published | BaseException | None] = [None] * len(items)
        if self._delivery.clear:
            outcomes = await self._carry(items)
        results: list[Published] = []
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, Published):
                results.append(outcome)
            elif outcome is None or (isinstance(outcome, LivetapeError) and outcome.retryable):
                results.append(self._delivery.store(item, outcome))
            else:
                results.append(self._count(outcome))
                self._refuse(item, results[-1].error)
        return results

    async def _carry(self, items: Sequence[Outgoing]) -> Sequence[Published | BaseException]:
        """Hand these over, in order; what became of each."""
        try:
            ports = self._attach()
            if self._durable:
                return await asyncio.gather(*(self._record(ports, item) for item in items), return_exceptions=True)
            if len(items) == 1:
                outcomes: Sequence[int | BaseException] = [await ports.bus.publish(items[0].channel, items[0].data)]
            else:
                outcomes = await ports.bus.publish_many([(item.channel, item.data) for item in items])
        except Exception as error:
            return [error] * len(items)
        return [
            outcome if isinstance(outcome, BaseException) else _published(outcome, item)
            for item, outcome in zip(items, outcomes, strict=True)
        ]

    async def _record(self, ports: Ports, item: Outgoing) -> Published:
        assert ports.recorder is not None
        assert item.record is not None
        recorded = await ports.recorder.record(
            item.record.tape,
            item.channel,
            item.record.event,
            live=item.record.live,
            idempotency_key=item.record.idempotency_key,
        )
        return Published(recorded.position, recorded.receivers, entry_id=recorded.entry_id, replaced=item.replaced)

    def _for_batch(self, event: M, key: Key) -> Outgoing | Published:
        try:
            channel = key_channel(self.name, key)
            write = self._writers.get(type(event))
            if write is not None and self._loop is asyncio.get_running_loop():
                with suppress(PydanticSerializationError, UnicodeError, ValueError):
                    data = live_message(write(event), current_traceparent())
                    if len(data) <= self._max_message_bytes:
                        return Outgoing(next(self._numbers), channel, "", len(data), data)
            self._attach()
            return self._packed(event, channel, next(self._numbers), None)
        except Exception as error:
            return self.failed(error)

    def _refuse(self, item: Outgoing, error: LivetapeError | None = None) -> None:
        self._delivery.drop(item, "overflow" if error is None else error.code, error or BusError("too many wait"))

    def _told(self, outcome: Published) -> Published:
        """An outcome on its way to the caller."""
        if outcome.error is None or outcome.buffered:
            return outcome
        return self.failed(outcome.error)

    def _count(self, error: BaseException) -> Published:
        known = error if isinstance(error, LivetapeError) else BusError(f"{type(error).__name__}: {error}")
        if known is not error:
            known.__cause__ = error
        self._failures[known.code] += 1
        self._metrics.count("events_failed_total", reason=known.code)
        if self._failures[known.code] in _FIRST_LOGGED:  # the first, the tenth, the hundredth …
            logger.warning(
                "%s: an event was not published: %s (%d so far)",
                self.name,
                known.message,
                self._failures[known.code],
                extra={"action": "publish_failed", "bus": self.name, "code": known.code},
                exc_info=known if known is not error else None,
            )
        return Published(error=known)


def _published(receivers: int, item: Outgoing) -> Published:
    return Published(receivers=receivers, replaced=True) if item.replaced else delivered(receivers)
