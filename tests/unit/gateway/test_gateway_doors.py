"""Who is let in, who is slowed, and how it ends. The whole gateway without a network."""

from __future__ import annotations

import asyncio

import pytest

from unit.gateway.rig import FIVE, Rig, offsets, rigged

# ---- who is let in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "code", "reason"),
    [(None, 4001, "Missing authentication token"), ("rubbish", 4003, "Invalid token")],
)
async def test_refused_connections_are_accepted_and_then_closed(
    rig: Rig, token: str | None, code: int, reason: str
) -> None:
    client = rig.connect(token=token)
    assert await client.until_closed() == code
    assert client.closed == (code, reason)
    assert client.accepted


async def test_a_token_without_user_and_one_that_is_over(rig: Rig) -> None:
    assert await rig.connect(user="").until_closed() == 4002
    assert await rig.connect(user="*").until_closed() == 4002
    assert await rig.connect(ttl_s=-60).until_closed() == 4003


async def test_a_refusal_takes_its_time() -> None:
    async with rigged(refuse_delay_min_seconds=1, refuse_delay_max_seconds=5) as rig:
        client = rig.connect(token=None)
        await rig.sleeper()
        rig.clock.advance(0.9)
        assert client.closed is None
        rig.clock.advance(4.1)
        assert await client.until_closed() == 4001


async def test_who_is_refused_is_not_read() -> None:
    async with rigged(refuse_delay_min_seconds=1, refuse_delay_max_seconds=5) as rig:
        client = rig.connect(token=None)
        await rig.sleeper()
        client.say({"method": "heartbeat"})
        await asyncio.sleep(0)
        assert len(client._heard) == 1
        rig.clock.advance(5)
        assert await client.until_closed() == 4001


async def test_who_goes_before_it_is_refused_is_let_go() -> None:
    async with rigged(refuse_delay_min_seconds=1, refuse_delay_max_seconds=5) as rig:
        client = rig.connect(token=None)
        await rig.sleeper()
        await client.hang_up()


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://evil.example", 403), ("null", 403), ("https://page.example", None), ("http://h", None), (None, None)],
)
async def test_a_foreign_page_is_refused_at_the_handshake(rig: Rig, origin: str | None, status: int | None) -> None:
    client = rig.connect(origin=origin)
    if status is None:
        await client.expect_silence()
    else:
        assert client.task is not None
        await client.task
        assert client.rejected == status
        assert not client.accepted


async def test_so_many_sockets_of_one_user_and_no_more() -> None:
    async with rigged(max_sockets_per_user=2) as rig:
        first = rig.connect()
        for client in (first, rig.connect(), rig.connect("V")):
            await client.expect_silence()
        refused = rig.connect()
        told = await refused.get()
        assert (told["method"], told["code"], told["retry_after"]) == ("error", "too_many_sockets", 30)
        assert await refused.until_closed() == 4029
        await first.hang_up()
        await rig.connect().expect_silence()


async def test_with_auth_off_everybody_is_the_default_user_and_is_not_counted() -> None:
    async with rigged(max_sockets_per_user=1, auth={"enable_auth": False}) as rig:
        for _ in range(3):
            client = rig.connect(token=None)
            answer = await client.subscribe("E")
            assert answer["channel"] == "3e53486c-cf57-477e-ba2a-cb02dc828e1a|graph_exec#E"


async def test_the_development_user_needs_no_token() -> None:
    async with rigged(auth={"dev_user": True}) as rig:
        dev = rig.connect(token=None, host="localhost:8420", peer="127.0.0.1")
        assert (await dev.subscribe("E"))["channel"].startswith("3e53486c")
        assert await rig.connect(token=None, host="evil.example", peer="127.0.0.1").until_closed() == 4001
        assert await rig.connect(token="bad", host="localhost", peer="127.0.0.1").until_closed() == 4003
        page = rig.connect(token=None, host="localhost", peer="127.0.0.1", origin="https://evil.example")
        assert page.task is not None
        await page.task
        assert page.rejected == 403


async def test_one_socket_too_many_for_the_process() -> None:
    async with rigged(max_sockets=1) as rig:
        await rig.connect().expect_silence()
        refused = rig.connect()
        assert refused.task is not None
        await refused.task
        assert refused.rejected == 503


