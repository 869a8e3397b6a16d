"""Consumer groups on Redis Streams: Redis' own, so that plain clients may take part."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from livetape.adapters.redis.attempts import persist
from livetape.adapters.redis.commands import Commands, RedisReplyError, Word
from livetape.adapters.redis.entries import entries_of
from livetape.adapters.redis.keys import id_of, is_job_tape, keys_of, offset_of
from livetape.adapters.redis.recorder import TIMEOUT_S
from livetape.adapters.redis.scripts import Scripts
from livetape.errors import LogError, NotFoundError
from livetape.events.groups import ConsumerGroups, Delivered, Pending, check_names
from livetape.events.log import MAX_READ

FIRST_WAIT_S: Final = 0.005
LONGEST_WAIT_S: Final = 0.1


class RedisGroups(ConsumerGroups):
    """The groups of Redis; for one event loop.

    Waiting asks again in growing intervals, at most 100 ms: a blocking command would hold up everybody on the shared
    connection. A hand-over whose answer was lost with the link is pending, and found by `claim`. `commands` stays open.
    """

    def __init__(self, commands: Commands, *, timeout_s: float = TIMEOUT_S) -> None:
        self._commands = commands
        self._scripts = Scripts(commands)
        self._timeout_s = timeout_s

    async def create(self, tape: str, group: str, *, after: int = 0) -> bool:
        check_names(group)
        try:
            await self._send(tape, "XGROUP", "CREATE", tape, group, id_of(after), "MKSTREAM")
        except LogError as error:
            if _code(error) == "BUSYGROUP":
                return False
            raise
        return True

    async def take(
        self, tape: str, group: str, consumer: str, *, limit: int = 100, wait_s: float = 0
    ) -> Sequence[Delivered]:
        check_names(group, consumer)
        count = min(limit, MAX_READ)
        if count < 1:
            return []
        words = ("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", tape, ">")
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        interval = FIRST_WAIT_S
        while True:
            try:
                rows = _of_one_stream(await self._send(tape, *words))
            except LogError as error:
                raise _no_group(error, tape, group) from error
            if rows:
                return [Delivered(entry, 1) for entry in entries_of(tape, rows, await self._born(tape))]
            left = until - loop.time()
            if left <= 0:
                return []
            await asyncio.sleep(min(interval, left))
            interval = min(interval * 2, LONGEST_WAIT_S)

    async def ack(self, tape: str, group: str, *offsets: int) -> int:
        check_names(group)
        if not offsets:
            return 0
        acknowledged: int = await self._send(tape, "XACK", tape, group, *map(id_of, offsets))
        return acknowledged

    async def claim(
        self, tape: str, group: str, consumer: str, *, idle_s: float, limit: int = 100
    ) -> Sequence[Delivered]:
        check_names(group, consumer)
        count = min(limit, MAX_READ)
        if count < 1:
            return []
        words = (group, consumer, max(0, round(idle_s * 1000)), count)
        try:
            answer = await self._scripts.run("claim", tape, keys_of(tape)[:1], words, timeout_s=self._timeout_s)
        except LogError as error:
            raise _no_group(error, tape, group) from error
        born = await self._born(tape)
        delivered = []
        for row, deliveries in zip(answer[::2], answer[1::2], strict=True):
            delivered += [Delivered(entry, deliveries) for entry in entries_of(tape, [row], born)]
        return delivered

    async def pending(self, tape: str, group: str, *, limit: int = MAX_READ) -> Sequence[Pending]:
        check_names(group)
        try:
            rows = await self._send(tape, "XPENDING", tape, group, "-", "+", max(1, min(limit, MAX_READ)))
        except LogError as error:
            if _code(error) == "NOGROUP":
                return []
            raise
        return [
            Pending(offset_of(entry_id), consumer.decode(), idle / 1000, deliveries)
            for entry_id, consumer, idle, deliveries in rows
        ]

    async def drop(self, tape: str, group: str) -> bool:
        check_names(group)
        try:
            dropped: int = await self._send(tape, "XGROUP", "DESTROY", tape, group)
        except LogError as error:
            if "requires the key to exist" in str(error):
                return False
            raise
        return dropped == 1

    async def close(self) -> None:
        """The commands belong to whoever opened them."""

    async def _send(self, tape: str, *words: Word) -> Any:
        keys_of(tape)  # refuses names that cannot be

        async def attempt() -> Any:
            return await self._commands.send(words, tape)

        return await persist(attempt, timeout_s=self._timeout_s)

    async def _born(self, tape: str) -> int:
        """When the tape was born: for entries of jobs that tell no time."""
        if not is_job_tape(tape):
            return 0
        return int(await self._send(tape, "HGET", keys_of(tape)[1], "born") or 0)


def _of_one_stream(answer: Any) -> Any:
    if not answer:
        return []
    if isinstance(answer, dict):
        return next(iter(answer.values()))
    return answer[0][1]


def _code(error: LogError) -> str:
    cause = error.__cause__
    return cause.code if isinstance(cause, RedisReplyError) else ""


def _no_group(error: LogError, tape: str, group: str) -> Exception:
    if _code(error) == "NOGROUP":
        return NotFoundError(f"there is no group {group}", tape=tape, group=group)
    return error
