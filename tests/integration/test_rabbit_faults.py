"""RabbitMQ that is killed, paused, cut off, or out of memory: nothing hangs, and everything goes on by itself."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chaos.proxy import Proxy
from livetape.adapters.rabbitmq.connection import broker_errors
from livetape.adapters.rabbitmq.open import RabbitPorts, from_url
from livetape.adapters.rabbitmq.topology import Topology
from livetape.adapters.sql.database import SqliteDatabase
from livetape.adapters.sql.migrate import migrate
from livetape.adapters.sql.queue import SqlQueue
from livetape.adapters.sqlite.readers import Readers
from livetape.adapters.sqlite.writer import Writer
from livetape.cli.checks import check_queue
from livetape.engine.forwarder import Forwarder
from livetape.engine.graph import Graph
from livetape.engine.queue import Delivery, Doorbell, Queue
from livetape.errors import QueueUnavailableError
from livetape.events.executions import ExecutionStatus
from livetape.examples import example_graphs
from livetape.runtime import Engine, open_engine
from livetape.settings import Settings
from rabbit import RabbitServer, running

pytestmark = [pytest.mark.needs("rabbitmq"), pytest.mark.slow, pytest.mark.heavy]

AWAY_S = 2.0
LONG_AWAY_S = 30.0
"""What the broker may be away without anybody noticing more than a delay; put it for AWAY_S to see."""

PATIENCE_S = 1.5
AT_ONCE_S = 3 * PATIENCE_S + 10
"""What a call may take that says that the broker is away: connecting and declaring, then the call itself. And a machine
that has other work: what is not said in time is never said."""

WRITES_S = 4.0
"""What is written into the database does not wait for a broker that is away, and stays away meanwhile."""

BACK_S = 60.0
"""A broker that starts again on a busy machine."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """One for this file. A test that stops it starts it again."""
    with running(RabbitServer(tmp_path_factory.mktemp("rabbitmq"))) as server, ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, made_for_engines(server)).result()
        yield server


async def made_for_engines(server: RabbitServer) -> None:
    """The queues of engines are there, and on disk: it confirmed a message that came after them.

    A broker that is killed in the milliseconds in which it makes a queue may have no leader for that queue ever after
    (docs/howto/rabbitmq.md), and an engine makes queues whenever it likes. So those of a test are made before a kill.
    """
    ports = from_url(server.url)
    await confirmed(ports.queue)
    await ports.close()


async def confirmed(queue: Queue) -> None:
    await queue.put(Doorbell("nobody"))
    (delivery,) = await taken(queue)
    await queue.ack(delivery)


@pytest.fixture
async def open_ports(server: RabbitServer, request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., RabbitPorts]]:
    opened: list[RabbitPorts] = []

    def open_ports(port: int = server.port, **options: Any) -> RabbitPorts:
        topology = Topology(f"{request.node.name}.")
        url = server.url_at(port, "?heartbeat=1")
        opened.append(from_url(url, **{"topology": topology, "patience_s": PATIENCE_S, **options}))
        return opened[-1]

    yield open_ports
    for ports in opened:
        await ports.close()


OpenPorts = Callable[..., RabbitPorts]


async def taken(queue: Queue, limit: int = 10, *, seconds: float = BACK_S) -> list[Delivery]:
    async with asyncio.timeout(seconds):
        return await queue.take(limit)


async def rung(queue: Queue, wanted: set[str]) -> set[str]:
    """What it brought, acknowledged, until all that was wanted has come."""
    seen: set[str] = set()
    while not wanted <= seen:
        for delivery in await taken(queue):
            seen.add(delivery.doorbell.graph_exec_id)
            await queue.ack(delivery)
    return seen


async def away(call: Awaitable[object]) -> None:
    """It says so, in time."""
    async with asyncio.timeout(AT_ONCE_S):
        with pytest.raises(QueueUnavailableError):
            await call


async def put_at_last(queue: Queue, bell: Doorbell) -> None:
    async with asyncio.timeout(BACK_S):
        while True:
            try:
                return await queue.put(bell)
            except QueueUnavailableError:
                await asyncio.sleep(0.1)


async def in_thread(call: Callable[[], object]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, call)


# ---- killed ----------------------------------------------------------------------------------------------------------


async def test_a_broker_that_is_killed_keeps_what_it_confirmed(server: RabbitServer, open_ports: OpenPorts) -> None:
    queue = open_ports().queue
    for n in range(20):
        await queue.put(Doorbell(f"e{n}", enqueue_no=n))
    await queue.put(Doorbell("later"), delay_s=1)
    (held, *_) = await taken(queue, 1)
    await in_thread(server.kill)
    await away(queue.put(Doorbell("refused")))
    await away(queue.depth())
    async with asyncio.timeout(AT_ONCE_S):
        await queue.ack(held)  # lost: it comes again
        await queue.nack(held, delay_s=1)
    waiting = asyncio.ensure_future(queue.take(5))
    await asyncio.sleep(AWAY_S)
    assert not waiting.done()
    await in_thread(server.start)
    seen = {delivery.doorbell.graph_exec_id for delivery in await asyncio.wait_for(waiting, BACK_S)}
    confirmed_before = {"later", *(f"e{n}" for n in range(20))}
    seen |= await rung(queue, confirmed_before - seen)
    assert seen - {"refused"} == confirmed_before


async def test_who_waits_for_a_doorbell_waits_on(server: RabbitServer, open_ports: OpenPorts) -> None:
    """At consume: the broker goes and comes while a worker has nothing to do."""
    taking, putting = open_ports().queue, open_ports().queue
    await confirmed(putting)
    waiting = asyncio.ensure_future(taking.take(1))
    await asyncio.sleep(0.5)
    await in_thread(server.kill)
    await asyncio.sleep(AWAY_S)
    await in_thread(server.start)
    await put_at_last(putting, Doorbell("e"))
    assert [delivery.doorbell for delivery in await asyncio.wait_for(waiting, BACK_S)] == [Doorbell("e")]
    assert not taking.problem


async def test_nothing_need_be_there_at_the_start(server: RabbitServer, open_ports: OpenPorts) -> None:
    await in_thread(server.kill)
    ports = open_ports()
    ready, heard = asyncio.Event(), asyncio.Event()
    listening = asyncio.create_task(ports.hints.listen(lambda _: heard.set(), ready))
    await asyncio.wait_for(ready.wait(), AT_ONCE_S)  # it is not waited for
    async with asyncio.timeout(AT_ONCE_S):  # nor here
        await ports.hints.send("e")
    waiting = asyncio.ensure_future(ports.queue.take(1))
    await asyncio.sleep(0.5)
    assert "connect" in ports.queue.problem
    await in_thread(server.start)
    await put_at_last(ports.queue, Doorbell("e"))
    assert await asyncio.wait_for(waiting, BACK_S)
    async with asyncio.timeout(BACK_S):
        while not heard.is_set():
            await ports.hints.send("e")
            await asyncio.sleep(0.1)
    listening.cancel()
    await asyncio.wait({listening})


ELECT = """[ra:trigger_election(amqqueue:get_pid(Q)) ||
    Q <- rabbit_amqqueue:list(), amqqueue:get_type(Q) =:= rabbit_quorum_queue]."""
"""What docs/howto/rabbitmq.md advises where queues have no leader."""


async def test_queues_without_a_leader_go_on_when_one_is_elected(open_ports: OpenPorts, tmp_path: Path) -> None:
    """As a broker does that was killed when it had noted the queues and not yet begun with them."""
    page = (Path(__file__).parents[2] / "docs/howto/rabbitmq.md").read_text()
    assert ELECT in page
    with running(RabbitServer(tmp_path / "rabbitmq")) as server:
        queue = open_ports(server.port).queue
        await confirmed(queue)
        await in_thread(server.kill)
        (begun,) = server.folder.glob("mnesia/*/quorum")
        shutil.rmtree(begun)
        await in_thread(server.start)
        waiting = asyncio.ensure_future(queue.take(1))
        async with asyncio.timeout(BACK_S):
            while "does not answer" not in queue.problem:
                await asyncio.sleep(0.02)
        await away(queue.put(Doorbell("e")))
        await in_thread(lambda: server.ctl("eval", ELECT))
        await put_at_last(queue, Doorbell("e"))
        assert await asyncio.wait_for(waiting, BACK_S)
        await in_thread(lambda: server.ctl("eval", ELECT))  # with leaders nothing changes
        await queue.put(Doorbell("after"))
        await rung(queue, {"after"})


# ---- silent and cut --------------------------------------------------------------------------------------------------


async def test_a_paused_broker_is_said_to_be_away_and_comes_back(server: RabbitServer, open_ports: OpenPorts) -> None:
    queue = open_ports().queue
    await queue.put(Doorbell("before"))
    (held,) = await taken(queue)
    server.pause()
    try:
        await away(queue.put(Doorbell("e")))
        await away(queue.depth())
        async with asyncio.timeout(AT_ONCE_S):
            await queue.ack(held)
        await asyncio.sleep(AWAY_S)
    finally:
        server.resume()
    await put_at_last(queue, Doorbell("after"))
    seen: set[str] = set()
    while "after" not in seen:
        for delivery in await taken(queue):
            seen.add(delivery.doorbell.graph_exec_id)
            await queue.ack(delivery)
    assert seen <= {"before", "e", "after"}


async def test_a_cut_connection_is_made_again_and_what_was_held_comes_again(
    server: RabbitServer, open_ports: OpenPorts
) -> None:
    async with Proxy(server.port) as proxy:
        queue = open_ports(proxy.port).queue
        await queue.put(Doorbell("held"))
        (held,) = await taken(queue)
        waiting = asyncio.ensure_future(queue.take(1))
        await asyncio.sleep(0.2)
        proxy.cut()
        (again,) = await asyncio.wait_for(waiting, BACK_S)
        assert again.doorbell == held.doorbell
        await queue.ack(held)  # the tag of a channel that is gone
        await queue.nack(held)
        await queue.nack(again)
        (third,) = await taken(queue)
        await queue.ack(third)
        await put_at_last(queue, Doorbell("e"))
        assert [delivery.doorbell for delivery in await taken(queue)] == [Doorbell("e")]


async def test_a_network_that_falls_silent_is_noticed_at_every_call(
    server: RabbitServer, open_ports: OpenPorts
) -> None:
    async with Proxy(server.port) as proxy:
        ports = open_ports(proxy.port)
        queue = ports.queue
        await queue.put(Doorbell("held"))
        (held,) = await taken(queue)
        waiting = asyncio.ensure_future(queue.take(1))
        await asyncio.sleep(0.2)
        proxy.silent = True
        await away(queue.put(Doorbell("e")))
        async with asyncio.timeout(AT_ONCE_S):
            await queue.ack(held)
        await asyncio.sleep(AWAY_S)
        proxy.silent = False
        await put_at_last(queue, Doorbell("after"))
        seen: set[str] = set()
        while "after" not in seen:
            for delivery in await asyncio.wait_for(waiting, BACK_S):
                seen.add(delivery.doorbell.graph_exec_id)
                await queue.ack(delivery)
            waiting = asyncio.ensure_future(queue.take(1))
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_who_waits_on_a_connection_that_another_gives_up_is_told_so(open_ports: OpenPorts) -> None:
    """The driver raises a bare `Exception` there, now and then."""
    publishing = open_ports().publishing
    channel = await (await publishing.get()).channel()
    answer = channel.create_future()
    publishing.drop()
    async with asyncio.timeout(AT_ONCE_S):
        with pytest.raises(QueueUnavailableError), broker_errors("cannot wait"):
            await answer


async def test_it_can_be_closed_at_every_moment(server: RabbitServer, open_ports: OpenPorts) -> None:
    """What the driver makes of a cancellation must not keep whoever takes doorbells alive."""
    moments = random.Random(1)
    for _ in range(40):
        ports = open_ports()
        await ports.taking.get()
        waiting = asyncio.create_task(ports.queue.take(1))
        await asyncio.sleep(moments.uniform(0, 0.04))
        waiting.cancel()
        await asyncio.wait({waiting})
        async with asyncio.timeout(10):
            await ports.close()


# ---- out of memory ---------------------------------------------------------------------------------------------------


async def test_a_broker_out_of_memory_takes_nothing_and_says_so(server: RabbitServer, open_ports: OpenPorts) -> None:
    ports = open_ports()
    queue = ports.queue
    await queue.put(Doorbell("before"))
    await in_thread(lambda: server.ctl("set_vm_memory_high_watermark", "0.000001"))
    try:
        await away(queue.put(Doorbell("e")))
        await away(queue.put(Doorbell("e")))
        (delivery,) = await taken(queue)  # taking goes on
        async with asyncio.timeout(AT_ONCE_S):
            await queue.nack(delivery)  # which is a message to put: kept, and given back later
            await ports.hints.send("e")
    finally:
        await in_thread(lambda: server.ctl("set_vm_memory_high_watermark", "0.4"))
    await put_at_last(queue, Doorbell("after"))
    seen: set[str] = set()
    while not {"before", "after"} <= seen:
        for delivery in await taken(queue):
            seen.add(delivery.doorbell.graph_exec_id)
            await queue.ack(delivery)


# ---- the table in front of the broker -------------------------------------------------------------------------------


@asynccontextmanager
async def table(path: Path) -> AsyncIterator[SqlQueue]:
    writer, readers = Writer(path), Readers(path)
    writer.open()
    try:
        database = SqliteDatabase(writer, readers)
        await database.write(migrate)
        yield SqlQueue(database)
    finally:
        readers.close()
        writer.close()


@asynccontextmanager
async def forwarding(*forwarders: Forwarder) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(forwarder.run()) for forwarder in forwarders]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)


async def test_what_was_written_while_the_broker_was_away_is_rung_when_it_is_back(
    server: RabbitServer, open_ports: OpenPorts, tmp_path: Path
) -> None:
    async with table(tmp_path / "doorbells.db") as doorbells:
        one, other = open_ports(), open_ports()
        forwarders = Forwarder(doorbells, one.queue), Forwarder(doorbells, other.queue)
        async with forwarding(*forwarders):
            await doorbells.put(Doorbell("first"))
            assert await taken(one.queue)
            await in_thread(server.kill)
            for n in range(20):
                async with asyncio.timeout(WRITES_S):
                    await doorbells.put(Doorbell(f"e{n}", priority=n % 2))
            await asyncio.sleep(AWAY_S)
            assert await doorbells.depth() == 20
            assert any("wait in the database" in forwarder.problem for forwarder in forwarders)
            await in_thread(server.start)
            await rung(other.queue, {f"e{n}" for n in range(20)})
            async with asyncio.timeout(BACK_S):
                while await doorbells.depth() or any(forwarder.problem for forwarder in forwarders):
                    await asyncio.sleep(0.1)


# ---- the whole engine ------------------------------------------------------------------------------------------------


async def over(engine: Engine, graph_exec_id: str) -> ExecutionStatus:
    async with asyncio.timeout(BACK_S):
        while True:
            row = await engine.store.get(graph_exec_id)
            if row.status.is_terminal:
                return row.status
            await asyncio.sleep(0.02)


async def test_executions_are_accepted_while_the_broker_is_away_and_run_when_it_is_back(
    server: RabbitServer, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path / "data", queue=server.url_at(server.port, "?heartbeat=1"))
    hello = next(graph for graph in map(Graph.model_validate, example_graphs()) if graph.name == "Hello")
    async with open_engine(settings) as engine:
        graph = await engine.graphs.create("u", hello)
        started = await engine.executions.start("u", graph.id, None, {})
        assert await over(engine, started.execution.id) is ExecutionStatus.COMPLETED
        assert engine.degraded() == []
        await in_thread(server.kill)
        accepted = []
        for _ in range(5):
            async with asyncio.timeout(WRITES_S):
                accepted.append((await engine.executions.start("u", graph.id, None, {})).execution)
        await asyncio.sleep(AWAY_S)
        assert engine.degraded() == ["queue"]
        assert {(await engine.store.get(meta.id)).status for meta in accepted} == {ExecutionStatus.QUEUED}
        async with asyncio.timeout(BACK_S):
            await engine.executions.stop("u", accepted[0].id)
        await in_thread(server.start)
        ends = [await over(engine, meta.id) for meta in accepted]
        assert ends == [ExecutionStatus.TERMINATED, *[ExecutionStatus.COMPLETED] * 4]


async def test_an_engine_starts_and_stops_without_the_broker(server: RabbitServer, tmp_path: Path) -> None:
    await in_thread(server.kill)
    settings = Settings(data_dir=tmp_path / "data", queue=server.url)
    async with asyncio.timeout(10):
        async with open_engine(settings) as engine:
            assert await engine.graph_store.count() == 0
    await in_thread(server.start)


async def test_doctor_and_readiness_say_whether_the_broker_answers_before_anything_is_started(
    server: RabbitServer, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path / "data", queue=server.url)

    async def seen(up: bool) -> None:
        async with asyncio.timeout(BACK_S):
            while (engine.degraded() == []) is not up:
                await asyncio.sleep(0.02)
        assert await engine.missing() == []  # what is started now is accepted, and waits in the database
        assert f"queue_up {float(up)}\n".encode() in engine.render_metrics()[0]

    async with open_engine(settings, works=False) as engine:
        good = await asyncio.to_thread(check_queue, settings)
        assert (good.status, "RabbitMQ " in good.found, "guest" in good.found) == ("ok", True, False)
        stranger = settings.model_copy(update={"queue": f"amqp://stranger:x@127.0.0.1:{server.port}"})
        assert (await asyncio.to_thread(check_queue, stranger)).status == "fail"
        await in_thread(server.kill)
        assert (await asyncio.to_thread(check_queue, settings)).status == "fail"
        await seen(up=False)
        await in_thread(server.start)
        await seen(up=True)
    assert check_queue(Settings(data_dir=tmp_path)).found == "in the database"
