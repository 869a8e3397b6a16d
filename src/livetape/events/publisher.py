"""The writer of events that are numbered by their tape: encoded once, durable first, then live."""

from __future__ import annotations

from livetape.events.codec import DEFAULT_MAX_MESSAGE_BYTES, JsonCodec
from livetape.events.event import Event
from livetape.events.log import NewEvent
from livetape.events.packing import Packer
from livetape.events.recorder import Recorded, Recorder


class Publisher:
    """Encodes events and has them recorded. Safe for concurrent use by tasks of one event loop.

    An event over the size limit is kept whole on the tape. On the bus the values of an execution event are shortened;
    where that is not enough, the seed's stand-in carries its number.
    """

    def __init__(self, recorder: Recorder, *, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self._recorder = recorder
        self._packer = Packer(JsonCodec(Event), max_message_bytes)

    async def publish(
        self,
        tape: str,
        channel: str,
        event: Event,
        event_type: str,
        *,
        final: bool = False,
        owner: str | None = None,
        any_owner: bool = False,
        idempotency_key: str | None = None,
    ) -> Recorded:
        """Returns once the event is durable and was handed to the bus.

        A repeated idempotency key writes and pushes nothing and returns the first position.

        Raises:
            CodecError: data that JSON cannot carry; nothing was written.
            NotFoundError: the tape belongs to somebody else than `owner`.
            LogUnavailableError: nothing is known; repeat it with an idempotency key.
        """
        packed = self._packer.pack(event, channel, recorded=True)
        return await self._recorder.record(
            tape,
            channel,
            NewEvent(event_type, packed.whole.payload, final=final),
            live=packed.live,
            owner=owner,
            any_owner=any_owner,
            idempotency_key=idempotency_key,
        )
