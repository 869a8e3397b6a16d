"""The gateway on uvicorn, over real sockets. Golden lines: the seed's recorded traffic, written out here."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from livetape.errors import ClosedError
from livetape.events.channel import execution_tape
from livetape.gateway.transports.uvicorn import GatewayProtocol
from serving import serving
from unit.gateway.rig import PATIENCE_S, Rig, rigged

PLAIN = "websockets-sansio"


class Site:
    """A served rig: where it is and how to talk to it."""

    def __init__(self, rig: Rig, port: int) -> None:
        self.rig = rig
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    @asynccontextmanager
    async def socket(self, query: str | None = None, **options: Any) -> AsyncIterator[ClientConnection]:
        query = f"?token={self.rig.token()}" if query is None else query
        address = f"ws://127.0.0.1:{self.port}/ws{query}"
        async with connect(address, proxy=None, max_size=None, ping_interval=None, close_timeout=1, **options) as ws:
            yield ws

    @asynccontextmanager
    async def http(self) -> AsyncIterator[httpx2.AsyncClient]:
        async with httpx2.AsyncClient(base_url=self.url, timeout=PATIENCE_S, trust_env=False) as client:
            yield client


@asynccontextmanager
async def served(*, ws: str | type = PLAIN, **options: Any) -> AsyncIterator[Site]:
    async with rigged(**options) as rig:

        async def events(request: Request) -> Response:
            tape = await rig.log.describe(request.path_params["tape"])
            if tape is None:
                raise HTTPException(404)
            return await rig.gateway.event_stream(request, tape)

        app = Starlette(
            routes=[*rig.gateway.routes(), Route("/events/{tape}", events)],
            middleware=[Middleware(GZipMiddleware, minimum_size=1)],
        )
        async with serving(app, ws=ws, timeout_graceful_shutdown=5) as port:
            try:
                yield Site(rig, port)
            finally:
                rig.gateway.drain()


on_both = pytest.mark.parametrize("site", [PLAIN, GatewayProtocol], ids=["plain", "ours"], indirect=True)
"""For what is said over a socket: uvicorn's own protocol carries it, and ours."""


@pytest.fixture
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    async with served(ws=getattr(request, "param", PLAIN)) as made:
        await made.rig.publisher.create()
        yield made


async def receive(ws: ClientConnection) -> str:
    async with asyncio.timeout(PATIENCE_S):
        frame = await ws.recv()
    assert isinstance(frame, str)
    return frame


async def ask(ws: ClientConnection, message: str | bytes) -> str:
    await ws.send(message)
    return await receive(ws)


async def close_code(ws: ClientConnection) -> tuple[int, str]:
    with suppress(ConnectionClosed):
        while True:
            await receive(ws)
    assert ws.close_code is not None
    return ws.close_code, ws.close_reason or ""


# ---- the socket ----------------------------------------------------------------------------------------------------


@on_both
async def test_golden_lines(site: Site) -> None:
    dialogue = [
        (
            '{"method":"subscribe_graph_execution","data":{"graph_exec_id":"E"}}',
            '{"method":"subscribe_graph_execution","data":null,"success":true,"channel":"U|graph_exec#E","error":null}',
        ),
        (
            '{"method":"subscribe_graph_executions","data":{"graph_id":"G"}}',
            '{"method":"subscribe_graph_executions","data":null,"success":true,"channel":"U|graph#G|executions",'
            '"error":null}',
        ),
        (
            '{"method":"unsubscribe","data":{"graph_exec_id":"E"}}',
            '{"method":"unsubscribe","data":null,"success":true,"channel":"U|graph_exec#E","error":null}',
        ),
        (
            '{"method":"unsubscribe","data":{"graph_exec_id":"never"}}',
            '{"method":"unsubscribe","data":null,"success":true,"channel":null,"error":null}',
        ),
        (
            '{"method":"heartbeat","data":"ping","success":true}',
            '{"method":"heartbeat","data":"pong","success":true}',
        ),
    ]
    async with site.socket() as ws:
        for said, heard in dialogue:
            assert await ask(ws, said) == heard
        await site.rig.publisher.notify("U", type="info", event="hey")
        assert await receive(ws) == (
            '{"method":"notification","data":{"type":"info","event":"hey"},"success":null,"channel":null,"error":null}'
        )


