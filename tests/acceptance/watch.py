"""WebSocket clients: one that writes down everything, one that comes back with its position until the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from acceptance.api import TERMINAL, Item
from acceptance.rawjson import members

PUSHES = {"graph_execution_event", "node_execution_event", "node_output_event"}


@asynccontextmanager
async def socket(url: str, *, token: str | None = None) -> AsyncIterator[ClientConnection]:
    """A plain connection. The server, not this client, decides when a peer is gone."""
    address = f"{url}?token={token}" if token else url
    async with connect(
        address, proxy=None, max_size=None, max_queue=None, ping_interval=None, open_timeout=10, close_timeout=1
    ) as ws:
        yield ws


async def ask(ws: ClientConnection, message: Any, *, timeout: float = 10) -> str:
    """Send one message and return the next frame's text."""
    await ws.send(message if isinstance(message, str) else json.dumps(message, separators=(",", ":")))
    return await receive(ws, timeout=timeout)


async def receive(ws: ClientConnection, *, timeout: float = 10) -> str:
    async with asyncio.timeout(timeout):
        frame = await ws.recv()
    assert isinstance(frame, str), "the server sends text frames"
    return frame


class Watcher:
    """Follows one execution from its first event to its last, over as many connections as it takes.

    It never drops, sorts or merges anything: `items` is what came, in the order in which it came. With `graph_id` it
    follows the graph events of all executions of that graph instead, and ends after `finals` of them have ended.
    """

    def __init__(
        self,
        url: str,
        graph_exec_id: str = "",
        *,
        token: str | None = None,
        outputs: str | None = "each",
        graph_id: str = "",
        finals: int = 1,
    ) -> None:
        self.url = url
        self.graph_exec_id = graph_exec_id
        self.graph_id = graph_id
        self.finals = finals
        self.token = token
        self.outputs = outputs
        self.items: list[Item] = []
        self.times: list[float] = []
        self.other: list[dict[str, Any]] = []
        self.connections = 0
        self.final = False
        self.wall = lambda: 0.0
        self.pause_s = 0.02

    @property
    def since(self) -> Any:
        """Where to go on: after the last event that came."""
        if not self.items:
            return "earliest"
        return {"epoch": self.items[-1].epoch, "offset": self.items[-1].offset}

    def subscription(self) -> str:
        if self.graph_id:
            method, data = "subscribe_graph_executions", {"graph_id": self.graph_id, "since": self.since}
        else:
            method, data = "subscribe_graph_execution", {"graph_exec_id": self.graph_exec_id, "since": self.since}
            if self.outputs:
                data["outputs"] = self.outputs
        return json.dumps({"method": method, "data": data}, separators=(",", ":"))

    def take(self, frame: str) -> None:
        raw = members(frame)
        method = json.loads(raw["method"])
        if method not in PUSHES:
            self.other.append(json.loads(frame))
            return
        self.times.append(self.wall())
        self.items.append(
            Item(
                offset=int(raw.get("offset", "0")),
                epoch=json.loads(raw.get("epoch", '""')),
                data=raw["data"],
                final=raw.get("final") == "true",
            )
        )
        if self.graph_id:
            ended = {item.value["id"] for item in self.items if item.value["status"] in TERMINAL}
            self.final = len(ended) >= self.finals
        else:
            self.final = self.final or self.items[-1].final

    async def run(self) -> None:
        """Until the last event. Cancel it to stop earlier."""
        while not self.final:
            try:
                async with socket(self.url, token=self.token) as ws:
                    self.connections += 1
                    await ws.send(self.subscription())
                    while not self.final:
                        frame = await ws.recv()
                        assert isinstance(frame, str)
                        self.take(frame)
            except (OSError, WebSocketException, TimeoutError):
                await asyncio.sleep(self.pause_s)  # the server is another process, and it is down

    def complaints(self) -> list[str]:
        """What the server said that a client with a good position must never hear."""
        found = []
        for message in self.other:
            if message["method"] in ("gap", "error", "unsubscribed"):
                found.append(f"the server said {json.dumps(message)[:300]}")
            if message["method"].startswith("subscribe_") and message.get("success") is not True:
                found.append(f"subscribe was refused: {json.dumps(message)[:300]}")
            data = message.get("data")
            if isinstance(data, dict) and data.get("recovered") is False:
                found.append(f"not recovered: {json.dumps(message)[:300]}")
        return found
