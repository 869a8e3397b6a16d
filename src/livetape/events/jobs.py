"""Jobs: any background task puts its progress on a tape, through one call."""

from __future__ import annotations

from typing import Any

from livetape.clock import Clock, SystemClock
from livetape.errors import NotFoundError
from livetape.events.bus import Bus
from livetape.events.channel import job_channel, job_tape
from livetape.events.event import JOB_FINAL_TYPES, JobEvent
from livetape.events.log import EventLog, Position
from livetape.events.publisher import Publisher


class Jobs:
    """Publishes the events of jobs.

    A job belongs to the user who published its first event; to everybody else it does not exist.
    """

    def __init__(self, log: EventLog, bus: Bus, *, clock: Clock | None = None) -> None:
        self._log = log
        self._publisher = Publisher(log, bus)
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

        `timestamp` is ISO 8601, by default now. `task_completed` and `task_failed` end the job's streams; later
        events are still taken.

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
        known = await self._log.create(tape, owner=user_id, channel=channel)
        if known.owner != user_id and not is_admin:
            raise NotFoundError(f"Job #{job_id} not found.")
        return await self._publisher.publish(
            tape, channel, event, event_type, final=event_type in JOB_FINAL_TYPES, idempotency_key=idempotency_key
        )