# ---- limits and ends ------------------------------------------------------------------------------------------------


async def test_bad_messages_are_answered_and_the_socket_stays(rig: Rig) -> None:
    client = rig.connect()
    for message in ("not json", b"\xff\x00", {"method": "fly"}, {"method": "notification"}, "[" * 10_000):
        answer = await client.ask(message)
        assert (list(answer), answer["method"], answer["success"]) == (FIVE, "error", False)
    client.say({"method": "error", "error": "a client's trouble"})
    await client.expect_silence()


async def test_a_message_that_is_too_big_closes_only_its_socket(rig: Rig) -> None:
    client, other = rig.connect(), rig.connect()
    await other.expect_silence()
    client.say("x" * 300_000)
    assert await client.until_closed() == 1009
    await other.expect_silence()


async def test_more_channels_than_allowed_is_an_error_until_one_has_finished() -> None:
    async with rigged(max_channels=1) as rig:
        await rig.publisher.create("E")
        await rig.publisher.create("F")
        client = rig.connect()
        await client.subscribe("E")
        assert (await client.subscribe("F"))["code"] == "too_many_channels"
        await rig.publisher.graph("COMPLETED", execution="E")
        assert (await client.get())["final"] is True
        assert (await client.subscribe("F"))["success"] is True


async def test_what_is_finished_already_counts_no_more() -> None:
    async with rigged(max_channels=1) as rig:
        client = rig.connect()
        for name in ("A", "B", "C"):
            await rig.publisher.create(name)
            await rig.publisher.graph("COMPLETED", execution=name)
            assert (await client.subscribe(name, since="earliest"))["success"] is True
            assert offsets(await client.take(2)) == [1, 1]
        assert rig.gateway.topics <= 2


async def test_a_token_that_ends_is_announced_then_closes(rig: Rig) -> None:
    client = rig.connect(ttl_s=3600)
    await client.expect_silence()
    for _ in range(59):
        await rig.clock.sleeper()
        rig.clock.advance(60)
    body = await client.get()
    assert (body["method"], body["data"]) == ("token_expiring", {"expires_at": "2030-01-01T01:00:00Z"})
    await client.expect_silence()
    for _ in range(2):
        await rig.clock.sleeper()
        rig.clock.advance(60)
    assert await client.until_closed() == 4003


async def test_a_fast_talker_is_slowed() -> None:
    async with rigged(message_burst=5, messages_per_second=1, flood_seconds=3) as rig:
        client = rig.connect()
        for _ in range(20):
            client.say({"method": "heartbeat"})
        await client.take(5)
        while client.closed is None:
            for _ in range(5):
                await asyncio.sleep(0)
            rig.clock.advance(1)
        answered = 5
        while (body := await client.get())["method"] != "error":
            answered += 1
        assert body["code"] == "rate_limited"
        assert await client.until_closed() == 4029
        assert answered < 12


async def test_a_gateway_that_stops_says_so_to_everybody(rig: Rig) -> None:
    clients = [rig.connect(), rig.connect("V")]
    for client in clients:
        await client.subscribe("E")
    await rig.publisher.node()
    rig.gateway.drain()
    assert [await client.until_closed() for client in clients] == [1012, 1012]
    late = rig.connect()
    assert late.task is not None
    await late.task
    assert late.rejected == 503


async def test_the_gauge_of_connections(rig: Rig) -> None:
    client = rig.connect()
    await client.expect_silence()
    assert rig.counts.values["websocket_connections_total"] == 1
    await client.hang_up()
    assert rig.counts.values["websocket_connections_total"] == 0


async def test_coming_and_going_leaves_nothing_behind(rig: Rig) -> None:
    client = rig.connect()
    for number in range(200):
        await client.subscribe(f"E{number % 7}", since="earliest")
        await client.get()
        await client.ask({"method": "unsubscribe", "data": {"channel": f"U|graph_exec#E{number % 7}"}})
    assert rig.gateway.topics == 0
    await client.hang_up()
    async with asyncio.timeout(5):
        while await rig.bus.publish("notification_event/U", b"{}"):
            await asyncio.sleep(0)
