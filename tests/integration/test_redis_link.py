"""The link to a Redis under real faults: it comes back by itself, and nothing that was lost is kept quiet."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis.asyncio

from livetape.adapters.redis.bus import RedisBus
from livetape.adapters.redis.client import ClientCommands
from livetape.adapters.redis.commands import RedisLinkError, RedisReplyError
from livetape.adapters.redis.dial import Dialer
from livetape.adapters.redis.endpoint import Endpoint
from livetape.adapters.redis.locate import locator_of
from livetape.adapters.redis.pipeline import PipelinedCommands
from livetape.errors import BusError, BusUnavailableError, ChannelError
from livetape.events.bus import BusMessage, Subscription
from livetape.events.open import open_backend
from livetape.testing.conformance.bus import Collected
from servers import RedisServer, running

pytestmark = [pytest.mark.needs("redis"), pytest.mark.serial]

PROBE_S = 0.2
REPLY_S = 0.5
PATIENCE_S = 10.0


class Counts:
    """A Metrics that can be asked."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        self.values[name] = self.values.get(name, 0) + amount

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self.values[name] = value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        self.values[name] = self.values.get(name, 0) + 1


@contextlib.asynccontextmanager
async def opened(
    url: str, *, add_s: float = PATIENCE_S, metrics: Counts | None = None, max_messages: int = 10_000
) -> AsyncIterator[RedisBus]:
    """A bus with short times, and its own commands."""
    endpoint = replace(Endpoint.from_url(url), connect_s=REPLY_S, reply_s=REPLY_S)
    commands = PipelinedCommands(Dialer(endpoint, locator_of(endpoint)))
    dialer = Dialer(endpoint, locator_of(endpoint), name="listener")
    bus = RedisBus(commands, dialer, add_s=add_s, probe_s=PROBE_S, metrics=metrics, max_messages=max_messages)
    try:
        yield bus
    finally:
        await bus.close()
        await commands.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.01)


async def following(subscription: Subscription) -> BusMessage:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(aiter(subscription))


async def expect_gap(subscription: Subscription) -> None:
    while True:
        message = await following(subscription)
        if message.gap:
            assert message == BusMessage("", b"", gap=True)
            return


async def published(bus: RedisBus, channel: str, data: bytes) -> None:
    """Once, when the server is there again."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(BusUnavailableError):
                await bus.publish(channel, data)
                return
            await asyncio.sleep(0.05)


async def subscribed(bus: RedisBus, *patterns: str) -> Subscription:
    """When the server is there again."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(BusUnavailableError):
                return await bus.subscribe(*patterns)


async def works_again(bus: RedisBus, subscription: Subscription) -> None:
    await expect_gap(subscription)
    assert bus.state == "listening"
    await published(bus, "t/a", b"again")
    assert await following(subscription) == BusMessage("t/a", b"again")


async def test_a_sink_gets_the_marker_before_all_that_follows(own_redis: RedisServer) -> None:
    got = Collected()
    async with opened(own_redis.url()) as bus, await bus.subscribe("t/a", "t/*", sink=got):
        await published(bus, "t/a", b"before")
        async with asyncio.timeout(PATIENCE_S):
            await got.reaches(1)
        own_redis.kill()
        own_redis.start()
        for number in range(20):
            await published(bus, "t/a", b"%d" % number)
        async with asyncio.timeout(PATIENCE_S):
            while b"19" not in got.data:
                await got.reaches(len(got.messages) + 1)
        markers = [at for at, message in enumerate(got.messages) if message.gap]
        assert markers == [1]
        assert got.messages[1] == BusMessage("", b"", gap=True)
        after = [int(data) for data in got.data[2:]]
        assert after == list(range(after[0], 20)), "what is missing is missing before the marker"


async def test_down_at_the_start(own_redis: RedisServer) -> None:
    own_redis.kill()
    async with opened(own_redis.url(), add_s=0.3) as bus:
        begun = time.monotonic()
        with pytest.raises(BusUnavailableError, match="cannot connect to 127"):
            await bus.subscribe("t/a", "t/*")
        assert 0.2 < time.monotonic() - begun < 2
        with pytest.raises(BusUnavailableError, match="cannot connect to 127"):
            await bus.publish("t/a", b"x")
        assert bus.state == "connecting"
        assert bus.problem
        own_redis.start()
        subscription = await subscribed(bus, "t/b")
        await published(bus, "t/a", b"was not kept")
        await bus.publish("t/b", b"x")
        assert await following(subscription) == BusMessage("t/b", b"x"), "and no marker: nothing was lost"
        assert bus.state == "listening"
        assert bus.problem == ""


