"""The one writer of job events: from type, timestamp and data to the job's tape and channel."""

from __future__ import annotations

from typing import Any

from livetape.errors import NotFoundError
from livetape.events.channel import check_owner, job_channel, job_tape
from livetape.events.codec import DEFAULT_MAX_MESSAGE_BYTES, Encoded
from livetape.events.event import JOB_FINAL_TYPES
from livetape.events.job_payload import job_payload
from livetape.events.log import NewEvent
from livetape.events.packing import uncut_live
from livetape.events.recorder import Recorded, Recorder


class JobRecorder:
    """Puts events of jobs on their tapes and pushes them; `task_completed` and its like are the last ones.

    An event over the size limit is whole on the tape, and replaced by the notice on the bus.
    """

    def __init__(self, recorder: Recorder, *, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self._recorder = recorder
        self._limit = max_message_bytes

    async def record(
        self,
        job_id: str,
        event_type: str,
        timestamp: str,
        data: Any,
        *,
        owner: str | None,
        any_owner: bool = False,
        idempotency_key: str | None = None,
    ) -> Recorded:
        """`owner` becomes the owner of a job that has none; None claims nothing and is refused nothing.

        Raises:
            NotFoundError: the job belongs to somebody else (`any_owner` writes there all the same).
            ChannelError: an id that cannot stand in a channel, or own anything.
            CodecError: data that JSON cannot carry; nothing was written.
            LogUnavailableError: it is not known to be written; `context["refused"]` if it certainly was not.
        """
        payload, lossy = job_payload(job_id, event_type, timestamp, data)
        try:
            return await self._recorder.record(
                job_tape(job_id),
                job_channel(job_id),
                NewEvent(event_type, payload, final=event_type in JOB_FINAL_TYPES),
                live=uncut_live(Encoded(payload, event_type, lossy), self._limit),
                owner=check_owner(owner),
                any_owner=any_owner,
                idempotency_key=idempotency_key,
            )
        except NotFoundError:
            raise NotFoundError(f"Job #{job_id} not found.") from None
