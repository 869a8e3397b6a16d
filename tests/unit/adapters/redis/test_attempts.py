"""A loop that was busy for longer than the time-outs is no reason to give a server up that has answered."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from livetape.adapters.redis.attempts import persist
from livetape.adapters.redis.commands import RedisLinkError
from livetape.adapters.redis.connection import Connection
from livetape.errors import LogUnavailableError


@asynccontextmanager
async def connected(reply_s: float) -> AsyncIterator[tuple[Connection, socket.socket]]:
    """A connection, and the server's end of it."""
    here, there = socket.socketpair()
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(reply_s), sock=here)
    try:
        yield connection, there
    finally:
        await connection.close()
        there.close()


def busy(server: socket.socket, seconds: float) -> None:
    """The server answers at once, and the loop has other things to do."""
    server.send(b"+PONG\r\n")
    time.sleep(seconds)


async def test_an_answer_that_nobody_had_time_to_read_counts() -> None:
    async with connected(reply_s=5) as (connection, server):
        asyncio.get_running_loop().call_later(0.01, busy, server, 0.3)
        assert await persist(lambda: connection.call("PING"), timeout_s=0.1) == b"PONG"


async def test_a_silent_server_is_given_up_in_time() -> None:
    async with connected(reply_s=5) as (connection, _):
        begun = time.monotonic()
        with pytest.raises(LogUnavailableError, match="in time"):
            await persist(lambda: connection.call("PING"), timeout_s=0.1)
        assert time.monotonic() - begun < 0.5


async def test_a_connection_is_not_given_up_because_the_loop_was_busy() -> None:
    async with connected(reply_s=0.1) as (connection, server):
        answer = connection.call("PING")
        asyncio.get_running_loop().call_later(0.01, busy, server, 0.3)
        assert await answer == b"PONG"
        assert connection.alive


async def test_a_connection_without_an_answer_is_given_up() -> None:
    async with connected(reply_s=0.1) as (connection, _):
        with pytest.raises(RedisLinkError, match="no answer for"):
            await connection.call("PING")
        assert not connection.alive
