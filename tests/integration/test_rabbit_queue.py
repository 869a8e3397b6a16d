"""The queue and the hints on a real RabbitMQ: several processes, foreign messages, what the broker's operator sees."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiormq
import pytest
from aiormq.abc import AbstractChannel
from pamqp.commands import Basic
from pydantic_core import to_json

from livetape.adapters.rabbitmq.open import RabbitPorts, from_url
from livetape.adapters.rabbitmq.topology import DELIVERY_LIMIT, Topology
from livetape.engine.queue import Delivery, Doorbell, Queue
from livetape.errors import ClosedError, ConfigError
from rabbit import RabbitServer

pytestmark = [pytest.mark.needs("rabbitmq"), pytest.mark.slow]

OpenPorts = Callable[..., RabbitPorts]


@pytest.fixture
def topology() -> Topology:
    return Topology(f"{secrets.token_hex(4)}.")


@pytest.fixture
async def open_ports(rabbit_server: RabbitServer, topology: Topology) -> AsyncIterator[OpenPorts]:
    """Opens what one process has; closed at the end."""
    opened: list[RabbitPorts] = []

    def open_ports(url: str = rabbit_server.url, **options: Any) -> RabbitPorts:
        opened.append(from_url(url, **{"topology": topology, **options}))
        return opened[-1]

    yield open_ports
    for ports in opened:
        await ports.close()


@asynccontextmanager
async def channel_to(server: RabbitServer) -> AsyncIterator[AbstractChannel]:
    """Somebody else's channel, without any of our code."""
    connection = await aiormq.connect(server.url)
    try:
        yield await connection.channel()
    finally:
        await connection.close(None)


async def taken(queue: Queue, limit: int = 10, *, seconds: float = 10) -> list[Delivery]:
    async with asyncio.timeout(seconds):
        return await queue.take(limit)


async def silence(queue: Queue, seconds: float = 0.3) -> None:
    with pytest.raises(TimeoutError):
        await taken(queue, seconds=seconds)


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.05)


def names(deliveries: list[Delivery]) -> list[str]:
    return [delivery.doorbell.graph_exec_id for delivery in deliveries]


# ---- several processes -----------------------------------------------------------------------------------------------


