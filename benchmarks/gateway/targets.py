"""What is measured: how each server is started, how its clients talk, how an event reaches it."""

from __future__ import annotations

import asyncio
import json
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import websockets
from events import (
    BUS_CHANNEL,
    CHANNEL,
    EVENT_TYPE,
    EXECUTION_ID,
    FIRST_OFFSET,
    GRAPH_ID,
    OFFSET,
    TOKEN,
    USER_ID,
    framed,
    redis_command,
    subscribe_message,
    wrapped,
)
from load import BUILD, CLIENT_CORE, SERVER_CORE, Dialogue, NoFiguresError, Publishing, settle
from websockets.sync.client import connect

from livetape.auth import issue_token
from livetape.events.channel import execution_channel, execution_tape
from livetape.events.codec import Envelope
from livetape.events.log import NewEvent
from livetape.events.open import open_backend
from servers import RedisServer
from support import free_port

HERE = Path(__file__).parent
KEY = secrets.token_hex(32)
START_S = 30.0


class UnavailableError(Exception):
    """This server cannot be measured here; the text says why."""


def numbered(mark: str, number: int) -> str:
    """The id that the load client makes of a mark for this channel."""
    return mark.replace(CHANNEL, f"{number:0{len(CHANNEL)}}")


def token(number: int, serial: int) -> str:
    return issue_token(
        KEY,
        user_id=numbered(USER_ID, number),
        now=datetime.now(UTC),
        ttl=timedelta(hours=6),
        token_id=f"{number}-{serial}",
    )