@on_both
async def test_pushes_begin_with_the_five_keys(site: Site) -> None:
    async with site.socket() as ws:
        await ask(ws, '{"method":"subscribe_graph_execution","data":{"graph_exec_id":"E"}}')
        await site.rig.publisher.node(1)
        await site.rig.publisher.graph("COMPLETED")
        node, graph = [await receive(ws), await receive(ws)]
    assert node.startswith(
        '{"method":"node_execution_event","data":{"event_type":"node_execution_update","graph_exec_id":"E",'
        '"node_id":"N1"},"success":null,"channel":"U|graph_exec#E","error":null,"offset":1,"epoch":"'
    )
    assert list(json.loads(graph))[5:] == ["offset", "epoch", "final"]
    assert json.loads(graph)["final"] is True


@on_both
async def test_who_comes_back_with_its_position_misses_nothing(site: Site) -> None:
    seen: list[dict[str, Any]] = []
    for _ in range(5):
        since = {"epoch": seen[-1]["epoch"], "offset": seen[-1]["offset"]} if seen else "earliest"
        data = {"graph_exec_id": "E", "since": since, "outputs": "each"}
        async with site.socket() as ws:
            reply = json.loads(await ask(ws, json.dumps({"method": "subscribe_graph_execution", "data": data})))
            assert reply["data"]["recovered"] is True
            await site.rig.publisher.output()
            while not seen or seen[-1]["offset"] < reply["data"]["offset"] + 1:
                body = json.loads(await receive(ws))
                if "data" in body and body["method"] != "replay_complete":
                    seen.append(body)
        await site.rig.publisher.nodes(3)
    assert [body["offset"] for body in seen] == list(range(1, len(seen) + 1))
    assert len(seen) == 17


@on_both
@pytest.mark.slow
async def test_ten_thousand_events_are_replayed_in_order(site: Site) -> None:
    await site.rig.publisher.nodes(10_000, live=False)
    async with site.socket() as ws:
        data = {"graph_exec_id": "E", "since": "earliest"}
        reply = json.loads(await ask(ws, json.dumps({"method": "subscribe_graph_execution", "data": data})))
        assert reply["data"]["count"] == 10_000
        began = time.perf_counter()
        offsets = [json.loads(await receive(ws))["offset"] for _ in range(10_000)]
        print(f"10,000 events in {time.perf_counter() - began:.2f} s")
        assert offsets == list(range(1, 10_001))
        assert json.loads(await receive(ws))["method"] == "replay_complete"


@on_both
@pytest.mark.parametrize("size", [300_000, 65_537])
async def test_a_frame_that_is_too_big_closes_only_its_socket(site: Site, size: int) -> None:
    async with site.socket() as other, site.socket() as ws:
        await ws.send("x" * size)
        assert (await close_code(ws))[0] == 1009
        assert json.loads(await ask(other, '{"method":"heartbeat"}'))["data"] == "pong"


@on_both
@pytest.mark.parametrize("message", ["not json", b"\xff\xfe", "[]", '{"method":"fly"}', "", "[" * 60_000])
async def test_a_bad_message_is_answered_and_the_socket_stays(site: Site, message: str | bytes) -> None:
    async with site.socket() as ws:
        assert await ask(ws, message) == (
            '{"method":"error","data":null,"success":false,"channel":null,'
            '"error":"Invalid message format. Review the schema and retry"}'
        )
        assert json.loads(await ask(ws, '{"method":"heartbeat"}'))["data"] == "pong"


@on_both
async def test_a_foreign_execution_is_silent(site: Site) -> None:
    await site.rig.publisher.create("theirs", user="V", graph="H")
    async with site.socket() as ws:
        foreign = await ask(ws, '{"method":"subscribe_graph_execution","data":{"graph_exec_id":"theirs"}}')
        assert foreign == (
            '{"method":"subscribe_graph_execution","data":null,"success":true,"channel":"U|graph_exec#theirs",'
            '"error":null}'
        )
        await site.rig.publisher.node(execution="theirs", user="V", graph="H")
        assert json.loads(await ask(ws, '{"method":"heartbeat"}'))["method"] == "heartbeat"


