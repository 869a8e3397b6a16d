"""A gateway on a real server, asked everything: each message in both directions is one of the AsyncAPI document's, and
the document has none that is never heard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection

from described import Recording
from integration.test_gateway import Site, close_code, receive, served
from livetape.adapters.memory.bus import MemoryBus
from livetape.auth import Principal
from livetape.errors import LogUnavailableError
from livetape.events.bus import Subscription
from livetape.events.channel import engine_reply_channel, execution_tape, job_channel, job_tape
from livetape.events.codec import Envelope, too_large_payload
from livetape.events.commands import StopReply, decode_command, encode
from livetape.events.event import Event, JobEvent
from livetape.events.executions import ExecutionStatus, GraphExecutionEvent, NodeExecutionEvent, NodeOutputEvent
from livetape.events.log import NewEvent, Tape
from livetape.gateway.access import Access
from livetape.gateway.asyncapi import asyncapi_document
from livetape.gateway.control import Control
from livetape.gateway.options import GatewayOptions
from livetape.gateway.stopper import Stopper
from livetape.gateway.subjects import Subject
from livetape.testing.fakes import FakeLog

NOW = datetime(2030, 1, 1, tzinfo=UTC)
IDS = {"user_id": "U", "graph_id": "G", "graph_version": 1}
SEALED = {"v": 1, "kid": "2030-01", "nonce": "AAAAAAAAAAAAAAAA", "data": "AAAA"}


def graph(status: str = "RUNNING", **more: Any) -> GraphExecutionEvent:
    return GraphExecutionEvent(id="E", status=ExecutionStatus(status), started_at=NOW, **IDS, **more)


def node(**more: Any) -> NodeExecutionEvent:
    names = {"graph_exec_id": "E", "node_exec_id": "X", "node_id": "N", "block_id": "B"}
    pins = {"input_data": {"a": [1]}, "output_data": {"out": ["x", None]}, **more}
    return NodeExecutionEvent(status=ExecutionStatus.RUNNING, add_time=NOW, **names, **pins, **IDS)


def output(index: int, value: Any = None) -> NodeOutputEvent:
    names = {"user_id": "U", "graph_id": "G", "graph_exec_id": "E", "node_exec_id": "X", "node_id": "N"}
    return NodeOutputEvent(index=index, name="out", value={"n": index} if value is None else value, **names)


@dataclass
class Talk:
    """One recorded socket."""

    recording: Recording
    site: Site
    ws: ClientConnection

    async def say(self, method: str, data: Any = None, *, bad: bool = False, **more: Any) -> None:
        """`bad`: the document does not describe it."""
        body = {"method": method, "data": data, **more}
        if bad:
            assert self.recording.matching("in", body) == []
        else:
            self.recording.add("in", json.dumps(body))
        await self.ws.send(json.dumps(body))

    async def hear(self) -> dict[str, Any]:
        return self.recording.add("out", await receive(self.ws))

    async def ask(self, method: str, data: Any = None, **more: Any) -> dict[str, Any]:
        await self.say(method, data, **more)
        return await self.hear()

    async def hear_until(self, method: str) -> list[dict[str, Any]]:
        heard = [await self.hear()]
        while heard[-1]["method"] != method:
            heard.append(await self.hear())
        return heard

    async def publish(self, event: Event, **where: Any) -> None:
        await self.site.rig.publisher._publish("E", event.model_dump(mode="json"), **where)


@asynccontextmanager
async def talking(recording: Recording, **options: Any) -> AsyncIterator[Talk]:
    async with served(**options) as site:
        await site.rig.publisher.create()
        async with site.socket() as ws:
            yield Talk(recording, site, ws)


# ---- the scenes ------------------------------------------------------------------------------------------------------


async def everything_that_is_asked(recording: Recording) -> None:
    async with talking(recording) as talk:
        subscribe = "subscribe_graph_execution"
        assert (await talk.ask(subscribe, {"graph_exec_id": "E"}, id="e"))["data"] is None
        assert (await talk.ask("subscribe_graph_executions", {"graph_id": "G"}, id="g"))["id"] == "g"
        assert (await talk.ask("subscribe_job", {"job_id": "J"}, id=7))["id"] == 7
        assert (await talk.ask("heartbeat", "ping", success=True))["data"] == "pong"
        assert (await talk.ask("heartbeat", {"any": "thing"}, id=1))["id"] == 1
        await talk.say("error", {"what": "a client's trouble"}, error="it broke")

        await talk.publish(graph())
        assert {(await talk.hear())["channel"] for _ in range(2)} == {"U|graph_exec#E", "U|graph#G|executions"}
        await talk.publish(node())
        assert (await talk.hear())["offset"] == 2
        await talk.publish(output(0), live=True)
        await talk.site.rig.publisher.notify(type="info", event="hey", more=[1])
        assert (await talk.hear())["method"] == "notification"
        await talk.publish(graph("COMPLETED", ended_at=NOW, outputs={"out": [1]}))
        assert [(await talk.hear()).get("final") for _ in range(2)].count(True) == 1

        for since in ("earliest", "latest", {"last": 2}, {"seconds": 60}):
            reply = await talk.ask(subscribe, {"graph_exec_id": "E", "since": since, "outputs": "each"})
            assert reply["data"]["recovered"] is True
            heard = await talk.hear_until("replay_complete")
            assert len(heard) - 1 == {"earliest": 4, "latest": 0}.get(str(since), len(heard) - 1)
        lost = {"epoch": "other", "offset": "3"}
        reply = await talk.ask("subscribe_graph_executions", {"graph_id": "G", "since": lost})
        assert reply["data"]["recovered"] is False
        await talk.hear_until("replay_complete")

        assert (await talk.ask("unsubscribe", {"graph_exec_id": "E"}))["channel"] == "U|graph_exec#E"
        assert (await talk.ask("unsubscribe", {"channel": "U|graph#G|executions"}))["channel"] is not None
        assert (await talk.ask("unsubscribe", {"job_id": "never"}, id="u"))["channel"] is None


async def jobs(recording: Recording) -> None:
    async with talking(recording) as talk:
        rig = talk.site.rig
        await rig.publisher.job("task_started")
        await talk.ask("subscribe_job", {"job_id": "J", "since": "earliest"})
        assert (await talk.hear_until("replay_complete"))[0]["method"] == "job_event"
        await rig.publisher.job("task_progress")
        assert JobEvent.model_validate((await talk.hear())["data"]).job_id == "J"
        for payload in (
            json.dumps({"event_type": "task_progress", "encrypted": SEALED}).encode(),
            too_large_payload(20_000_000, 16_777_216),
        ):
            position = await rig.log.append(job_tape("J"), NewEvent("x", payload))
            await rig.bus.publish(job_channel("J"), Envelope(payload, "x", position.offset, position.epoch).encode())
            assert (await talk.hear())["offset"] == position.offset
        await rig.publisher.job("task_completed")
        assert (await talk.hear())["final"] is True
        # Somebody else writes to the tape, too: no numbers on the pushes, and a string for the position.
        await rig.log.create(job_tape("M"), owner="U", channel=job_channel("M"))
        reel = rig.log.reels[job_tape("M")]
        reel.tape = replace(reel.tape, mixed=True)
        reply = await talk.ask("subscribe_job", {"job_id": "M", "since": "earliest"})
        assert reply["data"]["mixed"] is True
        assert isinstance((await talk.hear())["offset"], str)


async def encrypted_executions(recording: Recording) -> None:
    async with talking(recording) as talk:
        await talk.ask("subscribe_graph_execution", {"graph_exec_id": "E", "outputs": "each"})
        for event_type in ("graph_execution_update", "node_execution_update", "node_output_update"):
            await talk.site.rig.publisher._publish("E", {"event_type": event_type, "encrypted": SEALED})
            assert (await talk.hear())["data"]["encrypted"] == SEALED


async def plain_publishers(recording: Recording) -> None:
    """Events without a number."""
    async with talking(recording) as talk:
        await talk.ask("subscribe_graph_execution", {"graph_exec_id": "E"})
        await talk.publish(node(), durable=False)
        assert "offset" not in await talk.hear()


async def lost_events(recording: Recording) -> None:
    async with talking(recording) as talk:
        await talk.ask("subscribe_graph_execution", {"graph_exec_id": "E"})
        for _ in range(3):
            await talk.publish(node(), live=False)
        await talk.site.rig.log.trim(execution_tape("E"), keep_after=2)
        await talk.publish(node())
        assert (await talk.hear_until("gap"))[-1]["data"]["from"] == 1
        assert [(await talk.hear())["offset"] for _ in range(2)] == [3, 4]


class FailingLog(FakeLog):
    """Fails at the next question with this error."""

    error: Exception | None = None

    async def describe(self, tape: str) -> Tape | None:
        error, self.error = self.error, None
        if error is not None:
            raise error
        return await super().describe(tape)


async def everything_that_goes_wrong(recording: Recording) -> None:
    log = FailingLog()
    async with talking(recording, log=log, max_channels=2, max_event_bytes=2_000) as talk:
        subscribe = "subscribe_graph_execution"
        told = [
            await talk.ask("fly", bad=True),
            await talk.ask(subscribe, bad=True),
            await talk.ask(subscribe, {"graph_exec_id": 1}, bad=True, id="x"),
            await talk.ask("unsubscribe", {}, bad=True),
            await talk.ask("notification", {}, bad=True),
        ]
        assert [list(body)[5:] for body in told] == [[], [], ["id"], [], []]
        codes = []
        for data in ({"graph_exec_id": "foreign", "strict": True}, {"graph_exec_id": "E", "strict": True}):
            await log.create(execution_tape("foreign"), owner="V", channel="")
            codes.append((await talk.ask(subscribe, data)).get("code"))
        for error in (LogUnavailableError("away"), ZeroDivisionError()):
            log.error = error
            codes.append((await talk.ask("subscribe_job", {"job_id": "J"}, id=1))["code"])
        await talk.ask("subscribe_job", {"job_id": "J"})
        codes.append((await talk.ask("subscribe_job", {"job_id": "K"}))["code"])
        await talk.publish(node(status_reason="x" * 3_000))
        codes.append((await talk.hear())["code"])
        assert codes == ["not_found", None, "unavailable", "internal", "too_many_channels", "payload_too_large"]


async def events_that_are_too_large(recording: Recording) -> None:
    async with talking(recording, max_event_bytes=2_000) as talk:
        await talk.ask("subscribe_graph_execution", {"graph_exec_id": "E", "outputs": "each"})
        await talk.ask("subscribe_job", {"job_id": "J"})
        large = "x" * 3_000
        for event in (
            node(output_data={"out": [large]}),
            output(0, large),
            graph("COMPLETED", outputs={"out": [large]}),
        ):
            await talk.publish(event)
            assert (await talk.hear())["truncated"] is True
        await talk.site.rig.publisher.job("task_progress", data={"text": large})
        assert "omitted" in (await talk.hear())["data"]["data"]["text"]


async def too_much(recording: Recording) -> None:
    async with talking(recording, max_sockets_per_user=1, message_burst=2, flood_seconds=0) as talk:
        async with talk.site.socket() as ws:
            assert (await Talk(recording, talk.site, ws).hear())["code"] == "too_many_sockets"
            assert (await close_code(ws))[0] == 4029
        for _ in range(3):
            await talk.say("heartbeat")
        assert (await talk.hear_until("error"))[-1]["code"] == "rate_limited"
        assert (await close_code(talk.ws))[0] == 4029


async def a_token_that_ends(recording: Recording) -> None:
    async with served() as site, site.socket(f"?token={site.rig.token(ttl_s=90)}") as ws:
        talk = Talk(recording, site, ws)
        await talk.ask("heartbeat")
        await site.rig.clock.sleeper()
        site.rig.clock.advance(30)
        assert (await talk.hear())["method"] == "token_expiring"


async def a_new_token(recording: Recording) -> None:
    async with talking(recording) as talk:
        token = talk.site.rig.token(ttl_s=120)
        assert (await talk.ask("refresh", {"token": token}))["data"] == {"expires_at": "2030-01-01T00:02:00Z"}
        assert (await talk.ask("refresh", {"token": token}, id=1))["id"] == 1
        for bad in ("rubbish", talk.site.rig.token("V")):
            assert (await talk.ask("refresh", {"token": bad}))["code"] == "invalid_token"


async def an_engine_that_stops(recording: Recording) -> None:
    bus = MemoryBus()

    async def engine(commands: Subscription) -> None:
        async for message in commands:
            command = decode_command(message.data)
            known = command.graph_exec_id == "E"
            answer = StopReply(
                correlation_id=command.correlation_id, accepted=known, error=None if known else "not_found"
            )
            await bus.publish(engine_reply_channel(command.correlation_id), encode(answer))

    async with talking(recording, bus=bus, parts={"stopping": Stopper(bus)}) as talk:
        answering = asyncio.create_task(engine(await bus.subscribe("engine_command/*")))
        stop = "stop_graph_execution"
        assert (await talk.ask(stop, {"graph_exec_id": "E"}))["data"] == {"accepted": True}
        assert (await talk.ask(stop, {"graph_exec_id": "E"}, id=1))["id"] == 1
        assert (await talk.ask(stop, {"graph_exec_id": "F"}))["code"] == "not_found"
        answering.cancel()
        await asyncio.wait({answering})


async def permission_that_is_withdrawn(recording: Recording) -> None:
    denied: list[str] = []

    def check(principal: Principal, subject: Subject, tape: Tape | None) -> Access:
        return Access.DENIED if subject.id in denied else Access.GRANTED

    async with talking(recording, parts={"check": check}) as talk:
        await talk.ask("subscribe_graph_execution", {"graph_exec_id": "E"})
        denied.append("E")
        await Control(talk.site.rig.bus).permission_changed(tape=execution_tape("E"))
        told = await talk.hear()
        assert (told["method"], told["channel"]) == ("unsubscribed", "U|graph_exec#E")


async def a_server_that_moves_out(recording: Recording) -> None:
    async with talking(recording) as talk:
        await talk.ask("heartbeat")
        moving = asyncio.create_task(talk.site.rig.gateway.move_out(5))
        assert (await talk.hear())["method"] == "reconnect"
        moving.cancel()
        await asyncio.wait({moving})


SCENES = (
    everything_that_is_asked,
    jobs,
    encrypted_executions,
    plain_publishers,
    lost_events,
    everything_that_goes_wrong,
    events_that_are_too_large,
    too_much,
    a_token_that_ends,
    a_new_token,
    an_engine_that_stops,
    permission_that_is_withdrawn,
    a_server_that_moves_out,
)


@pytest.mark.slow
async def test_what_is_said_is_what_is_described() -> None:
    recording = Recording(asyncapi_document(GatewayOptions(), version="1"))
    for scene in SCENES:
        await scene(recording)
    assert recording.missing() == []
