"""Watchers of gateways who behave: they come back with their position, on any of them, until they are ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from chaos.chain import EVENTS, Chain, FrameError, Message, parse
from chaos.rawsocket import RawSocket, connect

BACK_S = (0.02, 0.3)
RETRY_S = 0.2


@dataclass(frozen=True)
class Subject:
    """What is watched: an execution or a job."""

    kind: str
    id: str

    @property
    def tape(self) -> str:
        return f"{'job' if self.kind == 'job' else 'execution'}_events:{self.id}"

    def subscribe(self, since: object) -> str:
        if self.kind == "job":
            message = {"method": "subscribe_job", "data": {"job_id": self.id, "since": since}}
        else:
            data = {"graph_exec_id": self.id, "since": since, "outputs": "each"}
            message = {"method": "subscribe_graph_execution", "data": data}
        return json.dumps(message, separators=(",", ":"))


class Watcher:
    """Follows one tape from its first event on. Its `chain` is all that it keeps.

    `obeys`: it goes elsewhere when it is asked to (`reconnect`); otherwise only when it is closed.
    """

    def __init__(
        self,
        name: str,
        subject: Subject,
        ports: Sequence[int],
        *,
        at: int = 0,
        seed: int = 0,
        heartbeat_s: float | None = None,
        open_s: float = 20.0,
        obeys: bool = False,
    ) -> None:
        self.chain = Chain(name)
        self.subject = subject
        self.socket: RawSocket | None = None
        self.connections = 0
        self.closes: Counter[int | None] = Counter()
        self.errors: list[str] = []
        self.methods: Counter[str] = Counter()
        self.lags: list[float] | None = None
        """Seconds between giving an event to the library and having it, when somebody wants to know; of a job."""
        self.began: dict[int, float] = {}
        self.is_live = False
        self._ports = ports
        self._at = at
        self._rng = random.Random(seed)
        self._heartbeat_s = heartbeat_s
        self._open_s = open_s
        self._obeys = obeys
        self._heard = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self._visit()
                self._at += 1
                await asyncio.sleep(self._rng.uniform(*BACK_S))  # as good clients do, not all at once
        finally:
            if self.socket is not None:
                self.socket.cut()
                await self.socket.gone

    async def _visit(self) -> None:
        port = self._ports[self._at % len(self._ports)]
        try:
            self.socket = await connect(port, self.take, open_s=self._open_s)
        except (OSError, TimeoutError):
            return
        self.connections += 1
        self._heard = time.monotonic()
        self._subscribe()
        if self._heartbeat_s is None:
            await asyncio.shield(self.socket.gone)
        else:
            await self._keep_asking(self.socket, self._heartbeat_s)
        self.is_live = False
        self.closes[self.socket.close_code] += 1

    async def _keep_asking(self, socket: RawSocket, every_s: float) -> None:
        """Sends heartbeats, and gives up on a server that does not say anything for as long."""
        while not socket.gone.done():
            socket.send('{"method":"heartbeat","data":"ping","success":true}')
            asked = time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await asyncio.shield(socket.gone)
            if self._heard < asked and not socket.gone.done():
                socket.cut()
                await socket.gone

    def _subscribe(self) -> None:
        assert self.socket is not None
        self.socket.send(self.subject.subscribe(self.chain.since))

    def take(self, text: bytes) -> None:
        """A text message."""
        self._heard = time.monotonic()
        try:
            message = parse(text)
        except (FrameError, ValueError) as error:
            self.chain.complaints.append(f"{self.chain.name}: {error}")
            return
        self.methods[message.method] += 1
        if message.method in EVENTS:
            self.chain.take(message)
            if self.lags is not None and self.chain.offset in self.began:
                self.lags.append(self._heard - self.began[self.chain.offset])
        elif message.method.startswith("subscribe_"):
            self.chain.subscribed(json.loads(message.data))
        elif message.method == "error":
            self._error(message, text)
        elif message.method == "reconnect":
            if self._obeys and self.socket is not None:
                self.socket.close(1000)
        else:
            self.is_live = self.is_live or message.method == "replay_complete"
            self.chain.take(message)

    def _error(self, message: Message, text: bytes) -> None:
        self.errors.append(text[:300].decode())
        if message.keys.get("code") == "unavailable" and message.keys.get("retry"):
            asyncio.get_running_loop().call_later(RETRY_S, self._subscribe)
        elif message.keys.get("code") == "payload_too_large":
            self.chain.take(message)
        else:
            self.chain.complaints.append(f"{self.chain.name}: {text[:300]!r}")


async def until(true: object, what: str, *, within_s: float = 40.0) -> None:
    """Asks again and again: for what happens in other processes."""
    assert callable(true)
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.02)
