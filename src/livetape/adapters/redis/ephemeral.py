"""Ephemeral values on Redis: plain keys with a time to live."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from livetape.adapters.redis.commands import Commands, RedisLinkError, RedisReplyError, Word
from livetape.errors import StoreUnavailableError
from livetape.store.ephemeral import Ephemeral, check

PREFIX: Final = "livetape:"
# One step: a counter whose process died before it could set the time would stay for ever.
_INCR: Final = """
local total = redis.call('INCRBY', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2], 'NX')
return total
"""


class RedisEphemeral(Ephemeral):
    """Keys `livetape:<key>`."""

    def __init__(self, commands: Commands, *, prefix: str = PREFIX) -> None:
        self._commands = commands
        self._prefix = prefix

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        check(key, value, ttl_s)
        await self._send("SET", key, value, "PX", _milliseconds(ttl_s))

    async def put_once(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        check(key, value, ttl_s)
        return await self._send("SET", key, value, "NX", "PX", _milliseconds(ttl_s)) is not None

    async def get(self, key: str) -> bytes | None:
        check(key)
        return _bytes(await self._send("GET", key))

    async def get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        for key in keys:
            check(key)
        names = [self._prefix + key for key in keys]
        # All leave together: nothing here gives the loop away before the last one is handed over.
        answers = [asyncio.ensure_future(self._commands.send(("GET", name), name)) for name in names]
        try:
            return [_bytes(await answer) for answer in answers]
        except (RedisLinkError, RedisReplyError) as error:
            raise _unavailable(error) from error
        finally:
            for answer in answers:
                if not answer.done():
                    answer.cancel()
                elif not answer.cancelled():
                    answer.exception()  # of several one is told

    async def take(self, key: str) -> bytes | None:
        check(key)
        return _bytes(await self._send("GETDEL", key))

    async def incr(self, key: str, *, ttl_s: float, by: int = 1) -> int:
        check(key, ttl_s=ttl_s)
        name = self._prefix + key
        total: int = await self._reply(("EVAL", _INCR, 1, name, by, _milliseconds(ttl_s)), name)
        return total

    async def close(self) -> None:
        """The commands belong to whoever opened them."""

    async def _send(self, command: str, key: str, *more: Word) -> Any:
        name = self._prefix + key
        return await self._reply((command, name, *more), name)

    async def _reply(self, words: tuple[Word, ...], name: str) -> Any:
        try:
            return await self._commands.send(words, name)
        except (RedisLinkError, RedisReplyError) as error:
            raise _unavailable(error) from error


def _unavailable(error: Exception) -> StoreUnavailableError:
    return StoreUnavailableError(f"the ephemeral store cannot be used: {error}")


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _bytes(value: Any) -> bytes | None:
    # redis-py hands over text where its client was made with decode_responses
    return value.encode() if isinstance(value, str) else value
