"""The known browser client of the seed, with its rhythm and its faults (a plain seed client knows nothing of numbers).

It sends subscribes and heartbeats only. A heartbeat must be answered in time, or it closes. After any close, whatever
the code, it comes back after a fixed pause, for ever, and does not subscribe again. It never unsubscribes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence

from chaos.chain import parse
from chaos.rawsocket import RawSocket, connect

HEARTBEAT = '{"method":"heartbeat","data":"ping","success":true}'
PONG = b'{"method":"heartbeat","data":"pong","success":true}'
HANDLED = ("graph_execution_event", "node_execution_event", "notification")
"""What its page has handlers for; other methods it ignores."""


class OldClient:
    """`run` it as a task. Its times are those of the browser, shortened: heartbeat every 100 s, answered within 10 s,
    back after 1 s."""

    def __init__(
        self,
        ports: Sequence[int],
        subscribes: Sequence[str],
        token: Callable[[], str],
        *,
        heartbeat_s: float = 1.0,
        answer_s: float = 2.0,
        back_s: float = 0.3,
    ) -> None:
        self.replies: list[bytes] = []
        self.pushes: list[tuple[str, bytes]] = []
        """Method and `data`, as handed to the page."""
        self.texts: list[bytes] = []
        self.closes: list[int | None] = []
        self.connections = 0
        self.pongs = 0
        self.at = 0
        self._ports = ports
        self._subscribes = subscribes
        self._token = token
        self._heartbeat_s, self._answer_s, self._back_s = heartbeat_s, answer_s, back_s
        self._socket: RawSocket | None = None
        self._ponged = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self._visit()
                await asyncio.sleep(self._back_s)  # fixed, without jitter, as it does
        finally:
            if self._socket is not None:
                self._socket.cut()
                await self._socket.gone

    async def _visit(self) -> None:
        port = self._ports[self.at % len(self._ports)]
        try:
            self._socket = await connect(port, self._take, path=f"/ws?token={self._token()}")
        except (OSError, TimeoutError):
            return
        self.connections += 1
        if self.connections == 1:
            for text in self._subscribes:
                self._socket.send(text)
        while not self._socket.gone.done():
            await self._heartbeat(self._socket)
        self.closes.append(self._socket.close_code)

    async def _heartbeat(self, socket: RawSocket) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._heartbeat_s):
                await asyncio.shield(socket.gone)
        if socket.gone.done():
            return
        self._ponged.clear()
        socket.send(HEARTBEAT)
        try:
            async with asyncio.timeout(self._answer_s):
                await asyncio.wait(
                    {asyncio.ensure_future(self._ponged.wait()), asyncio.shield(socket.gone)},
                    return_when=asyncio.FIRST_COMPLETED,
                )
        except TimeoutError:
            socket.cut()
            await socket.gone

    def _take(self, text: bytes) -> None:
        self.texts.append(text)
        message = parse(text) if not text.startswith(b'{"method":"heartbeat"') else None
        if message is None:
            assert text == PONG, text
            self.pongs += 1
            self._ponged.set()
        elif message.method in HANDLED:
            self.pushes.append((message.method, message.data))
        elif message.keys.get("success") is not None:
            self.replies.append(text)


def subscribe(method: str, key: str, value: str) -> str:
    """As the browser sends it: `method` and `data`, nothing else."""
    return json.dumps({"method": method, "data": {key: value}}, separators=(",", ":"))
