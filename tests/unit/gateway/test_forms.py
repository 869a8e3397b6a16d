"""One event as SSE, as a line, as part of a page."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from livetape.events.log import NewEvent, Position
from livetape.events.tape_event import MixedTapeEvent, TapeEvent, shortened
from livetape.gateway.forms import LinesForm, SocketForm, SseForm
from livetape.gateway.page import read_page
from livetape.testing.fakes import FakeLog, ManualClock

EVENT = TapeEvent("task_progress", b'{"event_type":"task_progress"}', 7, "k3v9x0aq")
LAST = TapeEvent("task_completed", b"{}", 8, "k3v9x0aq", final=True)


def test_server_sent_events() -> None:
    form = SseForm()
    assert form.event(EVENT) == b'id: k3v9x0aq-7\nevent: task_progress\ndata: {"event_type":"task_progress"}\n\n'
    assert form.event(TapeEvent("x", b"{}")) == b"event: x\ndata: {}\n\n"
    assert form.gap(1, 2, "e") == b'event: gap\ndata: {"from":1,"to":2,"epoch":"e"}\n\n'
    assert form.replay_complete(Position("e", 1)) is None
    assert form.too_large(3, "e").startswith(b"id: e-3\nevent: error\n")
    assert form.too_large(None, None).startswith(b"event: error\n")


def test_lines() -> None:
    form = LinesForm()
    assert form.event(EVENT) == (
        b'{"offset":7,"epoch":"k3v9x0aq","event_type":"task_progress","data":{"event_type":"task_progress"}}\n'
    )
    assert form.event(LAST) == (
        b'{"offset":8,"epoch":"k3v9x0aq","event_type":"task_completed","data":{},"final":true}\n'
    )
    assert json.loads(form.gap(1, None, "e")) == {"event_type": "gap", "data": {"from": 1, "to": None, "epoch": "e"}}
    assert json.loads(form.too_large(3, "e"))["offset"] == 3
    assert form.replay_complete(Position("e", 1)) is None


@pytest.mark.parametrize("event", [EVENT, LAST, MixedTapeEvent("task_progress", b"{}", 2**60, "e")])
def test_what_was_cut_says_so_where_there_is_a_place_for_it(event: TapeEvent) -> None:
    cut = shortened(event, b'{"event_type":"task_progress","data":{}}')
    assert (cut.shortened, cut.mixed, event.shortened) == (True, event.mixed, False)
    whole = SocketForm.of("c", is_job=True).event(cut)
    told = SocketForm.of("c", is_job=True).shortened(cut)
    assert whole is not None
    assert told == whole[:-1] + b',"truncated":true}'
    assert SocketForm.of("c", is_job=False).shortened(cut) is None
    line = LinesForm().shortened(cut)
    assert line is not None
    assert json.loads(line)["truncated"] is True
    assert line.endswith(b"\n")
    assert SseForm().shortened(cut) == SseForm().too_large(cut.offset, cut.epoch)


@pytest.mark.parametrize("form", [SseForm(), LinesForm()])
def test_a_foreign_payload_cannot_break_out_of_its_line(form: SseForm | LinesForm) -> None:
    event = TapeEvent("x\r\nevent: forged\0", b'{\r\n "a": "b\\nc"\n}', 1, "e")
    text = form.event(event)
    assert text is not None
    assert b"\r" not in text
    assert text.rstrip(b"\n").count(b"\n") == (2 if isinstance(form, SseForm) else 0)
    assert b"\nevent: forged" not in text


def test_forms_are_shared_by_what_they_make() -> None:
    assert SocketForm.of("a", is_job=False) == SocketForm.of("a", is_job=False)
    assert SocketForm.of("a", is_job=False) != SocketForm.of("b", is_job=False)
    assert len({SseForm(), SseForm(), LinesForm()}) == 2


async def filled(count: int) -> FakeLog:
    log = FakeLog(ManualClock(datetime(2030, 1, 1, tzinfo=UTC)), epochs=lambda: "k3v9x0aq")
    for number in range(1, count + 1):
        kind = "odd" if number % 2 else "even"
        await log.append("job_events:J", NewEvent(kind, b'{"n":%d}' % number, final=number == count))
    return log


async def page(log: FakeLog, **arguments: object) -> dict[str, object]:
    tape = await log.describe("job_events:J")
    assert tape is not None
    options = {"after": 0, "limit": 100, **arguments}
    result: dict[str, object] = json.loads(await read_page(log, tape, **options))  # type: ignore[arg-type]
    return result


async def test_a_page() -> None:
    log = await filled(3)
    assert await page(log, after=1, limit=1) == {
        "events": [{"offset": 2, "event_type": "even", "time": "2030-01-01T00:00:00Z", "data": {"n": 2}}],
        "next": 2,
        "epoch": "k3v9x0aq",
        "offset": 3,
        "final": True,
    }
    last = await page(log, after=2)
    assert last["events"] == [
        {"offset": 3, "event_type": "odd", "time": "2030-01-01T00:00:00Z", "data": {"n": 3}, "final": True}
    ]
    assert last["next"] == 3
    assert await page(log, after=3) == {"events": [], "next": 3, "epoch": "k3v9x0aq", "offset": 3, "final": True}


async def test_pages_of_some_types_go_through_the_whole_tape() -> None:
    log = await filled(1000)
    after, found = 0, []
    for _ in range(100):
        one = await page(log, after=after, limit=7, types={"even"})
        found += [event["offset"] for event in one["events"]]  # type: ignore[attr-defined]
        after = one["next"]  # type: ignore[assignment]
        if after == one["offset"]:
            break
    assert found == list(range(2, 1001, 2))


async def test_a_page_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livetape.gateway.page.MAX_BYTES", 1)
    one = await page(await filled(3))
    assert (len(one["events"]), one["next"]) == (1, 1)  # type: ignore[arg-type]


class TestMixedTapes:
    """Offsets there are larger than JSON numbers carry exactly."""

    EVENT = MixedTapeEvent("task_progress", b"{}", 2**60 + 1, "k3v9x0aq")

    def test_a_push_has_no_position(self) -> None:
        form = SocketForm.of("U|job#J", is_job=True)
        plain = TapeEvent("task_progress", b"{}")
        assert form.event(self.EVENT) == form.event(plain)
        assert form.too_large(2**60 + 1, "e", mixed=True) == form.too_large(None, None)

    def test_the_end_of_the_replay_has_it_as_a_string(self) -> None:
        push = SocketForm.of("U|job#J", is_job=True).replay_complete(Position("e", 2**60 + 1), mixed=True)
        assert push is not None
        assert json.loads(push)["offset"] == str(2**60 + 1)

    def test_a_line_has_it_as_a_string(self) -> None:
        line = LinesForm().event(self.EVENT)
        assert line == (
            b'{"offset":"1152921504606846977","epoch":"k3v9x0aq","event_type":"task_progress","data":{},"mixed":true}\n'
        )
        told = json.loads(LinesForm().too_large(2**60 + 1, "e", mixed=True))
        assert (told["offset"], told["mixed"]) == ("1152921504606846977", True)

    def test_the_id_of_a_block_is_exact(self) -> None:
        assert SseForm().event(self.EVENT).startswith(b"id: k3v9x0aq-1152921504606846977\n")
