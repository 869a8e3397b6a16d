"""What every EventLog must do. Each case is a sentence of the docstrings in `livetape.events.log`.

Subclass it in a test module and give the fixture:

    class TestMyLog(EventLogSuite):
        @pytest.fixture
        async def log(self):
            async with opened(MyLog()) as log:
                yield log

An adapter that keeps events beyond the process also passes `reopen_log`, see `DurableEventLogSuite`.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from livetape.errors import NotFoundError, PositionLostError, TapeHoleError
from livetape.events.log import MAX_READ, EventLog, NewEvent, Position


def event(text: str, *, final: bool = False) -> NewEvent:
    """An event that is told apart by its text."""
    return NewEvent("said", b'{"event_type":"said","text":"%s"}' % text.encode(), final=final)


async def payloads(log: EventLog, tape: str, after: int = 0, limit: int = MAX_READ) -> list[bytes]:
    return [entry.payload for entry in await log.read(tape, after, limit=limit)]


class EventLogSuite:
    """Cases for the EventLog port. Tapes are `suite:…`, so that an adapter on a shared server can prefix them."""

    # ---- append ----------------------------------------------------------------------------------------------------

    async def test_offsets_are_one_two_three(self, log: EventLog) -> None:
        offsets = [(await log.append("suite:a", event(str(n)))).offset for n in range(5)]
        assert offsets == [1, 2, 3, 4, 5]

    async def test_what_was_appended_is_read_back_byte_for_byte(self, log: EventLog) -> None:
        new = NewEvent("of any kind", '{"text":"ä\\u0000 𝄞 \\ud800","n":1.50}'.encode(), final=True)
        position = await log.append("suite:a", new)
        (entry,) = await log.read("suite:a")
        assert (entry.offset, entry.event_type, entry.payload, entry.final) == (
            position.offset,
            new.event_type,
            new.payload,
            True,
        )
        assert entry.time.tzinfo is not None

    async def test_concurrent_appends_get_different_consecutive_offsets(self, log: EventLog) -> None:
        positions = await asyncio.gather(*(log.append("suite:a", event(str(n))) for n in range(50)))
        assert sorted(position.offset for position in positions) == list(range(1, 51))
        by_offset = {p.offset: event(str(n)).payload for n, p in enumerate(positions)}
        assert await payloads(log, "suite:a") == [by_offset[offset] for offset in range(1, 51)]

    async def test_tapes_are_numbered_apart(self, log: EventLog) -> None:
        await log.append("suite:a", event("a"))
        await log.append("suite:a", event("b"))
        assert (await log.append("suite:b", event("c"))).offset == 1
        assert await payloads(log, "suite:b") == [event("c").payload]

    async def test_an_idempotency_key_writes_once_and_returns_the_first_position(self, log: EventLog) -> None:
        first = await log.append("suite:a", event("one"), idempotency_key="k")
        await log.append("suite:a", event("two"))
        assert await log.append("suite:a", event("other"), idempotency_key="k") == first
        assert await payloads(log, "suite:a") == [event("one").payload, event("two").payload]

    async def test_concurrent_appends_with_one_key_write_once(self, log: EventLog) -> None:
        positions = await asyncio.gather(
            *(log.append("suite:a", event(str(n)), idempotency_key="k") for n in range(20))
        )
        assert set(positions) == {positions[0]}
        assert len(await log.read("suite:a")) == 1

    async def test_a_key_belongs_to_its_tape(self, log: EventLog) -> None:
        await log.append("suite:a", event("a"), idempotency_key="k")
        await log.append("suite:b", event("b"), idempotency_key="k")
        assert len(await log.read("suite:b")) == 1

    # ---- read ------------------------------------------------------------------------------------------------------

    async def test_read_returns_what_is_after_the_offset_in_order(self, log: EventLog) -> None:
        for n in range(10):
            await log.append("suite:a", event(str(n)))
        assert [entry.offset for entry in await log.read("suite:a", 4, limit=3)] == [5, 6, 7]
        assert [entry.offset for entry in await log.read("suite:a", 8)] == [9, 10]
        assert await log.read("suite:a", 10) == []
        assert await log.read("suite:a", 99) == []

    async def test_read_never_returns_more_than_the_most(self, log: EventLog) -> None:
        for start in range(0, MAX_READ + 5, 50):
            await asyncio.gather(*(log.append("suite:a", event(str(start + n))) for n in range(50)))
        assert len(await log.read("suite:a", limit=10 * MAX_READ)) == MAX_READ

    async def test_an_absent_tape_reads_as_empty(self, log: EventLog) -> None:
        assert await log.read("suite:none") == []
        assert await log.describe("suite:none") is None

    async def test_read_of_another_epoch_is_refused(self, log: EventLog) -> None:
        position = await log.append("suite:a", event("one"))
        assert len(await log.read("suite:a", epoch=position.epoch)) == 1
        assert await log.read("suite:a", 1, epoch=position.epoch) == []
        await _raised(PositionLostError, log.read("suite:a", epoch="other"))
        await _raised(PositionLostError, log.read("suite:a", 99, limit=1, epoch="other"))

    async def test_read_of_an_epoch_of_an_absent_tape_is_refused(self, log: EventLog) -> None:
        await _raised(PositionLostError, log.read("suite:none", epoch="other"))

    # ---- metadata --------------------------------------------------------------------------------------------------

    async def test_create_gives_a_tape_its_metadata(self, log: EventLog) -> None:
        made = await log.create("suite:a", owner="u", channel="bus/a", graph_id="g", epoch="e")
        assert (made.owner, made.channel, made.graph_id, made.epoch, made.offset, made.final) == (
            "u",
            "bus/a",
            "g",
            "e",
            0,
            False,
        )
        assert await log.describe("suite:a") == made

    async def test_the_first_creator_wins(self, log: EventLog) -> None:
        first = await log.create("suite:a", owner="u", channel="bus/a")
        assert await log.create("suite:a", owner="v", channel="bus/b", epoch="e") == first

    async def test_a_tape_without_owner_gets_one_later(self, log: EventLog) -> None:
        before = await log.append("suite:a", event("a"))
        assert (await _described(log)).owner is None
        made = await log.create("suite:a", owner="u", channel="bus/a")
        assert (made.owner, made.channel, made.position) == ("u", "bus/a", before)

    async def test_an_epoch_is_born_with_the_tape_and_has_no_dash(self, log: EventLog) -> None:
        first = await log.append("suite:a", event("a"))
        second = await log.append("suite:a", event("b"))
        other = await log.append("suite:b", event("b"))
        assert first.epoch == second.epoch != other.epoch
        assert first.epoch
        assert "-" not in first.epoch
        assert Position.parse(str(second)) == second

    async def test_describe_tells_the_newest_offset_and_the_end(self, log: EventLog) -> None:
        await log.append("suite:a", event("a"))
        assert ((await _described(log)).offset, (await _described(log)).final) == (1, False)
        await log.append("suite:a", event("b", final=True))
        assert ((await _described(log)).offset, (await _described(log)).final) == (2, True)

    async def test_a_tape_that_only_the_log_writes_is_not_mixed(self, log: EventLog) -> None:
        assert (await log.create("suite:a", owner="u", channel="bus/a")).mixed is False
        await log.append("suite:a", event("a"))
        assert (await _described(log)).mixed is False

    # ---- the names of tapes ----------------------------------------------------------------------------------------

    async def test_tapes_names_each_tape_once(self, log: EventLog) -> None:
        names = ["suite:a", "suite:b", "suite:ab", "suite:Ä/*[x]?", "suite_", "suite"]
        for name in names:
            await log.append(name, event("1"))
            await log.append(name, event("2"))
        await log.create("suite:empty", owner="u", channel="bus/a")
        assert sorted([name async for name in log.tapes("suite")]) == sorted([*names, "suite:empty"])

    async def test_tapes_takes_the_beginning_of_a_name_as_it_is(self, log: EventLog) -> None:
        for name in ("suite:a", "suite:ab", "suite:b", "suite:A", "suite:*b", "suite:[a]b", "suite:%a", "suite:_a"):
            await log.append(name, event("1"))
        for prefix, found in {
            "suite:a": ["suite:a", "suite:ab"],
            "suite:*": ["suite:*b"],
            "suite:[a]": ["suite:[a]b"],
            "suite:%": ["suite:%a"],
            "suite:_": ["suite:_a"],
            "suite:none": [],
        }.items():
            assert sorted([name async for name in log.tapes(prefix)]) == found

    async def test_tapes_goes_on_beyond_a_page(self, log: EventLog) -> None:
        names = [f"suite:{n:04}" for n in range(MAX_READ + 100)]
        for start in range(0, len(names), 50):
            await asyncio.gather(*(log.append(name, event("1")) for name in names[start : start + 50]))
        found = [name async for name in log.tapes("suite:")]
        assert sorted(found) == names

    # ---- put -------------------------------------------------------------------------------------------------------

    async def test_put_stores_a_copy_under_its_number(self, log: EventLog) -> None:
        await log.create("suite:a", owner="u", channel="bus/a", epoch="e")
        assert await log.put("suite:a", Position("e", 1), event("one")) == "stored"
        assert await log.put("suite:a", Position("e", 2), event("two", final=True)) == "stored"
        assert await payloads(log, "suite:a") == [event("one").payload, event("two").payload]
        assert (await _described(log)).final

    async def test_put_of_a_known_number_changes_nothing(self, log: EventLog) -> None:
        await log.create("suite:a", owner="u", channel="bus/a", epoch="e")
        await log.put("suite:a", Position("e", 1), event("one"))
        assert await log.put("suite:a", Position("e", 1), event("other")) == "duplicate"
        assert await payloads(log, "suite:a") == [event("one").payload]

    async def test_put_never_leaves_a_hole(self, log: EventLog) -> None:
        await log.create("suite:a", owner="u", channel="bus/a", epoch="e")
        await log.put("suite:a", Position("e", 1), event("one"))
        error = await _raised(TapeHoleError, log.put("suite:a", Position("e", 3), event("three")))
        assert error.context["missing_from"] == 2
        assert len(await log.read("suite:a")) == 1

    async def test_put_refuses_another_epoch_and_an_absent_tape(self, log: EventLog) -> None:
        await log.create("suite:a", owner="u", channel="bus/a", epoch="e")
        await _raised(PositionLostError, log.put("suite:a", Position("f", 1), event("one")))
        await _raised(NotFoundError, log.put("suite:none", Position("e", 1), event("one")))
        assert await log.read("suite:a") == []

    # ---- times -----------------------------------------------------------------------------------------------------

    async def test_an_entry_knows_when_it_was_appended(self, log: EventLog) -> None:
        await log.append("suite:a", event("a"))
        await log.append("suite:a", event("b"))
        first, second = await log.read("suite:a")
        assert first.at_us <= second.at_us
        assert abs(first.time - datetime.now(UTC)) < timedelta(minutes=1)

    async def test_the_offset_at_a_time_is_never_that_of_a_later_event(self, log: EventLog) -> None:
        found = []
        for n in range(1, 4):
            await log.append("suite:a", event(str(n)))
            await asyncio.sleep(0.01)
        entries = await log.read("suite:a")
        for entry in entries:
            assert await log.offset_at("suite:a", entry.time - timedelta(microseconds=1)) < entry.offset
            found.append(await log.offset_at("suite:a", entry.time + timedelta(milliseconds=5)))
        assert found == sorted(found)
        assert all(offset <= entry.offset for offset, entry in zip(found, entries, strict=True))

    async def test_the_offset_at_a_later_time_is_the_newest(self, log: EventLog) -> None:
        for n in range(3):
            await log.append("suite:a", event(str(n)))
        newest = (await log.read("suite:a"))[-1].time
        assert await log.offset_at("suite:a", newest + timedelta(hours=1)) == 3

    async def test_the_offset_before_the_first_event_and_of_an_absent_tape_is_0(self, log: EventLog) -> None:
        assert await log.offset_at("suite:none", datetime.now(UTC)) == 0
        for n in range(3):
            await log.append("suite:a", event(str(n)))
        first = (await log.read("suite:a"))[0].time
        assert await log.offset_at("suite:a", first - timedelta(hours=1)) == 0

    # ---- trim ------------------------------------------------------------------------------------------------------

    async def test_trim_forgets_the_oldest_and_offsets_go_on(self, log: EventLog) -> None:
        for n in range(5):
            await log.append("suite:a", event(str(n)))
        assert await log.trim("suite:a", keep_after=3) == 3
        assert [entry.offset for entry in await log.read("suite:a")] == [4, 5]
        assert (await _described(log)).first_offset == 4
        assert (await log.append("suite:a", event("next"))).offset == 6

    async def test_trim_of_everything_keeps_the_position(self, log: EventLog) -> None:
        position = await log.append("suite:a", event("a"))
        assert await log.trim("suite:a", keep_after=99) == 1
        described = await _described(log)
        assert (described.position, described.first_offset) == (position, 2)
        assert await log.trim("suite:none", keep_after=1) == 0


class Reopen(Protocol):
    """Ends the adapter as a killed process would and opens it again on the same data."""

    async def __call__(self) -> EventLog: ...


class DurableEventLogSuite(EventLogSuite):
    """Further cases for logs that outlive the process; give the fixture `reopen_log` too."""

    async def test_what_was_acknowledged_is_there_after_a_restart(self, log: EventLog, reopen_log: Reopen) -> None:
        await log.create("suite:a", owner="u", channel="bus/a", graph_id="g")
        position = await log.append("suite:a", event("one"), idempotency_key="k")
        again = await reopen_log()
        assert await payloads(again, "suite:a") == [event("one").payload]
        assert await again.append("suite:a", event("x"), idempotency_key="k") == position
        assert (await again.append("suite:a", event("two"))) == Position(position.epoch, 2)


async def _described(log: EventLog) -> Any:
    described = await log.describe("suite:a")
    assert described is not None
    return described


async def _raised(kind: type[Exception], call: Any) -> Any:
    try:
        await call
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")
