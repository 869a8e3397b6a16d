"""How a worker process is, told to its supervisor over a socket of their own.

One question a connection, one line: `metrics` is answered with the text of `/metrics`, `missing` with a JSON list of
what is not up. The end of the answer is the end of the connection.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

ANSWER_S: Final = 1.0
"""A worker that does not answer in this time is not up."""

MISSING: Final = "missing"
METRICS: Final = "metrics"


@asynccontextmanager
async def told_status(
    path: Path, missing: Callable[[], Awaitable[list[str]]], metrics: Callable[[], bytes]
) -> AsyncIterator[None]:
    """While the body runs, questions at this path are answered."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_S * 2):
                asked = (await reader.readline()).decode().strip()
                writer.write(metrics() if asked == METRICS else json.dumps(await _in_time(missing)).encode())
                await writer.drain()
        writer.close()

    await asyncio.to_thread(path.unlink, missing_ok=True)  # of an earlier process in this place
    server = await asyncio.start_unix_server(answer, path)
    try:
        yield
    finally:
        server.close()


async def _in_time(missing: Callable[[], Awaitable[list[str]]]) -> list[str]:
    try:
        async with asyncio.timeout(ANSWER_S / 2):
            return await missing()
    except TimeoutError:
        return ["an answer to the readiness check"]


def status_path(folder: Path, number: int) -> Path:
    """Where this worker is asked."""
    return folder / f"{number}.sock"


def asked(folder: Path, number: int, question: str) -> bytes | None:
    """What this worker answers; None: nothing, in time. For a thread."""
    parts = []
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(str(status_path(folder, number)))
            connection.sendall(f"{question}\n".encode())
            while part := connection.recv(65_536):
                parts.append(part)
    except OSError:
        return None
    return b"".join(parts) or None
