"""The ports of the event library with encryption in between: nothing above or below them changes.

`encrypted(backend, keyring)` wraps all ports of a backend at once. What is written through them is encrypted on the
wire and at rest; what is read through them is decrypted, byte for byte what was written. Whatever cannot be decrypted
raises `DecryptionError` (a sink cannot be told so and gets a gap marker); it is never left out without a word and never
handed on as it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final

from livetape.errors import CodecError, DecryptionError
from livetape.events.bus import Bus, BusMessage, Sink, Subscription
from livetape.events.codec import DEFAULT_MAX_MESSAGE_BYTES, Envelope, split, too_large_payload
from livetape.events.encryption import DEFAULT_MAX_BYTES, Sealer, place
from livetape.events.groups import ConsumerGroups, Delivered, Pending
from livetape.events.keyring import KeyRing
from livetape.events.log import MAX_READ, Entry, EventLog, NewEvent, Position, PutResult, Tape
from livetape.events.open import Backend
from livetape.events.recorder import AS_RECORDED, Live, Recorded, Recorder
from livetape.observability import get_logger

logger = get_logger(__name__)

BYTES: Final = "\0bytes"
"""The event type of a message that is no envelope; no event has it."""


def encrypted(
    backend: Backend,
    keyring: KeyRing,
    *,
    allow_plaintext: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
) -> Backend:
    """The backend with encryption in all its ports. Closing the result closes what was given.

    `allow_plaintext` lets through, when reading, what was written before encryption began; what is written is always
    encrypted. `max_bytes` bounds a payload, `max_message_bytes` what is pushed on the bus.
    """
    sealer = Sealer(keyring, allow_plaintext=allow_plaintext, max_bytes=max_bytes)
    return Backend(
        bus=EncryptedBus(backend.bus, sealer),
        log=None if backend.log is None else EncryptedLog(backend.log, sealer),
        recorder=None
        if backend.recorder is None
        else EncryptedRecorder(backend.recorder, sealer, max_message_bytes=max_message_bytes),
        groups=None if backend.groups is None else EncryptedGroups(backend.groups, sealer),
        on_close=[backend.close],
    )


class EncryptedLog(EventLog):
    """A log that encrypts what is appended and decrypts what is read.

    `read` raises `DecryptionError` when one of the entries cannot be decrypted; its context names `tape` and
    `offset`, so that what stands before and after it can be read in smaller pages.
    """

    def __init__(self, log: EventLog, keyring: KeyRing | Sealer, *, allow_plaintext: bool = False) -> None:
        self._log = log
        self._sealer = _sealer(keyring, allow_plaintext=allow_plaintext)

    async def create(
        self,
        tape: str,
        *,
        owner: str | None,
        channel: str,
        graph_id: str | None = None,
        epoch: str | None = None,
    ) -> Tape:
        return await self._log.create(tape, owner=owner, channel=channel, graph_id=graph_id, epoch=epoch)

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        return await self._log.append(tape, self._sealed(tape, event), idempotency_key=idempotency_key)

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        return await self._log.put(tape, position, self._sealed(tape, event))

    async def read(
        self, tape: str, after: int = 0, *, limit: int = MAX_READ, epoch: str | None = None
    ) -> Sequence[Entry]:
        entries = await self._log.read(tape, after, limit=limit, epoch=epoch)
        return [_opened(self._sealer, tape, entry) for entry in entries]

    async def describe(self, tape: str) -> Tape | None:
        return await self._log.describe(tape)

    def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        return self._log.tapes(prefix)

    async def offset_at(self, tape: str, time: datetime) -> int:
        return await self._log.offset_at(tape, time)

    async def trim(self, tape: str, *, keep_after: int) -> int:
        return await self._log.trim(tape, keep_after=keep_after)

    async def close(self) -> None:
        await self._log.close()

    def _sealed(self, tape: str, event: NewEvent) -> NewEvent:
        return replace(event, payload=self._sealer.seal(event.payload, event.event_type, tape))


class EncryptedRecorder(Recorder):
    """A recorder that encrypts, over one that does not: the entry for its tape, the message for its channel.

    A message over `max_message_bytes` when encrypted is replaced on the bus by its stand-in, encrypted too.
    """

    def __init__(
        self,
        recorder: Recorder,
        keyring: KeyRing | Sealer,
        *,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        self._recorder = recorder
        self._sealer = _sealer(keyring)
        self._limit = max_message_bytes

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
        entry = replace(event, payload=self._sealer.seal(event.payload, event.event_type, tape))
        pushed = entry.payload
        if live.payload is not None or live.event_type is not None or place(tape) != place(channel):
            payload = event.payload if live.payload is None else live.payload
            pushed = self._sealer.seal(payload, live.event_type or event.event_type, channel)
        if len(pushed) > self._limit:
            stand_in = too_large_payload(len(pushed), self._limit)
            live = live._replace(event_type="error_comms_update")
            pushed = self._sealer.seal(stand_in, "error_comms_update", channel)
        return await self._recorder.record(
            tape,
            channel,
            entry,
            live=live if pushed is entry.payload else live._replace(payload=pushed),
            owner=owner,
            any_owner=any_owner,
            idempotency_key=idempotency_key,
        )

    async def close(self) -> None:
        await self._recorder.close()


class EncryptedBus(Bus):
    """A bus that encrypts the payload of every message; the position beside it stays readable.

    A subscription raises `DecryptionError` from its iteration at a message that cannot be decrypted, and goes on with
    the next one when it is iterated again. A sink gets a gap marker in its place, and that is logged.
    """

    def __init__(self, bus: Bus, keyring: KeyRing | Sealer, *, allow_plaintext: bool = False) -> None:
        self._bus = bus
        self._sealer = _sealer(keyring, allow_plaintext=allow_plaintext)

    async def publish(self, channel: str, data: bytes) -> int:
        """As `Bus.publish`. What is no envelope is encrypted as a whole."""
        try:
            envelope = split(data)
        except CodecError:
            envelope = Envelope(data, BYTES)
        sealed = self._sealer.seal(envelope.payload, envelope.event_type, channel)
        return await self._bus.publish(channel, envelope._replace(payload=sealed).encode())

    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        if sink is not None:
            return await self._bus.subscribe(*patterns, sink=partial(self._hand_on, sink))
        return _EncryptedSubscription(await self._bus.subscribe(*patterns), self._sealer)

    def _hand_on(self, sink: Sink, messages: Sequence[BusMessage]) -> None:
        opened = []
        for message in messages:
            try:
                opened.append(message if message.gap else _opened_message(self._sealer, message))
            except DecryptionError as error:
                logger.warning("a message is lost: %s", error, extra={"action": "not_decrypted"})
                opened.append(BusMessage(message.channel, b"", gap=True))
        sink(opened)

    async def close(self) -> None:
        await self._bus.close()


class _EncryptedSubscription(Subscription, AsyncIterator[BusMessage]):
    def __init__(self, subscription: Subscription, sealer: Sealer) -> None:
        self._subscription = subscription
        self._messages: AsyncIterator[BusMessage] | None = None
        self._sealer = sealer

    async def add(self, *patterns: str) -> None:
        await self._subscription.add(*patterns)

    async def remove(self, *patterns: str) -> None:
        await self._subscription.remove(*patterns)

    def __aiter__(self) -> AsyncIterator[BusMessage]:
        return self

    async def __anext__(self) -> BusMessage:
        if self._messages is None:
            self._messages = aiter(self._subscription)
        message = await anext(self._messages)
        return message if message.gap else _opened_message(self._sealer, message)

    async def close(self) -> None:
        await self._subscription.close()


class EncryptedGroups(ConsumerGroups):
    """Consumer groups whose entries are decrypted.

    `take` and `claim` raise `DecryptionError` when an entry cannot be decrypted. All entries of that call stay
    pending, and are handed over again by `claim`.
    """

    def __init__(self, groups: ConsumerGroups, keyring: KeyRing | Sealer, *, allow_plaintext: bool = False) -> None:
        self._groups = groups
        self._sealer = _sealer(keyring, allow_plaintext=allow_plaintext)

    async def create(self, tape: str, group: str, *, after: int = 0) -> bool:
        return await self._groups.create(tape, group, after=after)

    async def take(
        self, tape: str, group: str, consumer: str, *, limit: int = 100, wait_s: float = 0
    ) -> Sequence[Delivered]:
        return self._opened(tape, await self._groups.take(tape, group, consumer, limit=limit, wait_s=wait_s))

    async def ack(self, tape: str, group: str, *offsets: int) -> int:
        return await self._groups.ack(tape, group, *offsets)

    async def claim(
        self, tape: str, group: str, consumer: str, *, idle_s: float, limit: int = 100
    ) -> Sequence[Delivered]:
        return self._opened(tape, await self._groups.claim(tape, group, consumer, idle_s=idle_s, limit=limit))

    async def pending(self, tape: str, group: str, *, limit: int = MAX_READ) -> Sequence[Pending]:
        return await self._groups.pending(tape, group, limit=limit)

    async def drop(self, tape: str, group: str) -> bool:
        return await self._groups.drop(tape, group)

    def _opened(self, tape: str, delivered: Sequence[Delivered]) -> Sequence[Delivered]:
        return [item._replace(entry=_opened(self._sealer, tape, item.entry)) for item in delivered]


def _sealer(keyring: KeyRing | Sealer, *, allow_plaintext: bool = False) -> Sealer:
    return keyring if isinstance(keyring, Sealer) else Sealer(keyring, allow_plaintext=allow_plaintext)


def _opened(sealer: Sealer, tape: str, entry: Entry) -> Entry:
    try:
        payload = sealer.unseal(entry.payload, tape, event_type=entry.event_type)
    except DecryptionError as error:
        error.context.update(tape=tape, offset=entry.offset)
        raise
    return entry._replace(payload=payload)


def _opened_message(sealer: Sealer, message: BusMessage) -> BusMessage:
    try:
        envelope = split(message.data)
    except CodecError:
        if sealer.allow_plaintext:
            return message
        raise DecryptionError("a message that is not an envelope", channel=message.channel) from None
    try:
        payload = sealer.unseal(envelope.payload, message.channel)
    except DecryptionError as error:
        error.context.setdefault("channel", message.channel)
        raise
    if payload is envelope.payload:
        return message
    if envelope.event_type == BYTES:
        return BusMessage(message.channel, payload)
    return BusMessage(message.channel, envelope._replace(payload=payload).encode())
