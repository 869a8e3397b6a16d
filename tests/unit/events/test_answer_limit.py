"""A time-out that does not take a busy loop for a silent server."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from livetape.events.answer_limit import AnswerLimit


@asynccontextmanager
async def line() -> AsyncIterator[tuple[asyncio.StreamReader, socket.socket]]:
    """What this process reads, and the other end."""
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    try:
        yield reader, there
    finally:
        there.close()
        writer.close()
        await writer.wait_closed()


async def ask(reader: asyncio.StreamReader) -> bytes:
    """Through some tasks, as it is in the program."""

    async def inner() -> bytes:
        return await reader.readexactly(4)

    (answer,) = await asyncio.gather(asyncio.ensure_future(inner()))
    return answer


async def test_an_answer_that_came_while_the_loop_was_busy_counts() -> None:
    async with line() as (reader, server):

        def be_busy() -> None:
            server.send(b"yes!")
            time.sleep(0.15)

        asyncio.get_running_loop().call_later(0.01, be_busy)
        async with AnswerLimit(0.05):
            assert await ask(reader) == b"yes!"


async def test_several_rounds_with_a_loop_that_is_busy_in_between() -> None:
    async with line() as (reader, server), AnswerLimit(0.05):
        for _ in range(4):
            server.send(b"yes!")
            asyncio.get_running_loop().call_soon(time.sleep, 0.03)
            assert await ask(reader) == b"yes!"


async def test_a_silent_server_is_one_after_about_the_time() -> None:
    async with line() as (reader, _):
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            async with AnswerLimit(0.2):
                await ask(reader)
        assert 0.2 <= time.monotonic() - begun < 0.5


async def test_a_silent_server_is_one_even_to_a_loop_that_is_always_busy() -> None:
    async with line() as (reader, _):

        async def be_busy() -> None:
            while True:
                time.sleep(0.02)
                await asyncio.sleep(0)

        busy = asyncio.create_task(be_busy())
        begun = time.monotonic()
        try:
            with pytest.raises(TimeoutError):
                async with AnswerLimit(0.05):
                    await ask(reader)
        finally:
            busy.cancel()
        assert time.monotonic() - begun < 1


@pytest.mark.parametrize("seconds", [0, -1])
async def test_without_any_time_what_is_there_is_still_read(seconds: float) -> None:
    async with line() as (reader, server):
        server.send(b"yes!")
        async with AnswerLimit(seconds):
            assert await ask(reader) == b"yes!"
        with pytest.raises(TimeoutError):
            async with AnswerLimit(seconds):
                await ask(reader)


async def test_the_end_of_the_caller_is_no_time_out() -> None:
    async def wait() -> None:
        async with AnswerLimit(5):
            await asyncio.sleep(5)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_was_raised_inside_comes_out_and_nothing_follows() -> None:
    with pytest.raises(ZeroDivisionError):
        async with AnswerLimit(0.01):
            raise ZeroDivisionError
    await asyncio.sleep(0.03)
