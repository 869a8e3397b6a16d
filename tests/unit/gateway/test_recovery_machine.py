"""Whatever happens to log, bus and watchers, each watcher has every event once, in order, or was told; and no other's.

The log loses its end, is lost and born again, is taken by another owner, is trimmed; live messages are lost, doubled,
swapped, forged; watchers come at any position and are slow at any moment.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from livetape.adapters.memory.bus import MemoryBus
from livetape.auth import Principal
from livetape.events.channel import job_channel, job_tape
from livetape.events.codec import Envelope
from livetape.events.log import NewEvent, Position
from livetape.gateway.forms import LinesForm
from livetape.gateway.marks import MARKS
from livetape.gateway.messages import Push, SincePosition
from livetape.gateway.options import GatewayOptions
from livetape.gateway.outbox import Outbox
from livetape.gateway.streams import TapeStreams
from livetape.gateway.subjects import Kind, Subject
from livetape.gateway.subscription import Client, Subscription
from livetape.testing.fakes import FakeLog

TAPE, CHANNEL, SUBJECT = job_tape("J"), job_channel("J"), Subject(Kind.JOB, "J")
FORM = LinesForm()
END = Push(b"the end")

STEPS = ["append"] * 5 + ["live"] * 5 + ["turn"] * 4 + ["lose", "double", "swap", "cut", "born again", "taken", "trim"]
STEPS += ["forge", "forge", "watch", "watch", "slow", "sweep"]


@dataclass(eq=False)
class Watcher:
    """A client and everything that it was sent."""

    user: str
    start: Position | None = None
    got: list[dict[str, Any]] = field(default_factory=list)
    outbox: Outbox = field(init=False)
    subscription: Subscription | None = None
    withdrawn: bool = False
    ended: bool = False

    def __post_init__(self) -> None:
        self.outbox = Outbox(10_000, 3, self.take)
        self.outbox.open()

    def take(self, push: Push) -> None:
        assert not self.ended, "nothing comes any more"
        self.ended = END in push.parts
        self.got += [json.loads(part.data) for part in push.parts if part is not END]

    def withdraw(self) -> None:
        self.withdrawn = True
        self.outbox.force(END)  # after what waits for it, which is its own

    def check(self, world: World) -> None:
        """What it got, one after the other; and that the last of it is what the log has."""
        epoch, offset = (None, None) if self.start is None else (self.start.epoch, self.start.offset)
        run: dict[int, int] = {}
        for body in self.got:
            data = body["data"]
            if body["event_type"] == "gap":
                if data["to"] is not None:
                    assert data["epoch"] == epoch, self
                    assert offset is None or data["from"] == offset + 1, self
                    offset = data["to"]
                else:
                    epoch, offset, run = data["epoch"], None, {}
                continue
            assert data["owner"] == self.user, self
            if offset is not None:
                assert (body["epoch"], body["offset"]) == (epoch or body["epoch"], offset + 1), self
            epoch, offset = body["epoch"], body["offset"]
            run[offset] = data["n"]
        reel = world.log.reels[TAPE]
        if self.withdrawn or reel.tape.owner != self.user:
            assert self.withdrawn or self.subscription is None or self.start == Position("", 0), self
            return
        if self.subscription is None:
            return  # it asked while it was somebody else's: an id that nobody knows
        assert (epoch, offset) in {(reel.tape.epoch, reel.tape.offset), (reel.tape.epoch, None)}, self
        held = {entry.offset: json.loads(entry.payload)["n"] for entry in reel.entries}
        assert {n: run[n] for n in run if n in held} == {n: held[n] for n in run if n in held}, self


class World:
    """The log, the bus, and one gateway process without sockets."""

    def __init__(self) -> None:
        self.log = FakeLog()
        self.bus = MemoryBus()
        self.number = 0
        self.messages: list[bytes] = []
        self.watchers: list[Watcher] = []
        self.tasks: set[asyncio.Task[None]] = set()
        options = GatewayOptions(tail_max_events=3, replay_chunk_events=2)
        self.streams = TapeStreams(options, self.bus, self.log, sleep=self.sleep)

    @staticmethod
    async def sleep(seconds: float) -> None:
        if seconds >= 5:
            await asyncio.get_running_loop().create_future()  # the sweep is called by hand
        await asyncio.sleep(0)

    def payload(self, owner: str | None) -> bytes:
        self.number += 1
        return json.dumps({"event_type": "task_progress", "n": self.number, "owner": owner}).encode()

    async def create(self, owner: str) -> None:
        self.log.lose(TAPE)
        await self.log.create(TAPE, owner=owner, channel=CHANNEL)

    async def append(self) -> None:
        payload = self.payload(self.log.reels[TAPE].tape.owner)
        position = await self.log.append(TAPE, NewEvent("task_progress", payload))
        self.message(payload, position)

    def message(self, payload: bytes, position: Position) -> None:
        self.messages.append(Envelope(payload, "task_progress", position.offset, position.epoch).encode())

    async def watch(self, user: str, since: Any) -> None:
        watcher = Watcher(user)
        opening = await self.streams.subscriptions.open(SUBJECT, Principal(user), since)
        if opening.topic is not None:
            watcher.start = opening.start or opening.topic.position

        def spawn(work: Any) -> asyncio.Task[None]:
            task = asyncio.create_task(work)
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            return task

        client = Client(watcher.outbox, spawn, too_slow=_fail, broken=_fail)
        watcher.subscription = self.streams.subscriptions.begin(
            opening, FORM, client, each=True, announce=False, on_withdrawn=watcher.withdraw
        )
        self.watchers.append(watcher)

    async def sweep(self) -> None:
        await self.streams._sweep.look_at(self.streams.hub.topics())

    async def settle(self) -> None:
        for _ in range(200):
            await asyncio.sleep(0)

    async def step(self, name: str, draw: Any) -> None:
        tape, messages = self.log.reels[TAPE].tape, self.messages
        match name:
            case "append" if tape.offset < MARKS - 3:  # so many events are compared with the log
                await self.append()
            case "live" if messages:
                await self.bus.publish(CHANNEL, messages.pop(0))
            case "lose" if messages:
                messages.pop(0)
            case "double" if messages:
                messages.insert(0, messages[0])
            case "swap" if len(messages) > 1:
                messages[0], messages[1] = messages[1], messages[0]
            case "cut":
                self.log.cut(TAPE, draw(st.integers(tape.first_offset - 1, tape.offset)))
            case "born again":
                await self.create(tape.owner or "")
            case "taken":
                await self.create("V" if tape.owner == "U" else "U")
            case "trim":
                await self.log.trim(TAPE, keep_after=draw(st.integers(0, tape.offset)))
            case "forge":
                epoch = draw(st.sampled_from([tape.epoch, tape.epoch, "forged"]))
                owner = tape.owner if epoch == tape.epoch else None
                offset = draw(st.sampled_from([1, 2, tape.offset, tape.offset + 1, tape.offset + 3, 2**53]))
                if offset:
                    self.message(self.payload(owner), Position(epoch, offset))
            case "watch":
                position = SincePosition(epoch=tape.epoch, offset=draw(st.integers(0, tape.offset + 2)))
                await self.watch(draw(st.sampled_from("UV")), draw(st.sampled_from([None, "earliest", position])))
            case "slow" if self.watchers:
                outbox = draw(st.sampled_from(self.watchers)).outbox
                if outbox.shut:
                    outbox.open()
                else:
                    outbox.shut = True
            case "sweep":
                await self.sweep()
            case "turn":
                for _ in range(draw(st.integers(1, 12))):
                    await asyncio.sleep(0)

    async def end(self) -> None:
        """Everything comes to rest: what waits is delivered, and the sweep has found what is left."""
        for watcher in self.watchers:
            watcher.outbox.open()
        for message in self.messages:
            await self.bus.publish(CHANNEL, message)
        await self.settle()
        self.messages.clear()
        await self.append()
        await self.bus.publish(CHANNEL, self.messages.pop())
        for _ in range(4):
            await self.settle()
            await self.sweep()
        await self.settle()


def _fail() -> None:
    raise AssertionError


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_each_event_once_in_order_or_told(data: st.DataObject) -> None:
    asyncio.run(_run(data))


async def _run(data: st.DataObject) -> None:
    world = World()
    await world.create("U")
    running = asyncio.create_task(world.streams.run())
    await world.streams.ready.wait()
    try:
        for name in data.draw(st.lists(st.sampled_from(STEPS), max_size=40)):
            await world.step(name, data.draw)
        await world.end()
        for watcher in world.watchers:
            watcher.check(world)
        for watcher in world.watchers:
            if watcher.subscription is not None:
                watcher.subscription.close()
        await world.settle()
        assert world.streams.hub.topics() == []
        assert not world.streams.hub._routes
        assert not world.tasks
    finally:
        running.cancel()
        await asyncio.wait({running, *world.tasks})
        await world.bus.close()
