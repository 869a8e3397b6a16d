"""Jobs: any background task puts its progress on a tape, through one call."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, Final

from livetape.clock import Clock, SystemClock
from livetape.errors import NotFoundError
from livetape.events.bus import Bus
from livetape.events.channel import job_channel, job_tape
from livetape.events.codec import Envelope, encode_payload
from livetape.events.event import JOB_FINAL_TYPES, JobEvent
from livetape.events.log import EventLog, NewEvent, Position

KEPT_LOCKS: Final = 4096


class Jobs:
    """Publishes the events of jobs: durable first, then live, in one order for both.

    A job belongs to the user who published its first event; to everybody else it does not exist.
    """

    def __init__(self, log: EventLog, bus: Bus, *, clock: Clock | None = None) -> None:
        self._log = log
        self._bus = bus
        self._clock = clock or SystemClock()
        self._locks: OrderedDict[str, asyncio.Lock] = OrderedDict()

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
        payload, lossy = encode_payload(event)
        new = NewEvent(event_type, payload, final=event_type in JOB_FINAL_TYPES)
        # One at a time per job: an append and its publish are one step, so that nobody sees number 6 before 5.
        async with self._lock(job_id):
            known = await self._log.create(tape, owner=user_id, channel=channel)
            if known.owner != user_id and not is_admin:
                raise NotFoundError(f"Job #{job_id} not found.")
            position = await self._log.append(tape, new, idempotency_key=idempotency_key)
            if position.offset > known.offset:
                envelope = Envelope(payload, event_type, position.offset, position.epoch, final=new.final, lossy=lossy)
                await self._bus.publish(channel, envelope.encode())
        return position

    def _lock(self, job_id: str) -> asyncio.Lock:
        lock = self._locks.get(job_id)
        if lock is None:
            lock = self._locks[job_id] = asyncio.Lock()
            while len(self._locks) > KEPT_LOCKS:
                oldest, held = next(iter(self._locks.items()))
                if held.locked():
                    break
                del self._locks[oldest]
        else:
            self._locks.move_to_end(job_id)
        return lock
