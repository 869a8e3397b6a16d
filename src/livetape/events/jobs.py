"""Jobs: any background task puts its progress on a tape, through one call."""

from __future__ import annotations

from typing import Any

from livetape.clock import Clock, SystemClock
from livetape.errors import NotFoundError
from livetape.events.channel import job_channel, job_tape
from livetape.events.event import JOB_FINAL_TYPES, JobEvent
from livetape.events.log import Position
from livetape.events.publisher import Publisher
from livetape.events.recorder import Recorder


class Jobs:
    """Publishes the events of jobs.

    A job belongs to the user who published its first event; to everybody else it does not exist.
    """

    def __init__(self, recorder: Recorder, *, clock: Clock | None = None) -> None:
        self._publisher = Publisher(recorder)
        self._clock = clock or SystemClock()

    async def publish(
        self,
        user_id: str,
        job_id: str,
        event_type: str,
        data: Any,
        *,
        timestamp: str | None = None,
        idempotency_key: str | None = None,
        is_admin: bool = False,
    ) -> Position:
        """Append one event and push it to whoever watches; returns its position once it is durable.

        `timestamp` is ISO 8601, by default now. `task_completed`, `task_failed` and `task_revoked` end the job's
        streams; later events are still taken.

        Raises:
            NotFoundError: the job belongs to another user.
            ChannelError: an id that cannot stand in a channel.
            CodecError: data that JSON cannot carry.
        """
        tape, channel = job_tape(job_id), job_channel(job_id)
        event = JobEvent(
            event_type=event_type,
            job_id=job_id,
            timestamp=self._clock.now().isoformat() if timestamp is None else timestamp,
            data=data,
        )
        try:
            recorded = await self._publisher.publish(
                tape,
                channel,
                event,
                event_type,
                final=event_type in JOB_FINAL_TYPES,
                owner=user_id,
                any_owner=is_admin,
                idempotency_key=idempotency_key,
            )
        except NotFoundError:
            raise NotFoundError(f"Job #{job_id} not found.") from None
        return recorded.position
