"""A gateway over a memory bus and a log in memory, a publisher, and clients that talk to it without a network."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from livetape.adapters.memory.bus import MemoryBus
from livetape.auth import Authenticator, ConnectionFacts, OriginPolicy, TokenOptions, TokenVerifier, issue_token
from livetape.events.bus import Bus
from livetape.events.channel import (
    execution_channel,
    execution_pattern,
    execution_tape,
    graph_tape,
    job_channel,
    job_tape,
)
from livetape.events.codec import Envelope
from livetape.events.log import EventLog, NewEvent, Position
from livetape.gateway.app import Gateway
from livetape.gateway.messages import Push
from livetape.gateway.options import GatewayOptions
from livetape.gateway.transport import Receiver, Transport, TransportClosedError
from livetape.testing.fakes import FakeLog, ManualClock

KEY = "the key of the tests, long enough to be one"
PATIENCE_S = 10
FINAL = ("COMPLETED", "FAILED", "TERMINATED")


class Counts:
    """Metrics that can be asked."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.durations: list[tuple[str, float]] = []

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        key = ",".join([name, *labels.values()])
        self.values[key] = self.values.get(key, 0) + amount

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self.values[name] = value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        self.durations.append((name, seconds))


@dataclass
class Publisher:
    """Writes events durable first, then live, as the engine's relay does. `live=False` leaves the bus out."""

    bus: Bus
    log: EventLog

    async def create(self, execution: str = "E", *, user: str = "U", graph: str = "G") -> None:
        """The metadata of an execution and its graph."""
        await self.log.create(
            execution_tape(execution), owner=user, channel=execution_channel(user, graph, execution), graph_id=graph
        )
        await self.log.create(graph_tape(graph), owner=user, channel=execution_pattern(user, graph), graph_id=graph)

    async def node(self, number: int = 0, execution: str = "E", **where: Any) -> Position:
        payload = {"event_type": "node_execution_update", "graph_exec_id": execution, "node_id": f"N{number}"}
        return await self._publish(execution, payload, **where)

    async def output(self, number: int = 0, execution: str = "E", **where: Any) -> Position:
        payload = {"event_type": "node_output_update", "graph_exec_id": execution, "index": number}
        return await self._publish(execution, payload, **where)

    async def graph(self, status: str = "RUNNING", execution: str = "E", **where: Any) -> Position:
        payload = {"event_type": "graph_execution_update", "id": execution, "status": status}
        return await self._publish(execution, payload, **where)

    async def nodes(self, count: int, execution: str = "E", **where: Any) -> None:
        for number in range(count):
            await self.node(number, execution, **where)

    async def job(
        self, event_type: str, job: str = "J", *, user: str | None = "U", live: bool = True, data: Any = None
    ) -> Position:
        payload = json.dumps({"event_type": event_type, "job_id": job, "timestamp": "", "data": data or {}}).encode()
        final = event_type == "task_completed"
        if user is not None:
            await self.log.create(job_tape(job), owner=user, channel=job_channel(job))
        position = await self.log.append(job_tape(job), NewEvent(event_type, payload, final))
        if live:
            envelope = Envelope(payload, event_type, position.offset, position.epoch, final=final)
            await self.bus.publish(job_channel(job), envelope.encode())
        return position

    async def notify(self, user: str = "U", **payload: Any) -> None:
        body = json.dumps({"payload": {"user_id": user, "payload": payload}}, separators=(",", ":"))
        await self.bus.publish(f"notification_event/{user}", body.encode())

    async def _publish(
        self,
        execution: str,
        payload: dict[str, Any],
        *,
        user: str = "U",
        graph: str = "G",
        live: bool = True,
        durable: bool = True,
    ) -> Position:
        data = json.dumps(payload, separators=(",", ":")).encode()
        kind, final = payload["event_type"], payload.get("status") in FINAL
        position, on_graph = Position("", 0), None
        if durable:
            position = await self.log.append(execution_tape(execution), NewEvent(kind, data, final))
            if kind == "graph_execution_update":
                on_graph = await self.log.append(graph_tape(graph), NewEvent(kind, data))
        if live:
            envelope = Envelope(
                data,
                kind,
                offset=position.offset if durable else None,
                epoch=position.epoch if durable else None,
                graph_offset=on_graph.offset if on_graph else None,
                graph_epoch=on_graph.epoch if on_graph else None,
                final=final,
            )
            await self.bus.publish(execution_channel(user, graph, execution), envelope.encode())
        return position


