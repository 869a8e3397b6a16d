"""The publisher of job streams with the older names, on a log in memory."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import uuid
from pathlib import Path

import pytest

from livetape.adapters.memory.bus import MemoryBus
from livetape.errors import ChannelError, CodecError, ConfigError, NotFoundError
from livetape.events.codec import split
from livetape.events.event import JobEvent
from livetape.events.jobs import Jobs
from livetape.events.open import Backend
from livetape.events.recorder import LogRecorder
from livetape.events.streams import RedisStreamPublisher
from livetape.testing.fakes import FakeLog, ManualClock

NOW = "2030-01-01T00:00:00+00:00"


class Rig:
    def __init__(self, **more: object) -> None:
        self.clock = ManualClock()
        self.log, self.bus = FakeLog(self.clock), MemoryBus()
        self.backend = Backend(self.bus, self.log, LogRecorder(self.log, self.bus))
        self.publisher = RedisStreamPublisher(backend=self.backend, clock=self.clock, **more)

    async def events(self, job_id: str = "j") -> list[dict[str, object]]:
        return [json.loads(entry.payload) for entry in await self.log.read(f"job_events:{job_id}")]


async def test_every_method_writes_what_its_name_says() -> None:
    rig = Rig()
    publish = rig.publisher
    ids = [
        await publish.publish_task_started("j", "outline_generation", task_prompt="生成"),
        await publish.publish_task_progress("j", "outline_generation", "正在分析", step="analysis"),
        await publish.publish_outline_generated("j", {"title": "技术文档"}),
        await publish.publish_document_generated("j", {"word_count": 1500}),
        await publish.publish_task_completed("j", "outline_generation", {"outline": {}}, duration="30s"),
        await publish.publish_task_failed("j", "outline_generation", "broken"),
    ]
    assert ids == [f"{n}-0" for n in range(1, 7)]
    events = await rig.events()
    assert [event["data"] for event in events] == [
        {
            "event_type": "task_started",
            "task_type": "outline_generation",
            "timestamp": NOW,
            "task_prompt": "生成",
        },
        {
            "event_type": "task_progress",
            "task_type": "outline_generation",
            "progress": "正在分析",
            "timestamp": NOW,
            "step": "analysis",
        },
        {"event_type": "outline_generated", "outline": {"title": "技术文档"}, "timestamp": NOW},
        {"event_type": "document_generated", "document": {"word_count": 1500}, "timestamp": NOW},
        {
            "event_type": "task_completed",
            "task_type": "outline_generation",
            "result": {"outline": {}},
            "timestamp": NOW,
            "duration": "30s",
        },
        {"event_type": "task_failed", "task_type": "outline_generation", "error": "broken", "timestamp": NOW},
    ]
    for event in events:
        assert event["event_type"] == event["data"]["event_type"]
        assert (event["job_id"], event["timestamp"]) == ("j", NOW)
        JobEvent.model_validate(event)
    entries = await rig.log.read("job_events:j")
    assert [entry.final for entry in entries] == [False] * 4 + [True] * 2
    assert "生成".encode() in entries[0].payload, "characters stay themselves"


async def test_the_payload_is_that_of_the_event_model() -> None:
    rig = Rig()
    data = {"event_type": "custom", "timestamp": "then", "text": 'quotes " and \\ and \n', "n": [1, 2.5, None, True]}
    await rig.publisher.publish_event('j"1', data)
    (entry,) = await rig.log.read("job_events:j%221")
    model = JobEvent(event_type="custom", job_id='j"1', timestamp="then", data=data)
    assert entry.payload == model.model_dump_json().encode()


async def test_an_event_without_type_and_time() -> None:
    rig = Rig()
    await rig.publisher.publish_event("j", {"message": "x"})
    await rig.publisher.publish_event("j", {"event_type": None, "timestamp": None})
    await rig.publisher.publish_event("j", {"event_type": 5, "timestamp": dt.date(2030, 1, 2)})
    events = await rig.events()
    assert [(e["event_type"], e["timestamp"]) for e in events] == [
        ("unknown", ""),
        ("unknown", ""),
        ("5", "2030-01-02"),
    ]
    assert events[0]["data"] == {"message": "x"}, "the data is what was given"


async def test_a_time_of_ones_own_stays() -> None:
    rig = Rig()
    await rig.publisher.publish_task_started("j", "t", timestamp="yesterday", event_type="other")
    (event,) = await rig.events()
    assert (event["event_type"], event["timestamp"]) == ("task_started", "yesterday")
    assert event["data"]["event_type"] == "task_started"


async def test_watchers_get_it_with_its_position() -> None:
    rig = Rig()
    async with await rig.bus.subscribe("job_event/j") as subscription:
        await rig.publisher.publish_task_completed("j", "t", {})
        envelope = split((await anext(aiter(subscription))).data)
        assert (envelope.event_type, envelope.offset, envelope.final) == ("task_completed", 1, True)


async def test_what_json_carries_in_another_form() -> None:
    rig = Rig()
    moment = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    await rig.publisher.publish_event("j", {"at": moment, "id": uuid.UUID(int=1), "set": {1}, "tuple": (1, 2)})
    (event,) = await rig.events()
    assert event["data"] == {
        "at": "2030-01-01T00:00:00Z",
        "id": "00000000-0000-0000-0000-000000000001",
        "set": [1],
        "tuple": [1, 2],
    }


@pytest.mark.parametrize(
    "value",
    [
        object(),
        b"\xff",
        float("nan"),
        float("inf"),
        [-float("inf")],
        {"deep": {"er": float("nan")}},
        "\ud800" and {"a": "\ud800", "b": float("nan")},
    ],
)
async def test_what_json_cannot_carry_is_refused(value: object) -> None:
    rig = Rig()
    with pytest.raises(CodecError):
        await rig.publisher.publish_event("j", {"value": value})
    assert await rig.publisher.get_stream_length("j") == 0


async def test_words_that_look_like_no_numbers_are_text() -> None:
    rig = Rig()
    await rig.publisher.publish_event("j", {"value": "NaN and -Infinity"})
    assert (await rig.events())[0]["data"] == {"value": "NaN and -Infinity"}


async def test_lone_surrogates_never_cost_the_event() -> None:
    rig = Rig()
    async with await rig.bus.subscribe("job_event/j") as subscription:
        await rig.publisher.publish_event("j", {"event_type": "a\ud800", "text": "b\udc00"})
        assert split((await anext(aiter(subscription))).data).lossy
    (event,) = await rig.events()
    assert event["event_type"] == "a\\ud800"
    assert event["data"]["text"] == "b\\udc00"


async def test_what_is_no_dict_is_refused() -> None:
    with pytest.raises(CodecError):
        await Rig().publisher.publish_event("j", ["no", "dict"])


async def test_too_large_for_the_bus_is_whole_on_the_tape() -> None:
    rig = Rig(max_message_bytes=500)
    async with await rig.bus.subscribe("job_event/j") as subscription:
        await rig.publisher.publish_event("j", {"event_type": "big", "text": "x" * 1000})
        envelope = split((await anext(aiter(subscription))).data)
    assert envelope.event_type == "error_comms_update"
    assert envelope.offset == 1
    assert len((await rig.events())[0]["data"]["text"]) == 1000


async def test_the_limit_is_that_of_the_whole_message() -> None:
    rig = Rig(max_message_bytes=500)
    async with await rig.bus.subscribe("job_event/j") as subscription:
        messages = aiter(subscription)
        sizes, kinds = [], set()
        for length in range(150, 450, 5):
            await rig.publisher.publish_event("j", {"event_type": "task_failed", "text": "ä" * (length // 2)})
            data = (await anext(messages)).data
            sizes.append(len(data))
            kinds.add(split(data).event_type)
    assert kinds == {"task_failed", "error_comms_update"}
    assert 350 < max(sizes) <= 500


async def test_a_job_belongs_to_who_published_first() -> None:
    rig = Rig(user_id="ann")
    await rig.publisher.publish_task_started("j", "t")
    other = RedisStreamPublisher(backend=rig.backend, user_id="bob")
    with pytest.raises(NotFoundError, match="Job #j not found"):
        await other.publish_task_started("j", "t")
    for look in (other.get_stream_info, other.get_stream_length):
        with pytest.raises(NotFoundError):
            await look("j")
    await other.publish_task_started("j", "t", user_id="ann")
    with pytest.raises(NotFoundError):
        await rig.publisher.publish_event("j", {}, user_id="bob")
    await RedisStreamPublisher(backend=rig.backend).publish_event("j", {})  # claims nothing, is refused nothing
    assert (await rig.log.describe("job_events:j")).owner == "ann"
    assert await rig.publisher.get_stream_length("j") == 3


async def test_an_idempotency_key_writes_once() -> None:
    rig = Rig()
    first = await rig.publisher.publish_event("j", {"n": 1}, idempotency_key="k")
    assert await rig.publisher.publish_event("j", {"n": 2}, idempotency_key="k") == first
    assert await rig.publisher.get_stream_length("j") == 1


async def test_info_and_length() -> None:
    rig = Rig()
    assert await rig.publisher.get_stream_length("j") == 0
    assert await rig.publisher.get_stream_info("j") == {"length": 0}
    for number in range(3):
        await rig.publisher.publish_event("j", {"event_type": "e", "timestamp": "t", "n": number})
    info = await rig.publisher.get_stream_info("j")
    assert info["length"] == 3
    assert info["last-generated-id"] == "3-0"
    assert info["first-entry"][0] == "1-0"
    identity, fields = info["last-entry"]
    assert identity == "3-0"
    assert {**fields, "data": json.loads(fields["data"])} == {
        "data": {"event_type": "e", "timestamp": "t", "n": 2},
        "timestamp": "t",
        "event_type": "e",
    }
    assert (info["offset"], info["first_offset"], info["final"], info["mixed"]) == (3, 1, False, False)
    await rig.log.trim("job_events:j", keep_after=3)
    info = await rig.publisher.get_stream_info("j")
    assert (info["length"], info["first-entry"], info["last-entry"]) == (0, None, None)


async def test_how_it_is_made() -> None:
    rig = Rig()
    for arguments in ({}, {"backend": rig.backend, "recorder": rig.backend.recorder}, {"backend": Backend(rig.bus)}):
        with pytest.raises(ConfigError):
            RedisStreamPublisher(**arguments)
    alone = RedisStreamPublisher(recorder=rig.backend.recorder)
    assert await alone.publish_event("j", {}) == "1-0"
    with pytest.raises(ConfigError):
        await alone.get_stream_length("j")
    beside = RedisStreamPublisher(recorder=rig.backend.recorder, log=rig.log)
    assert await beside.get_stream_length("j") == 1
    with pytest.raises(ChannelError):
        await alone.publish_event("", {})
    async with alone:
        pass
    assert await rig.publisher.publish_event("j", {}) == "2-0", "what was given stays open"


@pytest.mark.parametrize("owner", ["", "*"])
async def test_nobody_has_such_an_id(owner: str) -> None:
    rig = Rig(user_id=owner)
    with pytest.raises(ChannelError, match="owner"):
        await rig.publisher.publish_event("j", {})
    with pytest.raises(ChannelError, match="owner"):
        await Rig().publisher.publish_event("j", {}, user_id=owner)
    with pytest.raises(ChannelError, match="owner"):
        await Jobs(LogRecorder(rig.log, rig.bus)).publish(owner, "j", "note", {})
    assert await rig.log.describe("job_events:j") is None


def test_a_later_event_loop_opens_a_url_again(tmp_path: Path) -> None:
    publisher = RedisStreamPublisher(url=f"sqlite:///{tmp_path}/jobs.db")

    async def step() -> str:
        return await publisher.publish_event("j", {"event_type": "step"})

    async def last() -> str:
        async with publisher:
            return await step()

    assert [asyncio.run(step()), asyncio.run(last())] == ["1-0", "2-0"]


async def test_two_event_loops_at_once_are_refused(tmp_path: Path) -> None:
    async with RedisStreamPublisher(url=f"sqlite:///{tmp_path}/jobs.db") as publisher:
        await publisher.publish_event("j", {})

        def elsewhere() -> None:
            asyncio.run(_publish(publisher))

        with pytest.raises(ConfigError, match="another event loop"):
            await asyncio.to_thread(elsewhere)


async def _publish(publisher: RedisStreamPublisher) -> None:
    await publisher.publish_event("j", {})