async def test_two_processes_share_what_there_is(open_ports: OpenPorts) -> None:
    one, other = open_ports().queue, open_ports().queue
    await asyncio.gather(*(one.put(Doorbell(f"e{n}")) for n in range(40)))
    seen: list[str] = []

    async def work(queue: Queue) -> None:
        while len(seen) < 40:
            for delivery in await queue.take(3):
                seen.append(delivery.doorbell.graph_exec_id)
                await queue.ack(delivery)

    workers = [asyncio.ensure_future(work(queue)) for queue in (one, other)]
    await asyncio.wait(workers, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    for worker in workers:
        worker.cancel()
    assert sorted(seen) == sorted(f"e{n}" for n in range(40))
    assert await one.depth() == 0


async def test_a_process_holds_no_more_than_it_was_asked_to_take(open_ports: OpenPorts) -> None:
    full, free = open_ports().queue, open_ports().queue
    for n in range(10):
        await full.put(Doorbell(f"e{n}"))
    held = await taken(full, 2)
    rest: list[Delivery] = []
    while len(rest) + len(held) < 10:
        rest += await taken(free)
    assert len(held) == 2
    assert len({*names(held), *names(rest)}) == 10


async def test_one_waiting_process_is_rung_and_the_other_waits_on(open_ports: OpenPorts) -> None:
    ports = [open_ports().queue, open_ports().queue]
    waiting = {asyncio.ensure_future(queue.take(1)) for queue in ports}
    await asyncio.sleep(0.2)
    await ports[0].put(Doorbell("e"))
    done, pending = await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert [names(task.result()) for task in done] == [["e"]]
    assert len(pending) == 1
    await ports[0].put(Doorbell("f"))
    assert names(await pending.pop()) == ["f"]


async def test_what_a_process_that_closes_has_taken_comes_to_others_at_once(open_ports: OpenPorts) -> None:
    leaving, staying = open_ports(), open_ports()
    await leaving.queue.put(Doorbell("e"))
    await taken(leaving.queue)
    await leaving.close()
    assert names(await taken(staying.queue, seconds=3)) == ["e"]


async def test_what_came_for_a_take_that_was_given_up_comes_to_others(open_ports: OpenPorts) -> None:
    gone, other = open_ports().queue, open_ports().queue
    waiting = asyncio.ensure_future(gone.take(5))
    await asyncio.sleep(0.3)
    putting = asyncio.ensure_future(gone.put(Doorbell("e")))
    waiting.cancel()
    await putting
    await asyncio.wait({waiting})
    assert names(await taken(other, seconds=3)) == ["e"]


async def test_a_hidden_one_comes_to_others_while_its_process_lives(open_ports: OpenPorts) -> None:
    stuck, other = open_ports(hidden_s=0.3).queue, open_ports().queue
    await stuck.put(Doorbell("e"))
    (late,) = await taken(stuck)
    (again,) = await taken(other)
    await stuck.ack(late)  # of no effect on who has it now
    await other.nack(again)
    assert names(await taken(other)) == ["e"]


# ---- messages of others ----------------------------------------------------------------------------------------------


async def test_an_entry_of_an_old_publisher_is_a_doorbell(
    rabbit_server: RabbitServer, topology: Topology, open_ports: OpenPorts
) -> None:
    queue = open_ports().queue
    assert await queue.depth() == 0
    entry = {"user_id": "u", "graph_exec_id": "old", "graph_id": "g", "graph_version": 1, "nodes_to_skip": []}
    async with channel_to(rabbit_server) as channel:
        await channel.basic_publish(to_json(entry), exchange=topology.exchange, routing_key="graph_execution.run")
    assert [delivery.doorbell for delivery in await taken(queue)] == [Doorbell("old")]


async def test_what_is_no_doorbell_goes_to_the_dead_letters_and_nobody_sees_it_again(
    rabbit_server: RabbitServer, topology: Topology, open_ports: OpenPorts, caplog: pytest.LogCaptureFixture
) -> None:
    queue = open_ports(hidden_s=0.5).queue
    await queue.depth()
    async with channel_to(rabbit_server) as channel:
        for body in (b"not JSON", b"[1]", b'{"graph_id":"g"}'):
            await channel.basic_publish(body, exchange=topology.exchange, routing_key="graph_execution.run")
        await queue.put(Doorbell("e"))
        (delivery,) = await taken(queue)
        await queue.ack(delivery)
        assert names([delivery]) == ["e"]
        await silence(queue, 1)
        dead = []
        while len(dead) < 3:
            message = await channel.basic_get(topology.dead_queue)
            assert isinstance(message.delivery, Basic.GetOk)
            dead.append((message.body, (message.header.properties.headers or {})["livetape-reason"]))
    assert {body for body, _ in dead} == {b"not JSON", b"[1]", b'{"graph_id":"g"}'}
    assert all(reason for _, reason in dead)
    assert await queue.depth() == 0
    assert [record.levelno for record in caplog.records if "dead letters" in record.message] == [logging.WARNING] * 3


async def test_a_doorbell_that_ends_whoever_takes_it_ends_with_the_dead_letters(
    rabbit_server: RabbitServer, topology: Topology, open_ports: OpenPorts
) -> None:
    queue = open_ports(hidden_s=0.02).queue
    await queue.put(Doorbell("poison"))
    for _ in range(DELIVERY_LIMIT + 1):
        await taken(queue)
    await silence(queue, 0.5)
    assert await queue.depth() == 0
    async with channel_to(rabbit_server) as channel:
        message = await channel.basic_get(topology.dead_queue)
    assert b"poison" in message.body


async def test_refusals_are_no_reason_to_give_a_doorbell_up(open_ports: OpenPorts) -> None:
    queue = open_ports().queue
    await queue.put(Doorbell("e"))
    for _ in range(DELIVERY_LIMIT + 5):
        (delivery,) = await taken(queue)
        await queue.nack(delivery)
    assert names(await taken(queue)) == ["e"]


async def test_a_long_delay_is_made_of_several_waits(open_ports: OpenPorts) -> None:
    queue = open_ports().queue
    start = asyncio.get_running_loop().time()
    await queue.put(Doorbell("e", priority=1), delay_s=1.6)
    (delivery,) = await taken(queue)
    assert 1.6 <= asyncio.get_running_loop().time() - start < 6
    assert delivery.doorbell == Doorbell("e", priority=1)


# ---- the broker's side -----------------------------------------------------------------------------------------------


async def test_the_names_are_those_that_older_publishers_know(rabbit_server: RabbitServer) -> None:
    ports = from_url(rabbit_server.url)
    await ports.queue.depth()
    await ports.close()
    queues = rabbit_server.ctl("list_queues", "name", "type", "durable", "arguments", "--formatter", "json")
    exchanges = rabbit_server.ctl("list_exchanges", "name", "type", "durable")
    bindings = rabbit_server.ctl("list_bindings", "source_name", "routing_key", "destination_name")
    assert "graph_execution\tdirect\ttrue" in exchanges
    assert "graph_execution_cancel\tfanout\ttrue" in exchanges
    assert '"name":"graph_execution_queue_v2"' in queues.replace(" ", "")
    assert "graph_execution\tgraph_execution.run\tgraph_execution_queue_v2\n" in bindings


async def test_a_queue_that_somebody_made_otherwise_is_used_as_it_is(
    rabbit_server: RabbitServer, topology: Topology, open_ports: OpenPorts, caplog: pytest.LogCaptureFixture
) -> None:
    async with channel_to(rabbit_server) as channel:
        await channel.exchange_declare(topology.exchange, exchange_type="topic", durable=True)
        arguments = {"x-queue-type": "quorum", "x-consumer-timeout": 86_400_000}
        await channel.queue_declare(topology.queue, durable=True, arguments=arguments)
    queue = open_ports().queue
    await queue.put(Doorbell("e"))
    assert names(await taken(queue)) == ["e"]
    said = [record.message for record in caplog.records if getattr(record, "action", "") == "rabbitmq_as_it_is"]
    assert any(topology.queue in line for line in said)
    assert any(f"exchange {topology.exchange} " in line for line in said)


async def test_a_queue_that_is_deleted_is_made_again(
    rabbit_server: RabbitServer, topology: Topology, open_ports: OpenPorts
) -> None:
    """Whether or not the broker tells those who wait for a doorbell."""
    queue = open_ports(fresh_s=1).queue
    waiting = asyncio.ensure_future(queue.take(1))
    await asyncio.sleep(0.3)
    async with channel_to(rabbit_server) as channel:
        await channel.queue_delete(topology.queue)

    async def put() -> bool:
        try:
            await queue.put(Doorbell("e"))
        except Exception:
            return False
        return True

    await until(put)
    assert names(await asyncio.wait_for(waiting, 10)) == ["e"]


async def test_a_closed_queue_leaves_no_connection_behind(rabbit_server: RabbitServer, open_ports: OpenPorts) -> None:
    ports = open_ports(name="leaver")
    await ports.queue.put(Doorbell("e"))
    await taken(ports.queue)
    assert "leaver" in rabbit_server.ctl("list_connections", "client_properties")
    await ports.close()
    assert "leaver" not in rabbit_server.ctl("list_connections", "client_properties")
    with pytest.raises(ClosedError):
        await ports.queue.put(Doorbell("e"))


@pytest.mark.parametrize("url", ["amqp://", "http://h/", "amqp://h:port/", "h:5672"])
def test_a_url_that_cannot_work_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match="RabbitMQ") as error:
        from_url(url)
    assert error.value.set_by == "queue"


