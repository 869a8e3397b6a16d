"""Publishers for the gateway's fault tests, and the log as it stands in Redis, read by a reader of its own.

Jobs are published through the library (`RedisStreamPublisher.record` with an idempotency key, repeated until it is
acknowledged). Executions are what an engine does that numbers its events itself and copies them to Redis: `create` with
its own epoch, then for each event `put` and, when it is there, one `publish` on the execution's channel. When Redis
comes back empty it makes the tape again, with the same epoch and all events.
"""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from typing import Any

import redis

from chaos.chain import Truth
from chaos.watchers import Subject
from livetape.auth import DEFAULT_USER_ID
from livetape.errors import LivetapeError, NotFoundError, PositionLostError, TapeHoleError
from livetape.events.channel import execution_channel, execution_tape
from livetape.events.codec import Envelope
from livetape.events.log import NewEvent, Position
from livetape.events.open import Backend, open_backend
from livetape.events.streams import RedisStreamPublisher

GRAPH_ID = "graph-of-chaos"
AGAIN_S = 0.05
NODE, OUTPUT, GRAPH = "node_execution_update", "node_output_update", "graph_execution_update"


class Source(ABC):
    """Publishes to one tape, one event after the other, until it is told to stop."""

    def __init__(self, subject: Subject, *, pause_s: float, filler: int) -> None:
        self.subject = subject
        self.truth = Truth()
        self.begun = 0
        """So many events were given to the library."""
        self.acknowledged = 0
        self.repeated = 0
        self.complaints: list[str] = []
        self.began: dict[int, float] = {}
        """When each was given, by the monotonic clock."""
        self._pause_s = pause_s
        self._filler = "x" * filler
        self._stop = asyncio.Event()

    @abstractmethod
    async def open(self) -> None:
        """Make the tape."""

    @abstractmethod
    async def publish(self, number: int) -> None:
        """One event, until it is acknowledged."""

    @abstractmethod
    async def close(self) -> None: ...

    async def run(self) -> None:
        """Until `stop`."""
        while not self._stop.is_set():
            await self.one()
            await asyncio.sleep(self._pause_s)  # its rhythm

    async def one(self) -> None:
        """The next event."""
        self.begun += 1
        self.began[self.begun] = time.monotonic()
        await self.publish(self.begun)
        self.acknowledged += 1

    def stop(self) -> None:
        """After the event that is on its way."""
        self._stop.set()


class JobSource(Source):
    """A task that tells its progress."""

    def __init__(self, url: str, job_id: str, *, pause_s: float = 0.03, filler: int = 100) -> None:
        super().__init__(Subject("job", job_id), pause_s=pause_s, filler=filler)
        self._publisher = RedisStreamPublisher(url=url, user_id=DEFAULT_USER_ID)
        self._newest: Position | None = None

    async def open(self) -> None:
        await self.one()

    async def publish(self, number: int) -> None:
        await self.record({"event_type": "task_progress", "timestamp": "", "n": number, "text": self._filler})

    async def record(self, event: dict[str, Any]) -> Position:
        """This event, once."""
        job_id = self.subject.id
        while True:
            try:
                done = await self._publisher.record(job_id, event, idempotency_key=f"n{event['n']}")
                break
            except LivetapeError as error:
                if not error.retryable:
                    raise
                self.repeated += 1
                await asyncio.sleep(AGAIN_S)
        body = b'{"event_type":"%b","job_id":"%b","timestamp":"","data":%b}' % (
            event["event_type"].encode(),
            job_id.encode(),
            json.dumps(event, separators=(",", ":")).encode(),
        )
        truth, before = self.truth, self._newest
        self._newest = done.position
        if before is not None and before.epoch != done.position.epoch:
            # It may have been written and pushed before the server lost it all, and nobody can be told of that.
            truth.events[before.epoch].setdefault(before.offset + 1, body)
        if complaint := truth.add(done.position.epoch, done.position.offset, body):
            self.complaints.append(f"{job_id}: {complaint}")
        return done.position

    async def close(self) -> None:
        await self._publisher.close()


