"""The plainest `Commands` of the Redis adapter, for tests of what is built on them: one connection, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio.connection import Connection
from redis.crc import key_slot
from redis.exceptions import ConnectionError as BrokenError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as LateError

from livetape.adapters.redis.commands import Commands, RedisLinkError, RedisReplyError, Word
from servers import RedisServer

Cut = Callable[[Sequence[Word]], str | None]


class PlainCommands:
    """`cut` looks at each command and may say "before" or "after": there the link breaks, unsent or unanswered."""

    def __init__(self, port: int, db: int = 0, *, cut: Cut | None = None) -> None:
        self._port, self._db = port, db
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self.cut = cut or (lambda words: None)
        self.sent: list[Sequence[Word]] = []

    async def send(self, words: Sequence[Word], key: str = "") -> Any:
        async with self._lock:
            where = self.cut(words)
            if where == "before":
                raise RedisLinkError("cut", sent=False)
            sent = False
            try:
                if self._connection is None:
                    self._connection = Connection(port=self._port, db=self._db)
                    await self._connection.connect()
                sent = True
                self.sent.append(words)
                await self._connection.send_command(*words)
                reply = await self._connection.read_response(disable_decoding=True)
            except ResponseError as error:
                raise RedisReplyError(_text(error)) from error
            except (BrokenError, LateError, OSError) as error:
                await self._drop()
                raise RedisLinkError(str(error), sent=sent) from error
            except asyncio.CancelledError:
                await self._drop()
                raise
        if where == "after":
            raise RedisLinkError("cut", sent=True)
        return reply

    async def masters(self) -> Sequence[Commands]:
        return (self,)

    async def close(self) -> None:
        await self._drop()

    async def _drop(self) -> None:
        if self._connection is not None:
            await self._connection.disconnect()
            self._connection = None


class PlainClusterCommands:
    """Masters that own thirds of the slots, as `servers.cluster` divides them."""

    def __init__(self, nodes: Sequence[RedisServer]) -> None:
        self.nodes = [PlainCommands(node.port) for node in nodes]

    async def send(self, words: Sequence[Word], key: str = "") -> Any:
        return await self.nodes[key_slot(key.encode()) * len(self.nodes) // 16384].send(words)

    async def masters(self) -> Sequence[Commands]:
        return self.nodes

    async def close(self) -> None:
        for node in self.nodes:
            await node.close()


def _text(error: ResponseError) -> str:
    """redis-py cuts the code off some refusals and makes a class of it."""
    codes = {
        "NoScriptError": "NOSCRIPT",
        "ReadOnlyError": "READONLY",
        "OutOfMemoryError": "OOM",
        "BusyLoadingError": "LOADING",
        "NoPermissionError": "NOPERM",
    }
    code = codes.get(type(error).__name__)
    return str(error) if code is None or str(error).startswith(code) else f"{code} {error}"


@asynccontextmanager
async def plain(port: int, db: int = 0) -> AsyncIterator[PlainCommands]:
    commands = PlainCommands(port, db)
    try:
        yield commands
    finally:
        await commands.close()