@on_both
async def test_refused_connections_see_the_code(site: Site) -> None:
    rig = site.rig
    cases = {
        "": (4001, "Missing authentication token"),
        "?token=": (4001, "Missing authentication token"),
        "?token=rubbish": (4003, "Invalid token"),
        f"?token={rig.token(ttl_s=-60)}": (4003, "Invalid token"),
        f"?token={rig.token(user='')}": (4002, "Invalid token"),
        "?" + "&".join(["a=1"] * 200): (4001, "Missing authentication token"),
    }
    for query, expected in cases.items():
        async with site.socket(query) as ws:
            assert await close_code(ws) == expected


@on_both
async def test_a_token_may_come_as_a_subprotocol(site: Site) -> None:
    protocols = ["livetape.v1", f"bearer.{site.rig.token()}"]
    async with site.socket("", subprotocols=protocols) as ws:
        assert ws.subprotocol == "livetape.v1"
        assert json.loads(await ask(ws, '{"method":"heartbeat"}'))["data"] == "pong"


@on_both
@pytest.mark.parametrize(("origin", "status"), [("https://evil.example", 403), ("https://page.example", 101)])
async def test_a_foreign_page_gets_403_at_the_handshake(site: Site, origin: str, status: int) -> None:
    if status == 101:
        async with site.socket(origin=origin) as ws:
            await ask(ws, '{"method":"heartbeat"}')
        return
    with pytest.raises(InvalidStatus) as refused:
        async with site.socket(origin=origin):
            pass
    assert refused.value.response.status_code == status


@on_both
async def test_a_token_that_ends_while_connected(site: Site) -> None:
    async with site.socket(f"?token={site.rig.token(ttl_s=90)}") as ws:
        await ask(ws, '{"method":"heartbeat"}')
        await site.rig.clock.sleeper()
        site.rig.clock.advance(30)
        body = json.loads(await receive(ws))
        assert (body["method"], body["data"]) == ("token_expiring", {"expires_at": "2030-01-01T00:01:30Z"})
        for _ in range(2):
            await site.rig.clock.sleeper()
            site.rig.clock.advance(60)
        assert await close_code(ws) == (4003, "Invalid token")


BIG = int("9" * 4000)
MANY = 1500


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [PLAIN, GatewayProtocol], ids=["plain", "ours"])
async def test_a_slow_reader_slows_nobody_and_is_caught_up(protocol: str | type) -> None:
    """It does not read while far more is pushed than all buffers on the way can hold."""
    async with served(ws=protocol, outbox_max_bytes=64 * 1024) as site:
        publisher = site.rig.publisher
        await publisher.create()
        subscribe = '{"method":"subscribe_graph_execution","data":{"graph_exec_id":"E"}}'
        with socket.socket() as narrow:
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            narrow.connect(("127.0.0.1", site.port))
            narrow.setblocking(False)
            async with site.socket(max_queue=1, sock=narrow) as slow, site.socket() as fast:
                await ask(slow, subscribe)
                await ask(fast, subscribe)
                for number in range(1, MANY + 1):
                    await publisher.node(BIG)
                    assert json.loads(await receive(fast))["offset"] == number
                assert site.rig.counts.values["gateway_resyncs_total,slow"] >= 1
                offsets = [json.loads(await receive(slow))["offset"] for _ in range(MANY)]
                assert offsets == list(range(1, MANY + 1))


@pytest.mark.parametrize("protocol", [PLAIN, GatewayProtocol], ids=["plain", "ours"])
async def test_a_server_that_stops_closes_with_1012(protocol: str | type) -> None:
    async with served(ws=protocol) as site:
        ws = await connect(f"ws://127.0.0.1:{site.port}/ws?token={site.rig.token()}", proxy=None)
        await ask(ws, '{"method":"heartbeat"}')
    assert (await close_code(ws))[0] == 1012


