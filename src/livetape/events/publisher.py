"""The writer of events that are numbered by their tape: encoded once, durable first, then live."""

from __future__ import annotations

from livetape.events.codec import DEFAULT_MAX_MESSAGE_BYTES, encode_payload, too_large_payload
from livetape.events.event import Event
from livetape.events.log import NewEvent
from livetape.events.recorder import Live, Recorded, Recorder


class Publisher:
    """Encodes events and has them recorded. Safe for concurrent use by tasks of one event loop.

    An event over the size limit is kept whole on the tape; on the bus the seed's stand-in carries its number.
    """

    def __init__(self, recorder: Recorder, *, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self._recorder = recorder
        self._limit = max_message_bytes

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
        payload, lossy = encode_payload(event)
        live = Live(lossy=lossy)
        if len(payload) > self._limit:
            live = Live(too_large_payload(len(payload), self._limit), "error_comms_update")
        return await self._recorder.record(
            tape,
            channel,
            NewEvent(event_type, payload, final=final),
            live=live,
            owner=owner,
            any_owner=any_owner,
            idempotency_key=idempotency_key,
        )
