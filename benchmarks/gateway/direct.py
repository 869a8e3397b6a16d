"""`direct://127.0.0.1:PORT`: events come over the TCP bus of c/limit.c and are numbered in the gateway's own process.

Shows what the gateway costs without a link to Redis. Nothing is durable: for measuring only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from urllib.parse import urlsplit

from events import EVENT_TYPE, GRAPH_ID

from livetape.adapters.memory.bus import MemoryBus
from livetape.events.channel import execution_channel, split_tape
from livetape.events.codec import Envelope
from livetape.events.log import Entry, EventLog, NewEvent, Position, PutResult, Tape
from livetape.events.open import Backend

EPOCH = "direct"


class CountingLog(EventLog):
    """Every execution `exec-N` belongs to `user-N`; only the number of its events is known."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    async def describe(self, tape: str) -> Tape | None:
        kind, identity = split_tape(tape)
        if kind != "execution_events" or not identity.startswith("exec-"):
            return None
        owner = identity.replace("exec-", "user-", 1)
        channel = execution_channel(owner, GRAPH_ID, identity)
        return Tape(tape, owner, GRAPH_ID, channel, EPOCH, self.numbers.get(channel, 0), 1, False)

    async def read(self, tape: str, after: int = 0, *, limit: int = 1000, epoch: str | None = None) -> Sequence[Entry]:
        return ()

    async def create(
        self, tape: str, *, owner: str | None, channel: str, graph_id: str | None = None, epoch: str | None = None
    ) -> Tape:
        raise NotImplementedError

    async def append(self, tape: str, event: NewEvent, *, idempotency_key: str | None = None) -> Position:
        raise NotImplementedError

    async def put(self, tape: str, position: Position, event: NewEvent) -> PutResult:
        raise NotImplementedError

    async def trim(self, tape: str, *, keep_after: int) -> int:
        return 0

    async def offset_at(self, tape: str, time: datetime) -> int:
        return 0

    async def tapes(self, prefix: str = "") -> AsyncIterator[str]:
        for name in ():
            yield name

    async def close(self) -> None:
        pass


async def open_direct(url: str) -> Backend:
    bus, log = MemoryBus(), CountingLog()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting = b""
        while data := await reader.read(1 << 18):
            waiting += data
            at = 0
            while len(waiting) - at >= 6:
                name_end = at + 6 + int.from_bytes(waiting[at : at + 2])
                end = name_end + int.from_bytes(waiting[at + 2 : at + 6])
                if len(waiting) < end:
                    break
                channel = waiting[at + 6 : name_end].decode()
                number = log.numbers[channel] = log.numbers.get(channel, 0) + 1
                await bus.publish(channel, Envelope(waiting[name_end:end], EVENT_TYPE, number, EPOCH).encode())
                at = end
            waiting = waiting[at:]
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", urlsplit(url).port)

    async def close() -> None:
        server.close()
        await bus.close()

    return Backend(bus, log, on_close=[close])