@on_both
async def test_sockets_that_vanish_leave_nothing_behind(site: Site) -> None:
    for _ in range(20):
        async with site.socket() as ws:
            await ask(ws, '{"method":"subscribe_graph_execution","data":{"graph_exec_id":"E","since":"earliest"}}')
            ws.transport.abort()
    async with asyncio.timeout(PATIENCE_S):
        while site.rig.gateway.sockets or site.rig.gateway.topics:
            await asyncio.sleep(0.005)


# ---- streams over HTTP ---------------------------------------------------------------------------------------------

SSE = {"accept": "text/event-stream", "accept-encoding": "gzip"}
LINES = {"accept": "application/x-ndjson", "accept-encoding": "gzip"}
PATH = f"/events/{execution_tape('E')}"


def parse(text: str) -> list[tuple[str, str, str]]:
    """(id, event, data) of each block of an event stream."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append((fields.get("id", ""), fields["event"], fields["data"]))
    return found


async def run_to_its_end(site: Site) -> str:
    await site.rig.publisher.graph("RUNNING")
    await site.rig.publisher.output(1)
    await site.rig.publisher.node(1)
    await site.rig.publisher.graph("COMPLETED")
    tape = await site.rig.log.describe(execution_tape("E"))
    assert tape is not None
    return tape.epoch


async def test_an_event_stream_ends_after_the_last_event(site: Site) -> None:
    epoch = await run_to_its_end(site)
    async with site.http() as http:
        answer = await http.get(PATH, headers=SSE)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-stream-position"] == f"{epoch}-0"
    assert answer.headers["cache-control"].startswith("no-store")
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.text.startswith("retry: ")
    entries = await site.rig.log.read(execution_tape("E"), 0)
    assert parse(answer.text) == [(f"{epoch}-{e.offset}", e.event_type, e.payload.decode()) for e in entries]


async def test_an_event_stream_is_live_and_uncompressed(site: Site) -> None:
    async with site.http() as http, http.stream("GET", PATH, headers=SSE) as answer:
        assert answer.headers.get("content-encoding", "identity") == "identity"
        lines = answer.aiter_lines()
        for number in range(1, 4):
            await site.rig.publisher.node(number)
            async with asyncio.timeout(PATIENCE_S):
                while not (line := await anext(lines)).startswith("data: "):
                    pass
            assert json.loads(line.removeprefix("data: "))["node_id"] == f"N{number}"
    async with asyncio.timeout(PATIENCE_S):
        while site.rig.gateway.topics:
            await asyncio.sleep(0.005)


async def test_a_browser_that_reconnects_goes_on_after_its_last_event(site: Site) -> None:
    epoch = await run_to_its_end(site)
    async with site.http() as http:
        answer = await http.get(PATH, headers={**SSE, "last-event-id": f"{epoch}-2"}, params={"since": "earliest"})
        assert answer.headers["x-stream-position"] == f"{epoch}-2"
        assert [number for number, _, _ in parse(answer.text)] == [f"{epoch}-3", f"{epoch}-4"]
        done = await http.get(PATH, headers={**SSE, "last-event-id": f"{epoch}-4"})
        assert done.status_code == 204, "there is nothing to come back for"


@pytest.mark.parametrize(
    ("since", "first"), [("earliest", 1), ("last:1", 4), ("seconds:60", 1), ("{epoch}-3", 4), ("", 1)]
)
async def test_where_a_stream_begins(site: Site, since: str, first: int) -> None:
    epoch = await run_to_its_end(site)
    params = {"since": since.format(epoch=epoch)} if since else {}
    async with site.http() as http:
        answer = await http.get(PATH, headers=SSE, params=params)
    assert parse(answer.text)[0][0] == f"{epoch}-{first}"
    assert answer.headers["x-stream-position"] == f"{epoch}-{first - 1}"


async def test_latest_of_what_is_over_is_nothing(site: Site) -> None:
    await run_to_its_end(site)
    async with site.http() as http:
        answer = await http.get(PATH, headers=SSE, params={"since": "latest"})
    assert (answer.status_code, parse(answer.text)) == (200, [])


async def test_a_position_that_is_lost_is_said_first(site: Site) -> None:
    epoch = await run_to_its_end(site)
    async with site.http() as http:
        answer = await http.get(PATH, headers=SSE, params={"since": "another-2"})
        assert answer.headers["x-stream-position"] == f"{epoch}-0"
        events = parse(answer.text)
        assert events[0] == ("", "gap", json.dumps({"from": 3, "to": None, "epoch": epoch}, separators=(",", ":")))
        assert len(events) == 5


@pytest.mark.parametrize(
    "since", ["yesterday", "last:x", "last:-1", "-5", "e-", "first:2", "last:99999999999999999999"]
)
async def test_a_since_that_is_none_is_refused(site: Site, since: str) -> None:
    async with site.http() as http:
        answer = await http.get(PATH, headers=SSE, params={"since": since})
    assert answer.status_code == 422


async def test_lines(site: Site) -> None:
    epoch = await run_to_its_end(site)
    async with site.http() as http:
        answer = await http.get(PATH, headers=LINES)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["offset"] for line in lines] == [1, 2, 3, 4]
    assert lines[3] == {
        "offset": 4,
        "epoch": epoch,
        "event_type": "graph_execution_update",
        "data": {"event_type": "graph_execution_update", "id": "E", "status": "COMPLETED"},
        "final": True,
    }


async def test_a_page(site: Site) -> None:
    epoch = await run_to_its_end(site)
    async with site.http() as http:
        answer = await http.get(PATH, params={"after": 1, "limit": 2})
        body = answer.json()
        assert answer.headers["cache-control"] == "no-store"
        assert [event["offset"] for event in body["events"]] == [2, 3]
        assert (body["next"], body["epoch"], body["offset"], body["final"]) == (3, epoch, 4, True)
        some = (await http.get(PATH, params={"types": "node_output_update,node_execution_update"})).json()
        assert [event["offset"] for event in some["events"]] == [2, 3]
        for wrong in ({"limit": "0"}, {"limit": "1001"}, {"after": "-1"}, {"after": "x"}, {"limit": "٣"}):
            assert (await http.get(PATH, params=wrong)).status_code == 422


async def test_silence_is_filled_with_comments() -> None:
    async with served(keepalive_seconds=0.01) as site:
        await site.rig.publisher.create()
        async with site.http() as http, http.stream("GET", PATH, headers=SSE) as answer:
            lines = answer.aiter_lines()
            async with asyncio.timeout(PATIENCE_S):
                seen = [await anext(lines) for _ in range(6)]
    assert seen[2::2] == [": still here", ": still here"]


async def test_a_server_that_stops_ends_its_streams() -> None:
    async with served() as site:
        await site.rig.publisher.create()
        async with site.http() as http, http.stream("GET", PATH, headers=SSE) as answer:
            await site.rig.publisher.node()
            lines = answer.aiter_lines()
            async with asyncio.timeout(PATIENCE_S):
                while not (await anext(lines)).startswith("data: "):
                    pass
                site.rig.gateway.drain()
                tape = await site.rig.log.describe(execution_tape("E"))
                assert tape is not None
                late = Request({"type": "http", "query_string": b"", "headers": [(b"accept", b"text/event-stream")]})
                with pytest.raises(ClosedError):
                    await site.rig.gateway.event_stream(late, tape)
                assert [line async for line in lines if line] == []


@pytest.mark.slow
async def test_a_stream_whose_reader_is_slow_is_caught_up() -> None:
    async with served(outbox_max_bytes=64 * 1024) as site:
        await site.rig.publisher.create()
        async with site.http() as http, http.stream("GET", PATH, headers=LINES) as answer:
            for number in range(4 * MANY):  # more than the buffers of the kernel take
                await site.rig.publisher.node(BIG)
                if number % 8 == 0:  # what comes in one turn is one push
                    await asyncio.sleep(0)
            await site.rig.publisher.graph("COMPLETED")
            async with asyncio.timeout(30):
                offsets = [json.loads(line)["offset"] async for line in answer.aiter_lines()]
    assert offsets == list(range(1, 4 * MANY + 2))
    assert site.rig.counts.values["gateway_resyncs_total,slow"] >= 1