class Gate:
    """As an `asyncio.Event` that tells when it is set."""

    def __init__(self, on_set: Callable[[], None]) -> None:
        self._is_set = True
        self._on_set = on_set

    def is_set(self) -> bool:
        return self._is_set

    def clear(self) -> None:
        self._is_set = False

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            self._on_set()


class Client(Transport):
    """A socket without a network: the test's side is `say`, `hear` and `hang_up`.

    What is sent leaves while `reading` is set. `pings` counts; with `answers_pings` each is answered at once.
    """

    def __init__(self, facts: ConnectionFacts, clock: ManualClock | None = None) -> None:
        self._facts = facts
        self._clock = clock
        self._outbound: asyncio.Queue[str | None] = asyncio.Queue()
        self._receiver: Receiver | None = None
        self._held: list[Push] = []
        self._heard: deque[str | bytes] = deque()
        self._paused = False
        self._gone = asyncio.Event()
        self._heard_at = 0.0 if clock is None else clock.monotonic()
        self.reading = Gate(self._read_on)
        self.rejected: int | None = None
        self.accepted = False
        self.closed: tuple[int, str] | None = None
        self._closing: tuple[int, str] | None = None
        self.pings = 0
        self.answers_pings = True
        self.writes = 0
        self.task: asyncio.Task[None] | None = None

    # ---- the gateway's side

    @property
    def facts(self) -> ConnectionFacts:
        return self._facts

    async def reject(self, status: int, text: str) -> None:
        self.rejected = status
        self._gone.set()

    async def accept(self, receiver: Receiver) -> None:
        await asyncio.sleep(0)
        if self._gone.is_set():
            raise TransportClosedError
        self.accepted = True
        self._receiver = receiver
        self._deliver()

    async def run(self) -> None:
        try:
            await self._gone.wait()
        finally:
            self._lose(clean=False)

    def send(self, push: Push) -> None:
        assert self.accepted, "sent before it was accepted"
        if self._gone.is_set() or self._closing is not None:
            return
        if not self.reading.is_set():
            self._held.append(push)
            if len(self._held) == 1 and self._receiver is not None:
                self._receiver.congested()
            return
        self._write(push)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._deliver()

    def close(self, code: int, reason: str, *, within: float, drop: bool = False) -> None:
        if self._closing is not None or self._gone.is_set():
            return
        self._closing = (code, reason)
        if drop:
            self._held.clear()
        if self.reading.is_set():
            self._say_goodbye(clean=not drop)
        else:
            asyncio.get_running_loop().call_later(within, self._gone.set)

    def _say_goodbye(self, *, clean: bool) -> None:
        held, self._held = self._held, []
        for push in held:
            self._write(push)
        self.closed = self._closing
        self._outbound.put_nowait(None)
        asyncio.get_running_loop().call_soon(lambda: self._lose(clean=clean))  # before `run` ends
        self._gone.set()

    @property
    def heard_at(self) -> float | None:
        return self._heard_at

    def ping(self) -> None:
        self.pings += 1
        if self.answers_pings and self._receiver is not None:
            self._hear()
            self._receiver.ponged()

    def _hear(self) -> None:
        if self._clock is not None:
            self._heard_at = self._clock.monotonic()

    def _write(self, push: Push) -> None:
        self.writes += 1
        for part in push.parts:
            self._outbound.put_nowait(part.text)

    def _read_on(self) -> None:
        if self._closing is not None:
            self._say_goodbye(clean=True)
            return
        held, self._held = self._held, []
        for push in held:
            self._write(push)
        if self._receiver is not None and not self._gone.is_set():
            self._receiver.drained()

    def _deliver(self) -> None:
        while self._heard and not self._paused and self._receiver is not None and not self._gone.is_set():
            self._receiver.received(self._heard.popleft())

    def _lose(self, *, clean: bool) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.lost(clean=clean)

    # ---- the test's side

    def say(self, message: Any) -> None:
        self._hear()
        self._heard.append(message if isinstance(message, str | bytes) else json.dumps(message))
        asyncio.get_running_loop().call_soon(self._deliver)

    async def hear(self) -> str:
        """The next message as it came."""
        async with asyncio.timeout(PATIENCE_S):
            text = await self._outbound.get()
        assert text is not None, f"closed with {self.closed}"
        return text

    async def get(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(await self.hear())
        return body

    async def take(self, count: int) -> list[dict[str, Any]]:
        return [await self.get() for _ in range(count)]

    async def ask(self, message: Any) -> dict[str, Any]:
        self.say(message)
        return await self.get()

    async def subscribe(self, execution: str = "E", **data: Any) -> dict[str, Any]:
        return await self.ask({"method": "subscribe_graph_execution", "data": {"graph_exec_id": execution, **data}})

    async def expect_silence(self) -> None:
        """Nothing waits: the next message is the answer to a heartbeat."""
        assert (await self.ask({"method": "heartbeat"}))["method"] == "heartbeat"

    async def until_closed(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            assert self.task is not None
            await asyncio.wait({self.task})
        assert self.closed is not None
        return self.closed[0]

    async def hang_up(self) -> None:
        self._gone.set()
        if self.task is not None:
            await asyncio.wait({self.task})


@dataclass
class Rig:
    """A running gateway and everything around it."""

    gateway: Gateway
    bus: Bus
    log: FakeLog
    clock: ManualClock
    counts: Counts
    publisher: Publisher
    clients: list[Client] = field(default_factory=list)
    standing: int = 0
    """So many sleep whatever happens: those who look after all sockets from time to time."""

    async def sleeper(self) -> None:
        """Wait until somebody sleeps for a reason."""
        await self.clock.sleeper(self.standing)

    def token(self, user: str = "U", *, ttl_s: float = 10**9, role: str = "user") -> str:
        return issue_token(KEY, user_id=user, now=self.clock.now(), ttl=timedelta(seconds=ttl_s), role=role)

    def connect(self, user: str = "U", *, role: str = "user", ttl_s: float = 10**9, **facts: Any) -> Client:
        given = {"token": self.token(user, role=role, ttl_s=ttl_s), "host": "h", "peer": "192.0.2.1", **facts}
        client = Client(ConnectionFacts(**given), self.clock)
        client.task = asyncio.create_task(self.gateway.serve(client))
        self.clients.append(client)
        return client


def authenticator(clock: ManualClock, **options: Any) -> Authenticator:
    verifier = TokenVerifier(TokenOptions(verify_key=KEY), clock)
    return Authenticator(verifier, origins=OriginPolicy(["https://page.example"]), **options)


@asynccontextmanager
async def rigged(
    *,
    bus: Bus | None = None,
    log: FakeLog | None = None,
    auth: dict[str, Any] | None = None,
    parts: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Rig]:
    """A gateway that runs, with these `parts` beside its ports; afterwards every socket must have ended and nothing may
    be left behind."""
    clock = ManualClock(datetime(2030, 1, 1, tzinfo=UTC))
    bus = bus or MemoryBus()
    log = log or FakeLog(clock)
    counts = Counts()
    limits = {"refuse_delay_min_seconds": 0, "refuse_delay_max_seconds": 0, "close_seconds": 0.2, **options}
    gateway = Gateway(
        GatewayOptions(**limits),
        bus,
        log,
        authenticator(clock, **(auth or {})),
        metrics=counts,
        clock=clock,
        sleep=_brief(clock),
        **(parts or {}),
    )
    running = asyncio.create_task(gateway.run())
    async with asyncio.timeout(PATIENCE_S):
        await gateway.ready.wait()
    rig = Rig(gateway, bus, log, clock, counts, Publisher(bus, log))
    for _ in range(3):
        await asyncio.sleep(0)
    rig.standing = clock.sleeping
    try:
        yield rig
        for client in rig.clients:
            await client.hang_up()
        assert gateway.sockets == 0
        assert gateway.topics == 0
        assert not gateway._hub._listeners, "sockets that are gone are still notified"
    finally:
        running.cancel()
        await asyncio.wait({running, *(client.task for client in rig.clients if client.task is not None)})
        await bus.close()


def _brief(clock: ManualClock) -> Any:
    """Waits between tries are short in reality; anything longer is on the clock of the test."""

    async def sleep(seconds: float) -> None:
        if seconds < 0.5:
            await asyncio.sleep(0)
        else:
            await clock.sleep(seconds)

    return sleep


FIVE = ["method", "data", "success", "channel", "error"]
EXECUTION_CHANNEL = "U|graph_exec#E"
NODE = b'{"event_type":"node_execution_update"}'


def offsets(bodies: Sequence[dict[str, Any]]) -> list[Any]:
    """The number of each message, or its method when it has none."""
    return [body.get("offset", body["method"]) for body in bodies]


async def epoch_of(rig: Rig, tape: str | None = None) -> str:
    """The epoch of a tape, by default that of the execution E."""
    found = await rig.log.describe(tape or execution_tape("E"))
    assert found is not None
    return found.epoch


async def go_on(rig: Rig) -> None:
    """Time passes for those who wait before they try again."""
    while True:
        await rig.sleeper()
        rig.clock.advance(1)
        await asyncio.sleep(0)
