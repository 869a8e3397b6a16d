"""Several workers share the events of a job."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from livetape.events.channel import job_tape
from livetape.events.groups import ConsumerGroups, Delivered, Pending
from livetape.events.job_record import JobRecord, decode
from livetape.events.log import MAX_READ, EventLog


class Taken(NamedTuple):
    """An event that was handed to a consumer. `deliveries` counts how often it was, this time included."""

    record: JobRecord
    deliveries: int


class JobGroup:
    """A consumer group on the events of one job (see `livetape.events.groups`), decoded.

    Each event goes to one consumer and is pending until it acknowledges it: at least once.

    Every method raises ChannelError for a name of a group or consumer that cannot be used, and LogUnavailableError when
    the log cannot be reached; `take`, `claim` and `consume` raise NotFoundError when there is no such group.
    """

    def __init__(self, groups: ConsumerGroups, log: EventLog, job_id: str, name: str) -> None:
        self._groups = groups
        self._log = log
        self._tape = job_tape(job_id)
        self.name = name

    async def create(self, *, after: int = 0) -> bool:
        """Make the group; it begins after this offset. False when it is there already."""
        return await self._groups.create(self._tape, self.name, after=after)

    async def take(self, consumer: str, *, limit: int = 100, wait_s: float = 0) -> list[Taken]:
        """The next events that nobody of the group was given. Waits up to `wait_s` seconds for the first.

        Raises:
            NotFoundError: there is no such group.
        """
        return await self._decoded(await self._groups.take(self._tape, self.name, consumer, limit=limit, wait_s=wait_s))

    async def claim(self, consumer: str, *, idle_s: float, limit: int = 100) -> list[Taken]:
        """Take over what others took at least `idle_s` seconds ago and never acknowledged."""
        return await self._decoded(
            await self._groups.claim(self._tape, self.name, consumer, idle_s=idle_s, limit=limit)
        )

    async def ack(self, *done: Taken | JobRecord | int) -> int:
        """These are done; returns how many were pending."""
        offsets = [item.record if isinstance(item, Taken) else item for item in done]
        return await self._groups.ack(
            self._tape, self.name, *(item if isinstance(item, int) else item.offset for item in offsets)
        )

    async def pending(self, *, limit: int = MAX_READ) -> Sequence[Pending]:
        """What was taken and not acknowledged."""
        return await self._groups.pending(self._tape, self.name, limit=limit)

    async def drop(self) -> bool:
        """Forget the group; False when there was none."""
        return await self._groups.drop(self._tape, self.name)

    async def consume(
        self, consumer: str, *, idle_s: float = 60.0, limit: int = 100, wait_s: float = 5.0
    ) -> AsyncGenerator[Taken, None]:
        """Events for this consumer, for ever: those abandoned for `idle_s` seconds first, then new ones.

        Acknowledge each with `ack`. The group must exist.
        """
        while True:
            batch = await self.claim(consumer, idle_s=idle_s, limit=limit)
            for taken in batch or await self.take(consumer, limit=limit, wait_s=min(wait_s, idle_s)):
                yield taken

    async def _decoded(self, delivered: Sequence[Delivered]) -> list[Taken]:
        if not delivered:
            return []
        tape = await self._log.describe(self._tape)
        records = decode((item.entry for item in delivered), "" if tape is None else tape.epoch)
        return [Taken(record, item.deliveries) for record, item in zip(records, delivered, strict=True)]
