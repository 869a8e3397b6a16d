"""A network between client and server that can fall silent: connections stay, and nothing arrives any more."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class Proxy:
    """`async with Proxy(port) as proxy:` then `proxy.port`. While `silent`, bytes of both sides are swallowed.

    `endless`: the server's end of a connection is not passed on.
    """

    def __init__(self, to_port: int, *, endless: bool = False) -> None:
        self._to_port = to_port
        self._endless = endless
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.silent = False
        self.port = 0
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Break every connection that there is; new ones are let through."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(back)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(
                self._pump(reader, back, endless=False), self._pump(there, writer, endless=self._endless)
            )

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, endless: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if not self.silent:
                    sink.write(data)
        if not self.silent and not endless:  # an end does not pass either
            with contextlib.suppress(OSError):
                sink.close()