class Target(ABC):
    """One server, started fresh for each measurement."""

    name: ClassVar[str]
    nice = 0

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None

    def prepare(self) -> None:  # noqa: B027 - most need nothing
        """Before the first start, once. Raises UnavailableError."""

    @abstractmethod
    def start(self, folder: Path, channels: int) -> None:
        """Returns when clients may come."""

    @abstractmethod
    def dialogue(self, sockets: int, channels: int) -> Dialogue: ...

    @abstractmethod
    def publishing(self, payload: bytes) -> Publishing: ...

    def check(self, sockets: int, figures: dict[str, Any]) -> None:  # noqa: B027 - most have nothing to show
        """After the measurement, while all is still connected. Raises NoFiguresError."""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def rss_kib(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text().split()
        return int(status[status.index("VmRSS:") + 1])

    def spawn(self, folder: Path, words: list[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "server.log"
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(words, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        settle(self.pid, SERVER_CORE, self.nice)
        deadline = time.monotonic() + START_S
        while not _listens(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NoFiguresError(f"{self.name} did not start: {self.tail()}")
            time.sleep(0.02)

    def tail(self) -> str:
        return self._log.read_text(errors="replace")[-600:] if self._log and self._log.exists() else ""

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class OnTcpBus(Target):
    """Servers without Redis: events come over the TCP bus of c/limit.c, sockets ask for a channel by the query."""

    def __init__(self) -> None:
        super().__init__()
        self.bus_port = free_port()

    def dialogue(self, sockets: int, channels: int) -> Dialogue:
        return Dialogue(self.port, f"/ws?channel={CHANNEL}")

    def publishing(self, payload: bytes) -> Publishing:
        return Publishing(self.bus_port, framed(CHANNEL, payload))


class Limit(OnTcpBus):
    name = "limit"
    flags: ClassVar[list[str]] = []

    def start(self, folder: Path, channels: int) -> None:
        self.spawn(folder, [str(BUILD / "limit"), *self.flags, str(self.port), str(self.bus_port)])


class LimitBatched(Limit):
    name = "limit-batched"
    flags: ClassVar[list[str]] = ["--batched"]


class OnRedis(Target):
    """Servers that get their events from a Redis of their own, on the client's processor."""

    def __init__(self) -> None:
        super().__init__()
        self.redis: RedisServer | None = None

    def start_redis(self, folder: Path) -> RedisServer:
        self.redis = RedisServer("redis", folder / "redis")
        self.redis.start()
        settle(self.redis.pid, CLIENT_CORE, self.nice)
        return self.redis

    def publishing(self, payload: bytes) -> Publishing:
        assert self.redis is not None
        return Publishing(self.redis.port, redis_command("PUBLISH", *self.message(payload)))

    def message(self, payload: bytes) -> tuple[str, bytes]:
        """Channel and bytes of an event."""
        return BUS_CHANNEL, wrapped(payload)

    def stop(self) -> None:
        super().stop()
        if self.redis is not None:
            self.redis.stop()
            self.redis.forget()


class Reference(OnRedis):
    name = "reference"

    def start(self, folder: Path, channels: int) -> None:
        redis = self.start_redis(folder)
        self.spawn(folder, [sys.executable, str(HERE / "reference.py"), str(self.port), redis.url(), KEY])

    def dialogue(self, sockets: int, channels: int) -> Dialogue:
        tokens = tuple(token(number % channels, number) for number in range(sockets))
        script = ("--say", subscribe_message(), "--wait", '"success":true')
        return Dialogue(self.port, f"/ws?token={TOKEN}", script, tokens=tokens)


class Livetape(OnRedis):
    """Everything on, and shown to be on: tokens, permissions, numbers and metrics. Events are recorded durably."""

    name = "livetape"
    epoch = "bench"
    # A limit only: with one channel for a thousand sockets they all belong to one user.
    command = (
        "env LIVETAPE_BUS={bus} LIVETAPE_JWT_VERIFY_KEY={key} LIVETAPE_GATEWAY__MAX_SOCKETS_PER_USER=20000 "
        "LIVETAPE_APP_ENV=prod LIVETAPE_ENABLE_METRICS=true LIVETAPE_LOG_LEVEL=warning "
        f"{shlex.quote(sys.executable)} -m livetape serve gateway --port {{port}}"
    )

    def prepare(self) -> None:
        try:
            backend = open_backend("redis://127.0.0.1:1")
        except ImportError as error:
            raise UnavailableError(f"the Redis adapter cannot be imported yet: {error}") from None
        if backend.log is None or backend.recorder is None:
            raise UnavailableError("the Redis adapter has no log or no recorder yet")

    def start(self, folder: Path, channels: int) -> None:
        redis = self.start_redis(folder)
        self.channels = channels
        asyncio.run(self._create_tapes(redis.url(), channels))
        self.spawn(folder, shlex.split(self.command.format(port=self.port, bus=redis.url(), key=KEY)))
        require_everything_on(self.port)

    async def _create_tapes(self, url: str, channels: int) -> None:
        backend = open_backend(url)
        try:
            assert backend.log is not None
            for number in range(channels):
                user, execution = numbered(USER_ID, number), numbered(EXECUTION_ID, number)
                channel = execution_channel(user, GRAPH_ID, execution)
                await backend.log.create(
                    execution_tape(execution), owner=user, channel=channel, graph_id=GRAPH_ID, epoch=self.epoch
                )
        finally:
            await backend.close()

    def dialogue(self, sockets: int, channels: int, since: object = None) -> Dialogue:
        tokens = tuple(token(number % channels, number) for number in range(sockets))
        done = '"replay_complete"' if since else '"success":true'
        script = ("--say", subscribe_message(since), "--wait", done)
        return Dialogue(self.port, f"/ws?token={TOKEN}", script, tokens=tokens, contains='"offset":')

    def publishing(self, payload: bytes) -> Publishing:
        """Durable events, numbered by the load client: the tapes end where its numbers begin.

        Appending them, too, would measure Redis: its script takes several times what a delivery takes.
        """
        assert self.redis is not None
        for number in range(self.channels):
            tape = execution_tape(numbered(EXECUTION_ID, number))
            self.redis.cli("HSET", f"{{{tape}}}:meta", "offset", str(FIRST_OFFSET - 1))
        envelope = Envelope(payload, EVENT_TYPE, int(OFFSET), self.epoch)
        return Publishing(self.redis.port, redis_command("PUBLISH", BUS_CHANNEL, envelope.encode()))

    async def record(self, payload: bytes, channels: int, events: int) -> None:
        """So many events on each tape."""
        assert self.redis is not None
        backend = open_backend(self.redis.url())
        try:
            assert backend.recorder is not None
            for _ in range(events):
                await asyncio.gather(
                    *(
                        backend.recorder.record(
                            execution_tape(numbered(EXECUTION_ID, number)),
                            numbered(BUS_CHANNEL, number),
                            NewEvent(EVENT_TYPE, numbered(payload.decode(), number).encode()),
                        )
                        for number in range(channels)
                    )
                )
        finally:
            await backend.close()

    def check(self, sockets: int, figures: dict[str, Any]) -> None:
        if figures.get("without"):
            raise NoFiguresError(f"{figures['without']} events came without an offset")
        text = metrics_of(self.port)
        connected = sample_of(text, "livetape_websocket_connections_total")
        if connected != sockets:
            raise NoFiguresError(f"/metrics counts {connected:.0f} of {sockets} sockets")
        counted = sample_of(text, "livetape_gateway_deliveries_total")
        if counted < figures.get("all_deliveries", 0):
            raise NoFiguresError(f"/metrics counts {counted} deliveries, {figures['all_deliveries']} came")


class LivetapeDirect(OnTcpBus):
    """The same gateway without Redis: events come over TCP and are numbered in its process."""

    name = "livetape-direct"

    def start(self, folder: Path, channels: int) -> None:
        bus = f"direct://127.0.0.1:{self.bus_port}"
        self.spawn(folder, [sys.executable, str(HERE / "livetape_server.py"), str(self.port), bus, KEY])
        require_everything_on(self.port)

    def dialogue(self, sockets: int, channels: int) -> Dialogue:
        return Livetape.dialogue(self, sockets, channels)  # type: ignore[arg-type]

    def publishing(self, payload: bytes) -> Publishing:
        return Publishing(self.bus_port, framed(BUS_CHANNEL, payload))

    def check(self, sockets: int, figures: dict[str, Any]) -> None:
        Livetape.check(self, sockets, figures)  # type: ignore[arg-type]


# ---- that nothing is switched off -----------------------------------------------------------------------------------

_seen: set[str] = set()


def require_everything_on(port: int) -> None:
    """A figure of a gateway with its safety off is worth nothing. Looked at once for each kind of server.

    Raises:
        NoFiguresError: callers without a token are let in, or foreign executions are.
    """
    if Livetape.command in _seen:
        return
    url = f"ws://127.0.0.1:{port}/ws"
    for query, code in (("", 4001), ("?token=nonsense", 4003)):
        with connect(url + query) as socket_:
            try:
                socket_.recv(timeout=10)
            except websockets.ConnectionClosed as closed:
                if closed.rcvd is None or closed.rcvd.code != code:
                    raise NoFiguresError(f"a bad token was answered with {closed}") from None
            else:
                raise NoFiguresError("a caller without a good token was let in")
    with connect(f"{url}?token={token(1, 0)}") as socket_:
        strict = {"graph_exec_id": numbered(EXECUTION_ID, 0), "strict": True}
        socket_.send(json.dumps({"method": "subscribe_graph_execution", "data": strict}))
        answer = json.loads(socket_.recv(timeout=10))
        if answer["method"] != "error":
            raise NoFiguresError(f"a foreign execution was answered with {answer}")
    _seen.add(Livetape.command)


def metrics_of(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def sample_of(text: str, name: str) -> float:
    """The sum over all labels."""
    lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] == name]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


TARGETS: dict[str, Callable[[], Target]] = {
    target.name: target for target in (Limit, LimitBatched, Reference, Livetape, LivetapeDirect)
}
