"""Jobs: any background task puts its progress on a tape, through one call."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from livetape.clock import Clock, SystemClock
from livetape.errors import NotFoundError
from livetape.events.job_recorder import JobRecorder
from livetape.events.log import Tape
from livetape.events.recorder import Recorded, Recorder

UnownedJobs: TypeAlias = Literal["admin", "any_user"]
"""To whom jobs are open whose tape has no owner."""


def writer_of(tape: Tape | None, user_id: str, *, is_admin: bool, jobs_unowned: UnownedJobs) -> str | None:
    """Under whose name a signed-in user publishes to the job with this tape, for `Jobs.publish`.

    Its own for a job that has an owner, and for one where nothing was published yet, which becomes its own. Nobody's
    (None) for a job without owner that is open to it: writing there claims nothing. To own such a job would be to read
    all that others, who named no owner, put on its tape.

    Raises:
        NotFoundError: a job without owner that is not open to this user.
    """
    if tape is None or tape.owner is not None or tape.offset == 0:
        return user_id
    if is_admin or jobs_unowned == "any_user":
        return None
    raise NotFoundError("Job not found.")


class Jobs:
    """Publishes the events of jobs.

    A job belongs to the user who published its first event; to everybody else it does not exist. Who publishes for
    callers of its own asks `writer_of` first.
    """

    def __init__(self, recorder: Recorder, *, clock: Clock | None = None) -> None:
        self._jobs = JobRecorder(recorder)
        self._clock = clock or SystemClock()

    async def publish(
        self,
        user_id: str | None,
        job_id: str,
        event_type: str,
        data: Any,
        *,
        timestamp: str | None = None,
        idempotency_key: str | None = None,
        is_admin: bool = False,
    ) -> Recorded:
        """Append one event and push it to whoever watches; returns where it stands once it is durable.

        `user_id` becomes the owner of a job that has none; None claims nothing and is refused nothing.
        `timestamp` is ISO 8601, by default now. `task_completed`, `task_failed` and `task_revoked` end the job's
        streams; later events are still taken.

        Raises:
            NotFoundError: the job belongs to another user.
            ChannelError: an id that cannot stand in a channel, or own anything.
            CodecError: data that JSON cannot carry.
        """
        return await self._jobs.record(
            job_id,
            event_type,
            self._clock.now().isoformat() if timestamp is None else timestamp,
            data,
            owner=user_id,
            any_owner=is_admin,
            idempotency_key=idempotency_key,
        )
