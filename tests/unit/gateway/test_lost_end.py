"""A log that ends before what has been seen of it, or after what came live: the watchers are told, and it goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from livetape.auth import Principal
from livetape.events.channel import execution_channel, execution_tape, job_channel, job_tape
from livetape.events.codec import Envelope
from livetape.events.log import Position
from unit.gateway.rig import NODE, Client, Rig, epoch_of, go_on, offsets, rigged

TAPE = execution_tape("E")
CHANNEL = execution_channel("U", "G", "E")


@pytest.fixture
async def client(rig: Rig) -> Client:
    """It has seen five events."""
    made = rig.connect()
    await made.subscribe()
    await rig.publisher.nodes(5)
    assert offsets(await made.take(5)) == [1, 2, 3, 4, 5]
    return made


@pytest.fixture
async def passing(rig: Rig) -> AsyncIterator[None]:
    """Time passes for those who wait."""
    task = asyncio.create_task(go_on(rig))
    yield
    task.cancel()


async def sweep(rig: Rig) -> None:
    streams = rig.gateway._streams
    await streams._sweep.look_at(streams.hub.topics())  # as the first time,
    await streams._sweep.look_at(streams.hub.topics())  # and again without an event since


def told(body: dict[str, Any]) -> Any:
    assert body["method"] == "gap"
    return body["data"]["from"], body["data"]["to"]


async def test_what_comes_after_it_is_told_first(rig: Rig, client: Client) -> None:
    rig.log.cut(TAPE, 3)
    await rig.publisher.node(9)
    gap, event = await client.take(2)
    assert told(gap) == (None, None)
    assert (event["offset"], event["data"]["node_id"]) == (4, "N9")
    await rig.publisher.node(10)
    assert (await client.get())["offset"] == 5
    await client.expect_silence()


async def test_even_when_it_has_grown_past_that_again(rig: Rig, client: Client) -> None:
    rig.log.cut(TAPE, 3)
    for number in range(10, 14):
        await rig.publisher.node(number, live=False)
    await rig.publisher.node(14)  # number 8 of another five than the client saw
    assert offsets(await client.take(3)) == [6, 7, 8], "they joined on"
    await sweep(rig)
    gap, *bodies = await client.take(6)
    assert told(gap) == (None, None)
    assert offsets(bodies) == [4, 5, 6, 7, 8]
    assert [body["data"]["node_id"] for body in bodies] == [f"N{number}" for number in range(10, 15)]


async def test_it_is_found_although_nothing_comes(rig: Rig, client: Client) -> None:
    rig.log.cut(TAPE, 2)
    await sweep(rig)
    assert told(await client.get()) == (None, None)
    await rig.publisher.node()
    assert (await client.get())["offset"] == 3


async def test_a_lost_last_message_is_found(rig: Rig, client: Client) -> None:
    await rig.publisher.node(live=False)
    await sweep(rig)
    assert (await client.get())["offset"] == 6


async def test_the_sweep_runs_by_itself(rig: Rig, client: Client) -> None:
    await rig.publisher.node(live=False)
    for _ in range(55):
        rig.clock.advance(1)
        await asyncio.sleep(0)
    assert (await client.get())["offset"] == 6


async def test_a_position_beyond_the_end_is_not_recovered(rig: Rig, client: Client) -> None:
    epoch = await epoch_of(rig)
    rig.log.cut(TAPE, 3)
    other = rig.connect()
    answer = await other.subscribe(since={"epoch": epoch, "offset": 5})
    assert answer["data"] == {"epoch": epoch, "offset": 3, "recovered": False, "count": 0}
    assert (await other.get())["method"] == "replay_complete"
    assert told(await client.get()) == (None, None), "whoever watches learns it at the same time"
    await rig.publisher.node()
    assert ((await other.get())["offset"], (await client.get())["offset"]) == (4, 4)


async def test_who_is_reading_the_log_is_told() -> None:
    async with rigged(outbox_max_messages=4, replay_chunk_events=4) as rig:
        await rig.publisher.create()
        await rig.publisher.nodes(20)
        slow = rig.connect()
        slow.reading.clear()
        slow.say({"method": "subscribe_graph_execution", "data": {"graph_exec_id": "E", "since": "earliest"}})
        for _ in range(50):
            await asyncio.sleep(0)
        rig.log.cut(TAPE, 2)
        await sweep(rig)
        await rig.publisher.node(77)
        slow.reading.set()
        assert (await slow.get())["success"] is True
        bodies = []
        while not bodies or bodies[-1]["data"].get("node_id") != "N77":
            bodies.append(await slow.get())
            bodies[-1]["data"] = bodies[-1]["data"] or {}
        kinds = offsets([body for body in bodies if body["method"] != "replay_complete"])
        assert kinds[-2:] == ["gap", 3]
        assert kinds[:-2] == list(range(1, len(kinds) - 1))


async def forge(rig: Rig, offset: int, payload: bytes = NODE) -> None:
    await rig.bus.publish(CHANNEL, Envelope(payload, "node_execution_update", offset, await epoch_of(rig)).encode())


async def test_a_live_event_far_ahead_of_the_log_is_followed_by_what_the_log_says(
    rig: Rig, client: Client, passing: None
) -> None:
    await forge(rig, 2**50)
    gap, forged = await client.take(2)
    assert (told(gap), forged["offset"]) == ((6, 2**50 - 1), 2**50)
    await rig.publisher.node(6)
    again, event = await client.take(2)
    assert (told(again), event["offset"], event["data"]["node_id"]) == ((None, None), 6, "N6")


async def test_also_when_the_message_of_that_is_lost(rig: Rig, client: Client, passing: None) -> None:
    await forge(rig, 9)
    assert offsets(await client.take(2)) == ["gap", 9]
    await rig.publisher.node(6, live=False)
    await sweep(rig)
    assert [told(await client.get()), (await client.get())["offset"]] == [(None, None), 6]


async def test_a_live_event_that_joins_on_but_is_not_in_the_log(rig: Rig, client: Client) -> None:
    await forge(rig, 6)
    assert (await client.get())["offset"] == 6
    await rig.publisher.node(6)  # another number 6
    gap, event = await client.take(2)
    assert (told(gap), event["offset"], event["data"]["node_id"]) == ((None, None), 6, "N6")


async def test_of_two_epochs_the_logs_is_the_right_one(rig: Rig, client: Client, passing: None) -> None:
    await rig.bus.publish(CHANNEL, Envelope(NODE, "node_execution_update", 6, "forged").encode())
    await rig.clock.sleeper()
    for _ in range(50):
        await asyncio.sleep(0)
    await client.expect_silence()
    await rig.publisher.node()
    assert (await client.get())["offset"] == 6


# ---- whose it is ----------------------------------------------------------------------------------------------------

JOB = job_tape("J")


async def watch_job(rig: Rig, user: str, **data: Any) -> Client:
    made = rig.connect(user)
    answer = await made.ask({"method": "subscribe_job", "data": {"job_id": "J", **data}})
    assert answer["success"] is True
    return made


async def take_over(rig: Rig, *, live: bool = True) -> None:
    """The tape of U is lost, and V has one of the same name."""
    rig.log.lose(JOB)
    await rig.publisher.job("task_started", user="V", live=live)


async def test_nothing_of_another_owner_is_sent(rig: Rig) -> None:
    await rig.publisher.job("task_started")
    former = await watch_job(rig, "U")
    await take_over(rig)
    await rig.publisher.job("task_progress", user="V")
    for _ in range(20):
        await asyncio.sleep(0)
    latter = await watch_job(rig, "V", since="earliest")
    assert offsets(await latter.take(2)) == [1, 2]
    told = await former.get()
    assert (told["method"], told["channel"]) == ("unsubscribed", "U|job#J")
    await former.expect_silence()
    again = await former.ask({"method": "subscribe_job", "data": {"job_id": "J", "since": "earliest"}})
    assert (again["success"], again["data"]["epoch"]) == (True, None), "as an id that nobody knows"


async def test_nothing_of_another_owner_without_a_position_either(rig: Rig) -> None:
    await rig.publisher.job("task_started")
    former = await watch_job(rig, "U")
    rig.log.lose(JOB)
    await rig.publisher.job("task_started", user="V", live=False)
    loose = Envelope(b'{"event_type":"task_progress","data":"secret"}', "task_progress")
    await rig.bus.publish(job_channel("J"), loose.encode())
    assert (await former.get())["method"] == "unsubscribed"
    await former.expect_silence()


async def test_nothing_of_a_tape_that_nobody_can_say_whose_it_is(rig: Rig, passing: None) -> None:
    await rig.publisher.job("task_started")
    former = await watch_job(rig, "U")
    rig.log.lose(JOB)
    for envelope in (
        Envelope(b'{"event_type":"x","data":"secret"}', "x", 1, "other"),
        Envelope(b'{"event_type":"x","data":"secret"}', "x"),
    ):
        await rig.bus.publish(job_channel("J"), envelope.encode())
    assert (await former.get())["method"] == "gap"
    await rig.publisher.job("task_started")
    bodies = [await former.get()]
    while bodies[-1]["method"] != "job_event":
        bodies.append(await former.get())
    assert bodies[-1]["offset"] == 1
    assert "secret" not in json.dumps(bodies)


async def test_who_opens_it_for_the_new_owner_ends_it_for_the_former(rig: Rig) -> None:
    await rig.publisher.job("task_started")
    former = await watch_job(rig, "U")
    await take_over(rig, live=False)
    latter = await watch_job(rig, "V")
    assert (await former.get())["method"] == "unsubscribed"
    await rig.publisher.job("task_progress", user="V")
    assert (await latter.get())["offset"] == 2
    assert rig.gateway.topics == 1


async def test_a_job_that_is_claimed_is_its_owners_alone() -> None:
    async with rigged(jobs_unowned="any_user") as rig:
        await rig.log.create(JOB, owner=None, channel=job_channel("J"))
        mine, yours = await watch_job(rig, "U"), await watch_job(rig, "V")
        await rig.publisher.job("task_started", user=None)
        assert [(await mine.get())["offset"], (await yours.get())["offset"]] == [1, 1]
        await rig.log.create(JOB, owner="U", channel=job_channel("J"))
        await sweep(rig)
        assert (await yours.get())["method"] == "unsubscribed"
        await rig.publisher.job("task_progress")
        assert (await mine.get())["offset"] == 2
        await yours.expect_silence()


# ---- what the socket layer calls ------------------------------------------------------------------------------------


async def test_where_a_socket_goes_on(rig: Rig, client: Client) -> None:
    topic = rig.gateway._hub.topics()[0]
    (connection,) = rig.gateway._connections
    (subscription,) = connection._open.values()
    assert subscription is not None
    assert subscription.resume_position == topic.position
    assert topic.position.offset == 5


async def test_an_old_client_is_shown_what_there_is_when_its_position_is_lost(rig: Rig, client: Client) -> None:
    (topic,) = rig.gateway._hub.topics()
    subscriptions, subject = rig.gateway._streams.subscriptions, topic.subject
    for position, start in (
        (Position(topic.position.epoch, 3), 3),
        (Position("gone", 3), 0),
        (Position(topic.position.epoch, 9), 0),
        (Position("", 0), 0),
    ):
        opening = await subscriptions.reopen(subject, Principal("U"), position)
        assert opening.start == Position(topic.position.epoch, start)
        subscriptions.give_back(opening)


async def test_what_may_still_be_watched(rig: Rig) -> None:
    await rig.publisher.job("task_started")
    await watch_job(rig, "U")
    (topic,) = rig.gateway._hub.topics()
    subscriptions = rig.gateway._streams.subscriptions
    assert await subscriptions.allows(topic.subject, Principal("U"))
    assert not await subscriptions.allows(topic.subject, Principal("V"))


async def test_many_that_come_back_at_once_are_few_questions_to_the_log() -> None:
    async with rigged(max_sockets_per_user=999) as rig:
        await rig.publisher.create()
        await rig.publisher.nodes(20)
        since = {"epoch": await epoch_of(rig), "offset": 3}
        clients = [rig.connect() for _ in range(100)]
        for client in clients:
            client.say({"method": "subscribe_graph_execution", "data": {"graph_exec_id": "E", "since": since}})
        for client in clients:
            answer, *events, complete = await client.take(19)
            assert answer["data"]["recovered"] is True
            assert offsets(events) == list(range(4, 21))
            assert complete["method"] == "replay_complete"
        assert rig.log.reads == 1