async def test_a_subscriber_waits_for_a_server_that_comes(own_redis: RedisServer) -> None:
    own_redis.kill()
    async with opened(own_redis.url()) as bus:
        adding = asyncio.ensure_future(bus.subscribe("t/a"))
        await asyncio.sleep(0.2)
        own_redis.start()
        subscription = await adding
        await published(bus, "t/a", b"x")
        assert (await following(subscription)).data == b"x"


@pytest.mark.slow
async def test_killed_under_load_and_started_again(own_redis: RedisServer) -> None:
    metrics = Counts()
    async with opened(own_redis.url(), metrics=metrics) as bus:
        subscription = await bus.subscribe("t/a", "t/*", "u/x*")
        told: list[int] = []
        tried = 0
        stop = asyncio.Event()

        async def load() -> None:
            nonlocal tried
            while not stop.is_set():
                tried += 1
                with contextlib.suppress(BusUnavailableError):
                    await bus.publish("t/a", b"%d" % tried)
                await asyncio.sleep(0.001)

        async def listen() -> None:
            async for message in subscription:
                number = -1 if message.gap else int(message.data)
                told.append(number)

        tasks = [asyncio.ensure_future(load()), asyncio.ensure_future(listen())]
        for round_ in (1, 2):
            await until(lambda: len(told) > 50)
            own_redis.kill()
            await until(lambda: bus.state == "lost")
            await asyncio.sleep(0.3)
            own_redis.start()
            await until(lambda number=round_: told.count(-1) >= number)
            seen = len(told)
            await until(lambda number=seen: len(told) > number + 50)
        stop.set()
        await tasks[0]
        tasks[1].cancel()
        await asyncio.wait(tasks)
        numbers = [number for number in told if number > 0]
        assert numbers == sorted(set(numbers)), "in order, each once"
        runs = " ".join(str(n) if n > 0 else "|" for n in told).split("|")
        for run in runs:
            inside = [int(word) for word in run.split()]
            assert inside == list(range(inside[0], inside[0] + len(inside))), "nothing missing but at a marker"
        await bus.close()
        assert metrics.values["bus_reconnects_total"] == 2
        assert metrics.values["bus_messages_total"] == len(numbers)
        assert metrics.values["bus_published_total"] == tried


@pytest.mark.slow
async def test_a_paused_server_is_noticed(own_redis: RedisServer) -> None:
    async with opened(own_redis.url()) as bus:
        subscription = await bus.subscribe("t/a")
        await bus.publish("t/a", b"x")
        assert (await following(subscription)).data == b"x"
        own_redis.pause()
        try:
            begun = time.monotonic()
            with pytest.raises(BusUnavailableError, match="no answer"):
                await bus.publish("t/a", b"y")
            assert time.monotonic() - begun < 2
            await until(lambda: bus.state == "lost")
            assert bus.link_age() > PROBE_S
            await asyncio.sleep(max(0.0, 3 - (time.monotonic() - begun)))
        finally:
            own_redis.resume()
        await works_again(bus, subscription)


async def test_a_killed_connection_comes_back(own_redis: RedisServer) -> None:
    async with opened(own_redis.url()) as bus:
        subscription = await bus.subscribe("t/a", "t/*")
        own_redis.cli("CLIENT", "KILL", "TYPE", "pubsub")
        await works_again(bus, subscription)
        own_redis.cli("CLIENT", "KILL", "TYPE", "normal")
        await published(bus, "t/a", b"x")
        assert (await following(subscription)).data == b"x"


async def test_a_wrong_password(own_redis: RedisServer) -> None:
    own_redis.cli("CONFIG", "SET", "requirepass", "right-one")
    async with opened(own_redis.url(credentials=":wr0ng-one@"), add_s=0.3) as bus:
        begun = time.monotonic()
        for call in (lambda: bus.publish("t/a", b"x"), lambda: bus.subscribe("t/a")):
            with pytest.raises(BusError, match="refused the login") as caught:
                await call()
            assert "wr0ng-one" not in str(caught.value)
        assert time.monotonic() - begun < 2
    async with opened(own_redis.url(), add_s=0.3) as bus:
        with pytest.raises(BusError, match="NOAUTH"):
            await bus.publish("t/a", b"x")
    async with opened(own_redis.url(credentials=":right-one@")) as bus:
        assert await bus.publish("t/a", b"x") == 0


