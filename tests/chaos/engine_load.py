"""Clients of the engine who behave: they start, stop and watch executions, and ask again when nobody answers."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import httpx2

from acceptance.api import Api, Item, Started
from acceptance.rawjson import members
from acceptance.watch import Watcher
from chaos.engine_shapes import CHILD, SHAPES, Shape
from livetape_process import ServerError

ASKED_S: Final = 60.0
TWICE: Final = 0.25
STOPPED: Final = 0.2


class PatientWatcher(Watcher):
    """Subscribes again when it is told to retry. With `graph_id` it ends only when it is cancelled."""

    def __init__(self, url: str, graph_exec_id: str = "", *, graph_id: str = "") -> None:
        super().__init__(url, graph_exec_id, graph_id=graph_id)
        self.retries = Counter[str]()
        self.wall = time.time
        self.pause_s = random.uniform(0.3, 0.7)  # hundreds come back at once

    def take(self, frame: str) -> None:
        raw = members(frame)
        if "offset" in raw and json.loads(raw["method"]).endswith("_event"):
            final = raw.get("final") == "true"
            self.items.append(Item(int(raw["offset"]), json.loads(raw.get("epoch", '""')), raw["data"], final))
            self.times.append(self.wall())
            self.final = final and not self.graph_id
            return
        message = json.loads(frame)
        if message["method"] in ("error", "unsubscribed") and message.get("retry"):
            self.retries[f"{message['method']}: {message.get('code') or message.get('reason')}"] += 1
            raise TimeoutError  # come again, as `run` does when the connection is lost
        self.other.append(message)


@dataclass
class Order:
    """One execution that is asked for, and what came of it."""

    number: int
    shape: Shape
    graph: Mapping[str, Any]
    twice: bool
    stop_after_s: float | None
    answers: list[str] = field(default_factory=list)
    accepted_at: float = 0.0
    stopped_at: float | None = None
    watcher: PatientWatcher | None = None
    row_then: dict[str, Any] | None = None

    @property
    def value(self) -> int:
        return self.number * 1000

    @property
    def key(self) -> str:
        return f"order-{self.number}"

    @property
    def started(self) -> Started:
        return Started(dict(self.graph), {"id": self.answers[0]})


class Clients:
    """All clients of one site. `retried` counts the answers that they did not take for one; `gave_up` says what those
    met who could not go on."""

    def __init__(self, url: str, ws_url: str, *, rng: random.Random) -> None:
        self.api = Api(url)
        self.orders: list[Order] = []
        self.graphs: dict[str, dict[str, Any]] = {}
        self.overviews: dict[str, PatientWatcher] = {}
        self.retried: dict[str, int] = {}
        self.gave_up: list[str] = []
        self._ws_url = ws_url
        self._rng = rng
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, what: str, call: Callable[[], httpx2.Response]) -> Any:
        """Until it is answered with a success; 5xx and no answer at all are tried again."""
        deadline = time.monotonic() + ASKED_S
        while True:
            try:
                answer = await asyncio.to_thread(call)
                if answer.status_code < 300:
                    return answer.json()
                said = f"{answer.status_code} {answer.text[:300]}"
                if answer.status_code not in (500, 502, 503, 504):
                    raise ServerError(f"{what}: {said}")
            except httpx2.TransportError as error:
                said = type(error).__name__
            self.retried[f"{what}: {said[:60]}"] = self.retried.get(f"{what}: {said[:60]}", 0) + 1
            if time.monotonic() > deadline:
                raise ServerError(f"{what}: not within {ASKED_S:g} s: {said}")
            await asyncio.sleep(0.1)

    async def store(self, *more: Shape) -> None:
        """The graphs of all shapes; what is run by others first."""
        for shape in (CHILD, *SHAPES, *more):
            body = {"graph": shape.make(self.graphs[shape.calls] if shape.calls else None)}
            self.graphs[shape.name] = await self.ask("store", partial(self.api.http.post, "/api/graphs", json=body))

    def watch_graphs(self, *names: str) -> None:
        """Follow the tapes of these graphs until `close`."""
        for name in names:
            watcher = self.overviews[name] = PatientWatcher(self._ws_url, graph_id=str(self.graphs[name]["id"]))
            self._go(watcher.run())

    def order(self, shape: Shape, *, plain: bool = False) -> Order:
        """Start one, perhaps twice with one key, perhaps to be stopped; and watch it."""
        twice = not plain and self._rng.random() < TWICE
        stop_after_s = None
        if not plain and self._rng.random() < STOPPED:
            stop_after_s = self._rng.uniform(0, shape.seconds * 1.2)
        order = Order(len(self.orders) + 1, shape, self.graphs[shape.name], twice, stop_after_s)
        self.orders.append(order)
        self._go(self._carry_out(order))
        return order

    def _go(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.gave_up.append(f"{type(error).__name__}: {error}"[:500])

    async def _carry_out(self, order: Order) -> None:
        await asyncio.gather(*(self._start(order) for _ in range(2 if order.twice else 1)))
        order.watcher = PatientWatcher(self._ws_url, order.answers[0])
        watching = asyncio.create_task(order.watcher.run())
        try:
            if order.stop_after_s is not None:
                await asyncio.sleep(order.stop_after_s)
                await self._stop(order)
            await watching
        finally:
            watching.cancel()
        order.row_then = await self.row(order.started)

    async def _start(self, order: Order) -> None:
        body = {"value": order.value}
        answer = await self.ask("start", lambda: self.api.start_raw(order.graph, body, key=order.key))
        order.answers.append(str(answer["id"]))
        order.accepted_at = order.accepted_at or time.time()

    async def _stop(self, order: Order) -> None:
        path = f"/api/graphs/{order.graph['id']}/executions/{order.answers[0]}/stop"
        answer = await self.ask("stop", lambda: self.api.http.post(path))
        if answer["status"] not in ("COMPLETED", "FAILED"):  # a stop that comes too late changes nothing
            order.stopped_at = time.time()

    async def row(self, started: Started) -> dict[str, Any]:
        path = f"/api/graphs/{started.graph_id}/executions/{started.id}"
        found: dict[str, Any] = await self.ask("read", lambda: self.api.http.get(path))
        return found

    async def listed(self, graph_id: str) -> list[dict[str, Any]]:
        """All executions of a graph, page by page."""
        found: list[dict[str, Any]] = []
        while True:
            page = len(found) // 100 + 1
            params = {"page": page, "page_size": 100}
            path = f"/api/graphs/{graph_id}/executions"
            answer = await self.ask("list", partial(self.api.http.get, path, params=params))
            found += answer["executions"]
            if len(found) >= answer["pagination"]["total_items"] or not answer["executions"]:
                return found

    def open_orders(self, among: Sequence[Order] | None = None) -> list[Order]:
        """Those that have not ended, as far as their clients have seen."""
        return [order for order in (self.orders if among is None else among) if order.row_then is None]

    async def settle(self, within_s: float, among: Sequence[Order] | None = None) -> None:
        """Wait until every one of these orders (None: of all) has ended, or for so long."""
        deadline = time.monotonic() + within_s
        while self.open_orders(among) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.api.http.close()