# ---- hints -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(ports: RabbitPorts) -> AsyncIterator[list[str]]:
    heard: list[str] = []

    def hear(graph_exec_id: str) -> None:
        heard.append(graph_exec_id)
        if graph_exec_id == "fail":
            raise ValueError("a listener may fail")

    ready = asyncio.Event()
    task = asyncio.create_task(ports.hints.listen(hear, ready))
    await asyncio.wait_for(ready.wait(), 10)
    yield heard
    task.cancel()
    await asyncio.wait({task})


async def test_every_process_hears_a_hint(
    rabbit_server: RabbitServer, topology: Topology, open_ports: OpenPorts, caplog: pytest.LogCaptureFixture
) -> None:
    sender, one, other = open_ports(), open_ports(), open_ports()
    async with listening(one) as first, listening(other) as second, listening(sender) as own:
        await sender.hints.send("e1")
        await sender.hints.send("fail")
        async with channel_to(rabbit_server) as channel:
            for body in (b"nonsense", to_json({"graph_exec_id": "by an old publisher"})):
                await channel.basic_publish(body, exchange=topology.cancel_exchange)

        async def all_heard() -> bool:
            return all(set(heard) == {"e1", "fail", "by an old publisher"} for heard in (first, second, own))

        await until(all_heard)
    assert "could not be followed" in caplog.text


async def test_the_queue_of_a_listener_goes_with_it(rabbit_server: RabbitServer, open_ports: OpenPorts) -> None:
    ports = open_ports(name="hears")
    before = rabbit_server.ctl("list_queues", "name").count("amq.gen")
    async with listening(ports):
        assert rabbit_server.ctl("list_queues", "name").count("amq.gen") == before + 1
    assert rabbit_server.ctl("list_queues", "name").count("amq.gen") == before
