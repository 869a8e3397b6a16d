"""The watcher misses nothing that the log has, tells each alert once, and is stopped by nobody's mistake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import BusUnavailableError, ClosedError, LogUnavailableError
from livetape.events.alert_watcher import AlertWatcher, to_owner
from livetape.events.alerts import Alert, Failed, JobSeen, Rule, Silent
from livetape.events.bus import Sink, Subscription
from livetape.events.channel import job_tape
from livetape.events.codec import Envelope
from livetape.events.encrypted import encrypted
from livetape.events.keyring import KEY_BYTES, KeyRing
from livetape.events.log import Entry, EventLog
from livetape.events.notifications import NotificationEvent
from livetape.events.open import Backend
from livetape.events.recorder import LogRecorder
from livetape.events.streams import RedisStreamPublisher
from livetape.testing.fakes import FakeLog, ManualClock


class Diary(Rule):
    """Remembers what it was fed; an alert for each event of type `bad`."""

    name = "diary"

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, float]] = []

    def feed(self, event: JobSeen, now: float) -> Sequence[Alert]:
        self.seen.append((event.job_id, event.event_type, now))
        return [Alert(self.name, event.job_id, "bad", event.event_type)] if event.event_type == "bad" else []

    def tick(self, now: float) -> Sequence[Alert]:
        return []

    @property
    def types(self) -> list[str]:
        return [event_type for _, event_type, _ in self.seen]


class FragileLog(FakeLog):
    """Can be away."""

    away = False

    async def read(self, *arguments: Any, **options: Any) -> Sequence[Entry]:
        if self.away:
            raise LogUnavailableError
        return await super().read(*arguments, **options)


class FragileBus(MemoryBus):
    """Can be away."""

    away = False

    async def subscribe(self, *patterns: str, sink: Sink | None = None) -> Subscription:
        if self.away:
            raise BusUnavailableError
        return await super().subscribe(*patterns, sink=sink)


class Room:
    def __init__(self, bus: MemoryBus | None = None) -> None:
        self.clock = ManualClock()
        self.log, self.bus = FragileLog(self.clock), bus or FragileBus()
        self.backend = Backend(self.bus, self.log, LogRecorder(self.log, self.bus))
        self.publisher = RedisStreamPublisher(backend=self.backend, user_id="u", clock=self.clock)
        self.diary = Diary()
        self.told: list[Alert] = []

    async def say(self, event_type: str, job_id: str = "j") -> None:
        await self.publisher.publish_event(job_id, {"event_type": event_type})

    async def deaf(self, event_type: str, job_id: str = "j") -> None:
        """Onto the tape, unheard."""
        quiet = RedisStreamPublisher(recorder=LogRecorder(self.log, MemoryBus()), log=self.log, clock=self.clock)
        await quiet.publish_event(job_id, {"event_type": event_type})

    async def deliver(self, alert: Alert) -> None:
        self.told.append(alert)

    @asynccontextmanager
    async def watching(self, *rules: Rule, log: EventLog | None = None, **options: Any) -> AsyncIterator[AlertWatcher]:
        given = {"deliver": self.deliver, "log": log or self.log, "clock": self.clock, "sleep": self.clock.sleep}
        async with AlertWatcher(self.backend.bus, rules or [self.diary], **(given | options)) as watcher:
            yield watcher

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.001)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    room = Room()
    yield room
    await room.bus.close()


async def test_a_failed_job_is_told_to_its_owner(room: Room):
    published: list[NotificationEvent] = []

    class Notifications:
        async def publish(self, event: NotificationEvent) -> None:
            published.append(event)

    async with room.watching(Failed(), deliver=to_owner(Notifications())):
        await room.publisher.publish_task_started("j", "write")
        await room.publisher.publish_task_failed("j", "write", "boom")
        await room.until(lambda: bool(published))
    (event,) = published
    assert event.user_id == "u"
    assert event.payload.model_dump() == {
        "type": "alert", "event": "failed", "job_id": "j", "message": "job j: task_failed",
        "event_type": "task_failed", "suppressed": 0,
    }  # fmt: skip


async def test_a_job_without_an_owner_goes_to_somebody_else_or_is_counted(room: Room):
    users: list[str] = []

    class Notifications:
        async def publish(self, event: NotificationEvent) -> None:
            users.append(event.user_id)

    room.publisher.user_id = None
    for otherwise in ("admin", None):
        deliver = to_owner(Notifications(), otherwise=otherwise)
        async with room.watching(deliver=deliver) as watcher:
            await room.say("bad")
            await room.until(lambda: watcher.stats.delivered + watcher.stats.failed == 1)
            assert watcher.stats.failed == (otherwise is None)
    assert users == ["admin"]


async def test_a_silent_job_is_told_when_time_has_passed(room: Room):
    async with room.watching(Silent(30), tick_s=1):
        await room.say("task_started")
        await asyncio.sleep(0.01)
        for _ in range(29):
            await room.clock.sleeper()
            room.clock.advance(1)
            await asyncio.sleep(0)
        assert room.told == []
        for _ in range(2):
            await room.clock.sleeper()
            room.clock.advance(1)
            await asyncio.sleep(0.001)
        await room.until(lambda: bool(room.told))
    assert [(alert.rule, alert.job_id, alert.owner) for alert in room.told] == [("silent", "j", "u")]


async def test_a_hole_is_read_from_the_log(room: Room):
    async with room.watching() as watcher:
        await room.say("a")
        await room.deaf("b")
        await room.deaf("bad")
        await room.say("d")
        await room.until(lambda: len(room.diary.seen) == 4)
        assert room.diary.types == ["a", "b", "bad", "d"]
        assert watcher.stats.lost == 0
    assert [alert.event_type for alert in room.told] == ["bad"]


async def test_events_of_the_past_are_fed_with_their_time(room: Room):
    async with room.watching():
        await room.say("a")
        await room.until(lambda: len(room.diary.seen) == 1)
        await room.deaf("b")
        room.clock.advance(100)
        await room.say("c")
        await room.until(lambda: len(room.diary.seen) == 3)
    first, second, third = (now for *_, now in room.diary.seen)
    assert first == pytest.approx(second)
    assert third == pytest.approx(first + 100)


@pytest.mark.parametrize("behind_s", [-3600, 0, 3600])
async def test_a_log_with_another_clock_costs_no_alert(room: Room, behind_s: float):
    room.log._clock = ManualClock(room.clock.now() - timedelta(seconds=behind_s))
    async with room.watching(Failed(("bad",), cooldown_s=0)):
        await room.say("bad")
        await room.until(lambda: len(room.told) == 1)
        await room.deaf("bad")
        await room.say("bad")
        await room.until(lambda: len(room.told) == 3)


async def test_a_repetition_is_fed_once(room: Room):
    async with room.watching():
        for offset in (1, 2, 2, 1, 3):
            await room.bus.publish("job_event/x", Envelope(b'{"event_type":"e"}', "e", offset, "epoch").encode())
        await room.say("last")
        await room.until(lambda: "last" in room.diary.types)
    assert room.diary.types == ["e", "e", "e", "last"]


async def test_without_a_log_what_is_lost_is_counted(room: Room):
    watcher = AlertWatcher(room.bus, [room.diary], room.deliver)
    async with watcher:
        for offset in (1, 5):
            await room.bus.publish("job_event/x", Envelope(b'{"event_type":"bad"}', "bad", offset, "epoch").encode())
        await room.until(lambda: watcher.stats.delivered == 2)
    assert (watcher.stats.lost, len(room.diary.seen)) == (3, 2)
    assert [alert.owner for alert in room.told] == [None, None]


async def test_a_flood_loses_nothing():
    room = Room(MemoryBus(max_messages=5))
    async with room.watching() as watcher:
        for job in ("a", "b"):
            await room.say("first", job)
        await room.until(lambda: len(room.diary.seen) == 2)
        for n in range(50):  # nobody listens meanwhile: this never waits for longer than the bus
            await room.say(str(n), "a")
        await room.say("only", "b")
        await room.until(lambda: len(room.diary.seen) == 53)
        assert [t for job, t, _ in room.diary.seen if job == "a"] == ["first", *(str(n) for n in range(50))]
        assert watcher.stats.lost == 0
    await room.bus.close()


async def test_a_bus_that_went_away_is_listened_to_again_and_the_tapes_are_read(room: Room):
    async with room.watching() as watcher:
        await room.say("a")
        await room.until(lambda: len(room.diary.seen) == 1)
        assert isinstance(room.bus, FragileBus)
        room.bus.away = True
        for subscription in list(room.bus._subscriptions):
            await subscription.close()
        await room.until(lambda: not watcher.listening.is_set())
        await room.say("bad")
        room.bus.away = False
        while not watcher.listening.is_set():
            await room.clock.sleeper()
            room.clock.advance(1)
            await asyncio.sleep(0.001)
        await room.until(lambda: room.diary.types == ["a", "bad"])
        await room.say("c")
        await room.until(lambda: room.diary.types == ["a", "bad", "c"])


async def test_a_log_that_went_away_is_asked_again(room: Room):
    async with room.watching(tick_s=1):
        await room.say("a")
        await room.deaf("b")
        room.log.away = True
        await room.say("c")
        await room.say("d")
        await asyncio.sleep(0.01)
        assert room.diary.types == ["a"]
        room.log.away = False
        await room.clock.sleeper()
        room.clock.advance(1)
        await room.until(lambda: room.diary.types == ["a", "b", "c", "d"])


async def test_a_tape_that_was_born_again_is_read_from_its_beginning(room: Room):
    async with room.watching():
        await room.say("a")
        await room.until(lambda: len(room.diary.seen) == 1)
        room.log.lose(job_tape("j"))
        await room.deaf("b")
        fresh = RedisStreamPublisher(recorder=LogRecorder(room.log, room.bus), log=room.log, user_id="u")
        await fresh.publish_event("j", {"event_type": "c"})
        await room.until(lambda: room.diary.types == ["a", "b", "c"])


async def test_what_is_too_large_for_the_bus_is_known_by_its_type(room: Room):
    room.publisher = RedisStreamPublisher(backend=room.backend, max_message_bytes=100)
    async with room.watching():
        await room.publisher.publish_event("j", {"event_type": "bad", "text": "x" * 500})
        await room.until(lambda: len(room.told) == 1)
    assert room.diary.types == ["bad"]


async def test_rubbish_is_counted_and_passed_over(room: Room):
    async with room.watching() as watcher:
        await room.bus.publish("job_event/j", b"rubbish")
        await room.bus.publish("job_event/%2A", b'{"payload":{}}')
        await room.bus.publish("job_event/a/b", Envelope(b'{"event_type":"x"}', "x").encode())
        await room.bus.publish("job_event/j", Envelope(b'{"event_type":"plain"}', "plain").encode())
        await room.until(lambda: "plain" in room.diary.types)
        assert watcher.stats.unreadable == 2


async def test_encrypted_jobs_are_watched_and_what_cannot_be_decrypted_is_passed_over(room: Room):
    outside = room.publisher
    room.backend = encrypted(room.backend, KeyRing({"k": b"k" * KEY_BYTES}, current="k"))
    room.publisher = RedisStreamPublisher(backend=room.backend, user_id="u")
    async with room.watching(log=room.backend.log) as watcher:
        await room.say("a")
        await outside.publish_event("j", {"event_type": "forged"})
        await room.say("c")
        await room.until(lambda: room.diary.types == ["a", "c"])
        assert watcher.stats.unreadable == 2  # the message and the entry
        await room.deaf("forged")
        await room.say("e")
        await room.until(lambda: room.diary.types == ["a", "c", "e"])


async def test_callbacks_and_rules_that_fail_are_counted(room: Room):
    class Broken(Rule):
        name = "broken"

        def feed(self, event: JobSeen, now: float) -> Sequence[Alert]:
            raise ZeroDivisionError

        def tick(self, now: float) -> Sequence[Alert]:
            raise ZeroDivisionError

    async def deliver(alert: Alert) -> None:
        if alert.job_id == "hangs":
            await asyncio.Event().wait()
        if alert.job_id == "raises":
            raise ZeroDivisionError
        room.told.append(alert)

    async with room.watching(Broken(), room.diary, deliver=deliver, deliver_timeout_s=0.01) as watcher:
        for job in ("raises", "hangs", "works"):
            await room.say("bad", job)
        await room.until(lambda: watcher.stats.delivered == 1)
        await room.clock.sleeper()
        room.clock.advance(1)
        await room.until(lambda: watcher.stats.broken_rules == 4)
        assert (watcher.stats.raised, watcher.stats.failed, watcher.stats.dropped) == (3, 2, 0)
    assert [alert.job_id for alert in room.told] == ["works"]


async def test_alerts_that_wait_are_bounded_and_the_newest_are_kept(room: Room):
    gate = asyncio.Event()

    async def deliver(alert: Alert) -> None:
        await gate.wait()
        room.told.append(alert)

    async with room.watching(deliver=deliver, max_waiting=3) as watcher:
        for n in range(10):
            await room.say("bad", str(n))
        await room.until(lambda: len(room.diary.seen) == 10)
        gate.set()
        await room.until(lambda: watcher.stats.delivered + watcher.stats.dropped == 10)
    assert [alert.job_id for alert in room.told][-3:] == ["7", "8", "9"]


async def test_jobs_that_are_tracked_are_bounded(room: Room):
    async with room.watching(max_jobs=3) as watcher:
        for n in range(10):
            await room.say("a", str(n))
        await room.until(lambda: len(room.diary.seen) == 10)
        assert len(watcher._jobs) == 3


async def test_a_closed_bus_is_told_at_once():
    bus = MemoryBus()
    await bus.close()
    with pytest.raises(ClosedError):
        async with AlertWatcher(bus, [], Room().deliver):
            pass


async def test_a_bus_that_is_closed_meanwhile_ends_the_watching(room: Room, caplog: pytest.LogCaptureFixture):
    async with room.watching() as watcher:
        await room.bus.close()
        await room.clock.sleeper()
        while watcher._task is not None and not watcher._task.done():
            room.clock.advance(1)
            await asyncio.sleep(0.001)
    assert "the watcher had ended before" in caplog.text