class ExecutionSource(Source):
    """An engine that numbers what it publishes."""

    def __init__(
        self,
        url: str,
        execution_id: str,
        *,
        pause_s: float = 0.03,
        filler: int = 100,
        user_id: str = DEFAULT_USER_ID,
        graph_id: str = GRAPH_ID,
    ) -> None:
        super().__init__(Subject("execution", execution_id), pause_s=pause_s, filler=filler)
        self.user_id = user_id
        self.graph_id = graph_id
        self.epoch = f"own{execution_id}"
        self.refills = 0
        self._tape = execution_tape(execution_id)
        self._channel = execution_channel(user_id, graph_id, execution_id)
        self._events: list[NewEvent] = []
        self._backend: Backend = open_backend(url)

    async def open(self) -> None:
        await self._create()
        await self.one()

    async def publish(self, number: int) -> None:
        kind = (GRAPH, NODE, OUTPUT, OUTPUT)[number % 4]
        event = {
            "event_type": kind, "id": self.subject.id, "user_id": self.user_id, "graph_id": self.graph_id,
            "graph_exec_id": self.subject.id, "status": "RUNNING", "n": number, "text": self._filler,
        }  # fmt: skip
        await self.append(kind, json.dumps(event, separators=(",", ":")).encode())

    async def append(self, kind: str, payload: bytes) -> Position:
        self._events.append(NewEvent(kind, payload))
        offset = len(self._events)
        if complaint := self.truth.add(self.epoch, offset, payload):
            self.complaints.append(complaint)
        envelope = Envelope(payload, kind, offset, self.epoch).encode()
        await self._put(offset)
        try:
            await self._backend.bus.publish(self._channel, envelope)
        except LivetapeError:
            self.repeated += 1  # it is on the tape, that is enough
        return Position(self.epoch, offset)

    async def _put(self, upto: int) -> None:
        log = self._backend.log
        assert log is not None
        offset = upto
        while offset <= upto:
            try:
                await log.put(self._tape, Position(self.epoch, offset), self._events[offset - 1])
                offset += 1
            except TapeHoleError as error:
                offset = int(error.context["missing_from"])
                self.refills += 1
            except (NotFoundError, PositionLostError):
                self.refills += 1
                offset = 1
                await self._create()
            except LivetapeError as error:
                if not error.retryable:
                    raise
                self.repeated += 1
                await asyncio.sleep(AGAIN_S)

    async def _create(self) -> None:
        log = self._backend.log
        assert log is not None
        while True:
            try:
                await log.create(
                    self._tape, owner=self.user_id, channel=self._channel, graph_id=self.graph_id, epoch=self.epoch
                )
            except LivetapeError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(AGAIN_S)
            else:
                return

    async def close(self) -> None:
        await self._backend.close()


def read_log(url: str, tape: str) -> tuple[str, list[tuple[int, bytes]]]:
    """Epoch, and (number, bytes of the event) of all entries: with plain commands, as the wire contract says."""
    job_id = tape.partition(":")[2].encode()
    found: list[tuple[int, bytes]] = []
    with redis.Redis.from_url(url, socket_timeout=20) as client:
        epoch = client.hget(f"{{{tape}}}:meta", "epoch")
        after = "-"
        while rows := client.xrange(tape, min=after, count=1000):
            for entry_id, fields in rows:
                milliseconds, _, sequence = entry_id.partition(b"-")
                assert sequence == b"0", f"{tape}: {entry_id} is not ours"
                data = fields[b"data"]
                if b"timestamp" in fields:
                    data = b'{"event_type":"%b","job_id":"%b","timestamp":"%b","data":%b}' % (
                        fields[b"event_type"], job_id, fields[b"timestamp"], data,
                    )  # fmt: skip
                found.append((int(milliseconds), data))
            after = "(" + rows[-1][0].decode()
    return (epoch or b"").decode(), found