class Proxy:
    """Carries bytes between a client and a server, until it silently stops: a half-open connection for both."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._start(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.wait(tuple(self._tasks))
        self._listener.close()

    def stall(self) -> None:
        self._open.clear()

    def carry_on(self) -> None:
        self._open.set()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while True:
            near, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            self._start(self._serve(near))

    async def _serve(self, near: socket.socket) -> None:
        with near, socket.socket() as far:
            far.setblocking(False)
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await asyncio.get_running_loop().sock_connect(far, ("127.0.0.1", self._target))
                async with asyncio.TaskGroup() as ways:
                    ways.create_task(self._carry(near, far))
                    ways.create_task(self._carry(far, near))

    async def _carry(self, source: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(source, 65536):
                await self._open.wait()
                await loop.sock_sendall(target, data)
            await self._open.wait()
            target.shutdown(socket.SHUT_WR)


@pytest.mark.slow
async def test_a_half_open_connection_is_noticed(own_redis: RedisServer) -> None:
    async with Proxy(own_redis.port) as proxy, opened(f"redis://127.0.0.1:{proxy.port}") as bus:
        subscription = await bus.subscribe("t/a")
        proxy.stall()
        await until(lambda: bus.state == "lost")
        with pytest.raises(BusUnavailableError):
            await bus.publish("t/a", b"x")
        proxy.carry_on()
        await works_again(bus, subscription)


async def test_a_read_only_replica(own_redis: RedisServer) -> None:
    async with opened(own_redis.url()) as bus:
        own_redis.cli("REPLICAOF", "127.0.0.1", 1)
        subscription = await bus.subscribe("t/a")
        await bus.publish("t/a", b"x")
        assert (await following(subscription)).data == b"x", "a replica carries messages to those who listen there"
        with pytest.raises(RedisReplyError) as caught:
            await bus._commands.send(("SET", "a", "b"), "a")
        assert caught.value.code == "READONLY"


@pytest.mark.parametrize("own_redis", [{"maxmemory": "1mb", "maxmemory-policy": "noeviction"}], indirect=True)
async def test_a_full_server(own_redis: RedisServer) -> None:
    async with opened(own_redis.url()) as bus:
        subscription = await bus.subscribe("t/a")
        with pytest.raises(RedisReplyError) as caught:
            await bus._commands.send(("SET", "a", b"x" * 100_000), "a")
        assert caught.value.code == "OOM"
        await bus.publish("t/a", b"x")
        assert (await following(subscription)).data == b"x"


@pytest.mark.slow
async def test_a_quiet_channel_stays_healthy(own_redis: RedisServer) -> None:
    metrics = Counts()
    async with opened(own_redis.url(), metrics=metrics) as bus:
        subscription = await bus.subscribe("t/a")
        for _ in range(15):
            await asyncio.sleep(PROBE_S)
            assert bus.state == "listening"
            assert bus.link_age() < 3 * PROBE_S
        await bus.publish("t/a", b"x")
        assert await following(subscription) == BusMessage("t/a", b"x")
        assert "bus_reconnects_total" not in metrics.values
        assert metrics.values["bus_link_age_seconds"] < 3 * PROBE_S


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["&t/* +@all", "&t/* +@all -publish", "&t/* +@all -hello"])
async def test_a_user_without_the_probe_channel(own_redis: RedisServer, rules: str) -> None:
    own_redis.cli("ACL", "SETUSER", "me", "on", ">pw", "resetchannels", "~*", *rules.split())
    async with opened(own_redis.url(credentials="me:pw@")) as bus, opened(own_redis.url()) as other:
        subscription = await bus.subscribe("t/a", "t/*")
        await asyncio.sleep(4 * PROBE_S)
        assert bus.state == "listening"
        await other.publish("t/a", b"x")
        assert await following(subscription) == BusMessage("t/a", b"x")
        with pytest.raises(ChannelError, match="may not listen"):
            await subscription.add("secret/a")
        with pytest.raises(ChannelError, match="may not publish"):
            await bus.publish("secret/a", b"x")
        own_redis.pause()
        await until(lambda: bus.state == "lost")
        own_redis.resume()
        await expect_gap(subscription)
        await other.publish("t/a", b"again")
        assert await following(subscription) == BusMessage("t/a", b"again")


@pytest.fixture
def old_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """It knows no HELLO, as all before version 6."""
    (tmp_path / "extra.conf").write_text('rename-command HELLO ""\n')
    with running(RedisServer("redis", tmp_path / "redis", include=str(tmp_path / "extra.conf"))) as server:
        yield server


async def test_a_server_without_hello(old_redis: RedisServer) -> None:
    old_redis.cli("CONFIG", "SET", "requirepass", "pw")
    async with opened(old_redis.url(2, credentials=":pw@")) as bus:
        subscription = await bus.subscribe("t/a", "t/*")
        await asyncio.sleep(3 * PROBE_S)
        await bus.publish("t/a", b"x")
        assert await following(subscription) == BusMessage("t/a", b"x")
        await subscription.remove("t/a", "t/*")
        await asyncio.sleep(3 * PROBE_S)
        assert bus.state == "listening"
        await subscription.add("t/b")
        await bus.publish("t/b", b"y")
        assert await following(subscription) == BusMessage("t/b", b"y")


async def test_the_answers_after_a_loss_are_truthful(own_redis: RedisServer) -> None:
    endpoint = replace(Endpoint.from_url(own_redis.url()), connect_s=REPLY_S, reply_s=REPLY_S)
    commands = PipelinedCommands(Dialer(endpoint, locator_of(endpoint)), patience_s=0.2)
    assert await commands.send(("INCR", "n"), "n") == 1
    own_redis.pause()
    waiting = asyncio.ensure_future(commands.send(("INCR", "n"), "n"))
    with pytest.raises(RedisLinkError) as caught:
        await waiting
    assert caught.value.sent
    own_redis.kill()
    with pytest.raises(RedisLinkError) as caught:
        await commands.send(("INCR", "n"), "n")
    assert not caught.value.sent
    begun = time.monotonic()
    await asyncio.sleep(0.3)
    for _ in range(20):
        with pytest.raises(RedisLinkError) as caught:
            await commands.send(("INCR", "n"), "n")
        assert not caught.value.sent
    assert time.monotonic() - begun < 4, "a server that is away does not hold up everybody for long"
    own_redis.start()
    answers: list[object] = []
    async with asyncio.timeout(PATIENCE_S):
        while not answers:
            with contextlib.suppress(RedisLinkError):
                answers.append(await commands.send(("INCR", "n"), "n"))
            await asyncio.sleep(0.05)
    assert answers == [1]
    await commands.close()
    with pytest.raises(RedisLinkError, match="closed"):
        await commands.send(("PING",))


async def test_a_busy_loop_is_no_server_that_is_away(redis_url: str) -> None:
    endpoint = Endpoint.from_url(redis_url)
    commands = PipelinedCommands(Dialer(endpoint, locator_of(endpoint)), patience_s=0.1)
    answer = commands.send(("PING",))
    for _ in range(6):
        time.sleep(0.05)  # others on the loop take their time, while the connection is made
        await asyncio.sleep(0)
    assert await answer == b"PONG"
    await commands.close()


async def test_commands_leave_in_order_and_many_at_once(own_redis: RedisServer) -> None:
    endpoint = Endpoint.from_url(own_redis.url())
    commands = PipelinedCommands(Dialer(endpoint, locator_of(endpoint)), patience_s=PATIENCE_S)
    answers = await asyncio.gather(*(commands.send(("APPEND", "k", b"%05d" % n), "k") for n in range(20_000)))
    assert answers == [5 * (n + 1) for n in range(20_000)]
    big = [commands.send(("SET", f"big{n}", b"x" * 3_000_000), f"big{n}") for n in range(10)]
    assert await asyncio.gather(*big) == [b"OK"] * 10
    assert len(await commands.send(("GET", "k"), "k")) == 100_000
    await commands.close()


async def test_what_waits_is_bounded(own_redis: RedisServer) -> None:
    endpoint = replace(Endpoint.from_url(own_redis.url()), reply_s=REPLY_S)
    dialer = Dialer(endpoint, locator_of(endpoint), max_queued_bytes=1_000_000)
    commands = PipelinedCommands(dialer, max_queued_bytes=1_000_000)
    await commands.send(("PING",))
    own_redis.pause()
    answers = [asyncio.ensure_future(commands.send(("SET", "k", b"x" * 100_000), "k")) for _ in range(300)]
    await asyncio.wait(answers)
    own_redis.resume()
    errors = [answer.exception() for answer in answers]
    unsent = [error for error in errors if isinstance(error, RedisLinkError) and not error.sent]
    assert any("wait to be sent" in str(error) for error in unsent)
    assert all(isinstance(error, RedisLinkError) for error in errors)
    await commands.close()


async def test_one_connection_listens_for_all(own_redis: RedisServer) -> None:
    async with opened(own_redis.url()) as bus:
        many = [await bus.subscribe(f"t/{n % 10}", "t/*") for n in range(50)]
        assert own_redis.cli("CLIENT", "LIST", "TYPE", "pubsub").count("name=listener") == 1
        assert own_redis.cli("PUBSUB", "NUMPAT") == ":1"
        assert own_redis.cli("PUBSUB", "CHANNELS", "t/*").count("t/") == 10
        for subscription in many:
            await subscription.close()
        assert own_redis.cli("PUBSUB", "CHANNELS", "t/*").count("t/") == 0
        assert own_redis.cli("PUBSUB", "NUMPAT") == ":0"


async def test_a_cancelled_add_leaves_nothing(own_redis: RedisServer) -> None:
    async with opened(own_redis.url()) as bus:
        subscription = await bus.subscribe("t/a")
        own_redis.pause()
        adding = asyncio.ensure_future(subscription.add("t/b"))
        await asyncio.sleep(0.05)
        adding.cancel()
        await asyncio.wait([adding])
        own_redis.resume()
        await subscription.add("t/c")
        assert await bus.publish("t/b", b"x") == 0
        await bus.publish("t/c", b"y")
        assert await following(subscription) == BusMessage("t/c", b"y")


async def test_a_client_of_the_caller_tells_what_the_server_says(own_redis: RedisServer) -> None:
    async with redis.asyncio.Redis.from_url(own_redis.url(), decode_responses=True) as client:
        commands = ClientCommands(client)
        assert await commands.send(("XADD", "s", "1-0", "f", b"\xff"), "s") == b"1-0"
        assert await commands.send(("XRANGE", "s", "-", "+"), "s") == [[b"1-0", [b"f", b"\xff"]]]
        assert await asyncio.gather(*(commands.send(("INCR", "n"), "n") for _ in range(100))) == list(range(1, 101))
        for words, code in ((("EVALSHA", "0" * 40, 0), "NOSCRIPT"), (("NOSUCH",), "ERR"), (("INCR", "s"), "WRONGTYPE")):
            with pytest.raises(RedisReplyError) as caught:
                await commands.send(words, "k")
            assert caught.value.code == code
        waiting = asyncio.ensure_future(commands.send(("BLPOP", "nothing", 0), "k"))
        await asyncio.sleep(0.05)
        await commands.close()
        with pytest.raises(RedisLinkError):
            await waiting
        assert await client.ping(), "it stays the caller's"


def test_a_loop_that_ends_leaves_nothing_open(own_redis: RedisServer) -> None:
    async def forget() -> None:
        backend = open_backend(own_redis.url())
        await backend.bus.subscribe("t/a")
        await backend.bus.publish("t/a", b"x")

    asyncio.run(forget())


def test_it_works_on_uvloop(own_redis: RedisServer) -> None:
    import uvloop

    async def use() -> None:
        async with opened(own_redis.url()) as bus:
            subscription = await bus.subscribe("t/a", "t/*")
            await asyncio.gather(*(bus.publish("t/a", b"%d" % number) for number in range(1000)))
            got = [(await following(subscription)).data for _ in range(1000)]
            assert got == [b"%d" % number for number in range(1000)]
            own_redis.cli("CLIENT", "KILL", "TYPE", "pubsub")
            await works_again(bus, subscription)
        backend = open_backend(own_redis.url())
        await backend.bus.subscribe("t/a")
        await backend.bus.publish("t/a", b"forgotten")

    uvloop.run(use())
