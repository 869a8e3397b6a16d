"""What the event library counts, on every adapter that needs no server."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import BaseModel

from livetape.adapters.memory.bus import MemoryBus
from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.events.log import NewEvent
from livetape.events.open import open_backend
from livetape.events.reader import JobReader
from livetape.events.recorder import LogRecorder
from livetape.events.streams import RedisStreamPublisher
from livetape.events.tally import Tally
from livetape.events.typed import EventBus
from livetape.observability import TRACEPARENT
from livetape.testing.fakes import FakeLog

TRACE = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


class Note(BaseModel):
    text: str


class Counts:
    def __init__(self) -> None:
        self.counted: dict[str, float] = {}
        self.calls = 0
        self.gauges: list[tuple[str, float, str]] = []
        self.observed: list[str] = []

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        self.calls += 1
        self.counted[name] = self.counted.get(name, 0) + amount

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self.gauges.append((name, value, labels.get("kind", "")))

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        assert 0 <= seconds < 60
        self.observed.append(name)


async def test_a_bus_in_memory_counts_what_it_carries() -> None:
    counts = Counts()
    async with EventBus(Note, name="n", url="memory://", metrics=counts) as bus, bus.listen("*"), bus.listen("a"):
        for _ in range(100):
            await bus.publish(Note(text="x"), "a")
    assert counts.counted["bus_published_total"] == 100
    assert counts.counted["bus_delivered_total"] == 200
    assert counts.counted["bus_published_bytes_total"] > 100 * len('{"payload":{"text":"x"}}')
    assert counts.observed == ["bus_publish_seconds"] * 2, "every 64th"
    assert counts.calls <= 9, "in lots"


async def test_what_a_slow_reader_loses_is_counted() -> None:
    counts = Counts()
    bus = MemoryBus(max_messages=2, metrics=counts)
    async with await bus.subscribe("n/a"):
        for _ in range(5):
            await bus.publish("n/a", b"{}")
    await bus.close()
    assert counts.counted["bus_dropped_total"] == 3


async def test_a_durable_bus_counts_what_it_records(tmp_path: Path) -> None:
    counts = Counts()
    async with (
        EventBus(Note, name="n", url=f"sqlite:///{tmp_path}/n.db", durable=True, metrics=counts) as bus,
        bus.listen("a"),
    ):
        for _ in range(3):
            await bus.publish(Note(text="x"), "a")
        await bus.publish(Note(text="x"), "a", idempotency_key="k")
        await bus.publish(Note(text="x"), "a", idempotency_key="k")
    assert counts.counted["log_recorded_total"] == 4
    assert counts.counted["log_recorded_bytes_total"] == 4 * len('{"text":"x"}')
    assert counts.counted["bus_published_total"] == counts.counted["log_delivered_total"] == 4
    assert "log_record_seconds" in counts.observed


async def test_a_recorder_of_any_log_counts_too() -> None:
    counts = Counts()
    recorder = LogRecorder(FakeLog(), MemoryBus(), metrics=counts)
    await recorder.record("t", "c", NewEvent("x", b"{}"))
    with pytest.raises(Exception, match="no tape"):
        await _refused(recorder)
    await recorder.close()
    assert (counts.counted["log_recorded_total"], counts.counted["log_failed_total"]) == (2, 1)


async def _refused(recorder: LogRecorder) -> None:
    await recorder.record("mine", "c", NewEvent("x", b"{}"), owner="one")
    await recorder.record("mine", "c", NewEvent("x", b"{}"), owner="two")


async def test_counts_are_handed_on_every_256_and_after_a_while() -> None:
    counts = Counts()
    tally = Tally.of_bus(counts)
    assert tally is not None
    for _ in range(257):
        tally.add(1, 0)
    assert counts.counted["bus_published_total"] == 256
    async with asyncio.timeout(10):
        while counts.counted["bus_published_total"] < 257:
            await asyncio.sleep(0.05)


async def test_a_follower_tells_how_far_it_is_behind(tmp_path: Path) -> None:
    counts = Counts()
    async with open_backend(f"sqlite:///{tmp_path}/jobs.db") as backend:
        publisher = RedisStreamPublisher(backend=backend)
        for _ in range(5):
            await publisher.publish_event("j", {"event_type": "note"})
        reader = JobReader.of(backend, metrics=counts)
        items = reader.follow("j")
        for _ in range(5):
            await anext(items)
        assert counts.gauges[0] == ("event_log_lag", 5, "job_events")
        await publisher.publish_event("j", {"event_type": "task_completed"})
        await anext(items)
        following = asyncio.ensure_future(anext(items))
        async with asyncio.timeout(10):
            while counts.gauges[-1] != ("event_log_lag", 0, "job_events"):
                await asyncio.sleep(0.01)
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


@pytest.mark.parametrize("limit", [10_000, 200])
async def test_the_copy_of_a_job_event_carries_its_trace(tmp_path: Path, limit: int) -> None:
    async with open_backend(f"sqlite:///{tmp_path}/jobs.db") as backend:
        publisher = RedisStreamPublisher(backend=backend, max_message_bytes=limit)
        async with await backend.bus.subscribe("job_event/*") as heard:
            TRACEPARENT.set(TRACE)
            await publisher.publish_event("j", {"event_type": "note"})
            message = json.loads((await anext(aiter(heard))).data)
    assert message.get("traceparent") == (TRACE if limit > 1000 else None)
    assert message["payload"]["event_type"] == "note"


async def test_prometheus_shows_all_of_it(tmp_path: Path) -> None:
    metrics = PrometheusMetrics("tape")
    async with (
        EventBus(Note, name="n", url=f"sqlite:///{tmp_path}/n.db", durable=True, metrics=metrics) as bus,
        bus.listen("a", after="earliest") as listener,
    ):
        await bus.publish(Note(text="x"), "a")
        await anext(listener)
    text = metrics.render()[0].decode()
    for name in (
        "bus_published_total",
        "bus_published_bytes_total",
        "bus_delivered_total",
        "bus_publish_seconds_count",
        "log_recorded_total",
        "log_recorded_bytes_total",
        "log_delivered_total",
        "log_record_seconds_count",
    ):
        assert f"tape_{name} " in text, name
    assert 'tape_event_log_lag{kind="bus' in text
