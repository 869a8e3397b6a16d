"""What every Recorder must do. Each case is a sentence of the docstrings in `livetape.events.recorder`.

Subclass it in a test module and give the fixture, a recorder with the log that it writes and the bus that it pushes on:

    class TestMyRecorder(RecorderSuite):
        @pytest.fixture
        async def recording(self):
            async with opened(MyBackend()) as backend:
                yield Recording.of(backend)
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from livetape.errors import NotFoundError
from livetape.events.bus import Bus, Subscription
from livetape.events.codec import Envelope, split
from livetape.events.log import EventLog, NewEvent
from livetape.events.open import Backend
from livetape.events.recorder import Live, Recorded, Recorder
from livetape.testing.conformance.log import event, payloads

TAPE: Final = "suite:a"
CHANNEL: Final = "suite/a"


@dataclass(frozen=True, slots=True)
class Recording:
    """A recorder, and both ends of what it does."""

    recorder: Recorder
    log: EventLog
    bus: Bus

    @classmethod
    def of(cls, backend: Backend) -> Self:
        """Of a backend that has them all."""
        assert backend.recorder is not None
        assert backend.log is not None
        return cls(backend.recorder, backend.log, backend.bus)

    async def record(self, text: str, *, final: bool = False, key: str | None = None) -> Recorded:
        """The plain call: one event on the tape and the channel of most cases."""
        return await self.recorder.record(TAPE, CHANNEL, event(text, final=final), idempotency_key=key)


class RecorderSuite:
    """Cases for the Recorder port. Tapes are `suite:…` and channels `suite/…`; both are empty at the start of each."""

    patience_s = 5.0
    """How long a case waits for a message that must come."""

    # ---- on the tape and on the bus --------------------------------------------------------------------------------

    async def test_an_event_goes_onto_the_tape_and_out_on_the_bus(self, recording: Recording) -> None:
        async with await recording.bus.subscribe(CHANNEL) as subscription:
            await recording.record("one")
            (envelope,) = await self._take(subscription, 1)
        assert envelope.payload == event("one").payload
        assert envelope.event_type == "said"
        (entry,) = await recording.log.read(TAPE)
        assert (entry.payload, entry.event_type) == (event("one").payload, "said")

    async def test_the_answer_and_the_envelope_carry_offset_and_epoch(self, recording: Recording) -> None:
        async with await recording.bus.subscribe(CHANNEL) as subscription:
            answers = [await recording.record(str(n)) for n in range(3)]
            envelopes = await self._take(subscription, 3)
        described = await recording.log.describe(TAPE)
        assert described is not None
        assert [answer.position.offset for answer in answers] == [1, 2, 3]
        assert {answer.position.epoch for answer in answers} == {described.epoch}
        assert [(e.offset, e.epoch) for e in envelopes] == [(n, described.epoch) for n in (1, 2, 3)]
        assert [answer.entry_id for answer in answers] == ["1-0", "2-0", "3-0"]
        assert not any(answer.repeated or answer.mixed for answer in answers)

    async def test_bytes_are_not_changed_on_the_way(self, recording: Recording) -> None:
        odd = NewEvent("odd", '{"event_type":"odd","text":"ä\\u0000 𝄞 \\ud800 %1 %s","n":1.50,"o":{},"a":[]}'.encode())
        async with await recording.bus.subscribe(CHANNEL) as subscription:
            await recording.recorder.record(TAPE, CHANNEL, odd)
            (envelope,) = await self._take(subscription, 1)
        assert envelope.payload == odd.payload
        assert await payloads(recording.log, TAPE) == [odd.payload]

    async def test_an_event_of_a_job_is_not_changed_either(self, recording: Recording) -> None:
        job = b'{"event_type":"step","job_id":"suite-j","timestamp":"2026-01-02T03:04:05Z","data":{"n":1.50,"o":{}}}'
        for payload in (job, b'{"data":{},"event_type":"step","job_id":"suite-j"}', b'{"event_type":"step"}'):
            async with await recording.bus.subscribe("suite/j") as subscription:
                await recording.recorder.record("job_events:suite-j", "suite/j", NewEvent("step", payload))
                (envelope,) = await self._take(subscription, 1)
            assert envelope.payload == payload
            assert (await payloads(recording.log, "job_events:suite-j"))[-1] == payload

    async def test_a_large_event_goes_the_same_way(self, recording: Recording) -> None:
        large = NewEvent("said", b'{"event_type":"said","text":"%s"}' % (b"0123456789" * 200_000))
        async with await recording.bus.subscribe(CHANNEL) as subscription:
            await recording.recorder.record(TAPE, CHANNEL, large)
            (envelope,) = await self._take(subscription, 1)
        assert envelope.payload == large.payload
        assert await payloads(recording.log, TAPE) == [large.payload]

    async def test_the_last_event_is_marked_on_both(self, recording: Recording) -> None:
        async with await recording.bus.subscribe(CHANNEL) as subscription:
            await recording.record("one")
            await recording.record("two", final=True)
            envelopes = await self._take(subscription, 2)
        assert [envelope.final for envelope in envelopes] == [False, True]
        assert [entry.final for entry in await recording.log.read(TAPE)] == [False, True]
        described = await recording.log.describe(TAPE)
        assert described is not None
        assert described.final

    async def test_the_answer_tells_whether_anybody_listened(self, recording: Recording) -> None:
        """How many, too; but a server counts links, and several subscriptions may share one."""
        async with await recording.bus.subscribe("suite/b"):
            assert (await recording.record("one")).receivers == 0
        async with await recording.bus.subscribe(CHANNEL):
            assert (await recording.record("two")).receivers == 1
            async with await recording.bus.subscribe("suite/*"):
                assert ((await recording.record("three")).receivers or 0) in {1, 2}
        assert (await recording.record("four")).receivers == 0

    async def test_nothing_is_pushed_on_another_channel(self, recording: Recording) -> None:
        async with await recording.bus.subscribe("suite/*") as subscription:
            await recording.recorder.record("suite:a", "suite/a", event("a"))
            await recording.recorder.record("suite:b", "suite/b", event("b"))
            messages = aiter(subscription)
            async with asyncio.timeout(self.patience_s):
                got = [await anext(messages) for _ in range(2)]
        assert [(m.channel, split(m.data).payload) for m in got] == [
            ("suite/a", event("a").payload),
            ("suite/b", event("b").payload),
        ]

    # ---- order -----------------------------------------------------------------------------------------------------

    async def test_an_event_is_on_the_tape_before_it_is_pushed(self, recording: Recording) -> None:
        async with await recording.bus.subscribe(CHANNEL) as subscription:

            async def check() -> None:
                messages = aiter(subscription)
                for _ in range(20):
                    envelope = split((await anext(messages)).data)
                    assert envelope.offset is not None
                    found = await recording.log.read(TAPE, envelope.offset - 1, limit=1)
                    assert [entry.payload for entry in found] == [envelope.payload]

            checking = asyncio.ensure_future(check())
            for n in range(20):
                await recording.record(str(n))
                await asyncio.sleep(0)
            async with asyncio.timeout(self.patience_s):
                await checking

    async def test_events_of_one_tape_are_pushed_in_the_order_of_their_offsets(self, recording: Recording) -> None:
        async with await recording.bus.subscribe(CHANNEL) as subscription:
            await asyncio.gather(*(recording.record(str(n)) for n in range(100)))
            envelopes = await self._take(subscription, 100)
        assert [envelope.offset for envelope in envelopes] == list(range(1, 101))
        assert [envelope.payload for envelope in envelopes] == await payloads(recording.log, TAPE)

    async def test_calls_that_overlap_are_recorded_in_the_order_in_which_they_were_made(
        self, recording: Recording
    ) -> None:
        answers = await asyncio.gather(*(recording.record(str(n)) for n in range(100)))
        assert [answer.position.offset for answer in answers] == list(range(1, 101))
        assert await payloads(recording.log, TAPE) == [event(str(n)).payload for n in range(100)]

    async def test_calls_for_many_tapes_are_in_order_on_each(self, recording: Recording) -> None:
        async with await recording.bus.subscribe("suite/*") as subscription:
            await asyncio.gather(
                *(
                    recording.recorder.record(f"suite:{n % 10}", f"suite/{n % 10}", event(f"{n % 10}-{n}"))
                    for n in range(100)
                )
            )
            pushed: defaultdict[str, list[tuple[int | None, bytes]]] = defaultdict(list)
            messages = aiter(subscription)
            async with asyncio.timeout(self.patience_s):
                for _ in range(100):
                    message = await anext(messages)
                    envelope = split(message.data)
                    pushed[message.channel].append((envelope.offset, envelope.payload))
        for tape in range(10):
            expected = [event(f"{tape}-{n}").payload for n in range(tape, 100, 10)]
            assert await payloads(recording.log, f"suite:{tape}") == expected
            assert pushed[f"suite/{tape}"] == list(enumerate(expected, 1))

    async def test_large_events_do_not_overtake_and_are_not_overtaken(self, recording: Recording) -> None:
        texts = [str(n) * (100_000 if n % 3 == 1 else 1) for n in range(12)]
        async with await recording.bus.subscribe(CHANNEL) as subscription:
            await asyncio.gather(*(recording.record(text) for text in texts))
            envelopes = await self._take(subscription, 12)
        expected = [event(text).payload for text in texts]
        assert [envelope.payload for envelope in envelopes] == expected
        assert await payloads(recording.log, TAPE) == expected

    async def test_a_call_that_is_cancelled_does_not_disturb_the_others(self, recording: Recording) -> None:
        async with await recording.bus.subscribe(CHANNEL) as subscription:
            calls = [asyncio.ensure_future(recording.record(str(n))) for n in range(10)]
            await asyncio.sleep(0)
            calls[4].cancel()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            last = await recording.record("last")
            pushed = await self._until(subscription, event("last").payload)
        offsets = [a.position.offset for a in answers if isinstance(a, Recorded)]
        assert len(offsets) >= 9
        assert offsets == sorted(offsets)
        tape = await recording.log.read(TAPE)
        assert [entry.offset for entry in tape] == list(range(1, last.position.offset + 1))
        kept = [entry.payload for entry in tape]
        assert all(event(str(n)).payload in kept for n in range(10) if n != 4)
        positions = [envelope.offset or 0 for envelope in pushed]
        assert positions == sorted(positions)
        assert set(offsets) <= set(positions)

    # ---- the owner -------------------------------------------------------------------------------------------------

    async def test_a_tape_that_does_not_exist_is_made(self, recording: Recording) -> None:
        await recording.recorder.record(TAPE, CHANNEL, event("one"), owner="u")
        described = await recording.log.describe(TAPE)
        assert described is not None
        assert (described.owner, described.channel, described.offset) == ("u", CHANNEL, 1)

    async def test_somebody_else_is_refused_and_writes_nothing(self, recording: Recording) -> None:
        async with await recording.bus.subscribe(CHANNEL) as subscription:
            await recording.recorder.record(TAPE, CHANNEL, event("mine"), owner="u")
            await self._refused(recording, "v")
            await self._refused(recording, "v", key="k")
            assert await payloads(recording.log, TAPE) == [event("mine").payload]
            await recording.record("last")
            assert [e.payload for e in await self._until(subscription, event("last").payload)] == [
                event("mine").payload
            ]

    async def test_a_tape_that_was_made_for_somebody_is_theirs(self, recording: Recording) -> None:
        await recording.log.create(TAPE, owner="u", channel=CHANNEL)
        await self._refused(recording, "v")
        assert (await recording.recorder.record(TAPE, CHANNEL, event("mine"), owner="u")).position.offset == 1

    async def test_any_owner_writes_there_all_the_same(self, recording: Recording) -> None:
        await recording.recorder.record(TAPE, CHANNEL, event("mine"), owner="u")
        answer = await recording.recorder.record(TAPE, CHANNEL, event("yours"), owner="v", any_owner=True)
        assert answer.position.offset == 2
        assert await self._owner(recording) == "u"

    async def test_none_claims_nothing_and_is_refused_nothing(self, recording: Recording) -> None:
        await recording.record("nobody's")
        assert await self._owner(recording) is None
        await recording.recorder.record(TAPE, CHANNEL, event("mine"), owner="u")
        assert (await recording.record("nobody's")).position.offset == 3
        assert await self._owner(recording) == "u"

    async def test_a_tape_without_owner_gets_the_first_one(self, recording: Recording) -> None:
        await recording.log.append(TAPE, event("early"))
        await recording.recorder.record(TAPE, CHANNEL, event("mine"), owner="u")
        described = await recording.log.describe(TAPE)
        assert described is not None
        assert (described.owner, described.channel) == ("u", CHANNEL)
        await self._refused(recording, "v")

    async def test_of_those_who_claim_at_once_one_wins(self, recording: Recording) -> None:
        answers = await asyncio.gather(
            *(recording.recorder.record(TAPE, CHANNEL, event(str(n)), owner=f"u{n}") for n in range(20)),
            return_exceptions=True,
        )
        assert isinstance(answers[0], Recorded), "the first writer wins"
        assert all(isinstance(answer, NotFoundError) for answer in answers[1:])
        assert await self._owner(recording) == "u0"
        assert await payloads(recording.log, TAPE) == [event("0").payload]

    # ---- idempotency -----------------------------------------------------------------------------------------------

    async def test_a_key_writes_and_pushes_once_and_returns_the_first_position(self, recording: Recording) -> None:
        async with await recording.bus.subscribe(CHANNEL) as subscription:
            first = await recording.record("one", key="k")
            await recording.record("two")
            again = await recording.record("other", key="k")
            await recording.record("last", key="another")
            pushed = [e.payload for e in await self._until(subscription, event("last").payload)]
        assert (first.repeated, again.repeated) == (False, True)
        assert (again.position, again.entry_id, again.receivers) == (first.position, first.entry_id, None)
        assert pushed == [event("one").payload, event("two").payload]
        assert await payloads(recording.log, TAPE) == [event(text).payload for text in ("one", "two", "last")]

    async def test_calls_at_once_with_one_key_write_and_push_once(self, recording: Recording) -> None:
        async with await recording.bus.subscribe(CHANNEL) as subscription:
            answers = await asyncio.gather(*(recording.record(str(n), key="k") for n in range(20)))
            await recording.record("last")
            pushed = await self._until(subscription, event("last").payload)
        assert {answer.position for answer in answers} == {answers[0].position}
        assert [answer.repeated for answer in answers] == [False] + [True] * 19
        assert [envelope.payload for envelope in pushed] == [event("0").payload]
        assert len(await recording.log.read(TAPE)) == 2

    async def test_a_key_belongs_to_its_tape(self, recording: Recording) -> None:
        await recording.record("a", key="k")
        other = await recording.recorder.record("suite:b", "suite/b", event("b"), idempotency_key="k")
        assert not other.repeated
        assert await payloads(recording.log, "suite:b") == [event("b").payload]

    # ---- what only listeners get -----------------------------------------------------------------------------------

    async def test_a_live_payload_replaces_only_the_copy_on_the_bus(self, recording: Recording) -> None:
        short = b'{"event_type":"cut","text":""}'
        async with await recording.bus.subscribe(CHANNEL) as subscription:
            await recording.recorder.record(
                TAPE, CHANNEL, event("whole", final=True), live=Live(payload=short, event_type="cut")
            )
            (envelope,) = await self._take(subscription, 1)
        assert (envelope.payload, envelope.event_type, envelope.offset, envelope.final) == (short, "cut", 1, True)
        (entry,) = await recording.log.read(TAPE)
        assert (entry.payload, entry.event_type) == (event("whole").payload, "said")

    async def test_lossy_and_traceparent_stand_beside_the_payload(self, recording: Recording) -> None:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        async with await recording.bus.subscribe(CHANNEL) as subscription:
            await recording.record("plain")
            await recording.recorder.record(TAPE, CHANNEL, event("lossy"), live=Live(lossy=True))
            await recording.recorder.record(TAPE, CHANNEL, event("traced"), live=Live(traceparent=trace))
            envelopes = await self._take(subscription, 3)
        assert [(e.lossy, e.traceparent) for e in envelopes] == [(False, None), (True, None), (False, trace)]
        assert [e.payload for e in envelopes] == [event(text).payload for text in ("plain", "lossy", "traced")]
        assert await payloads(recording.log, TAPE) == [e.payload for e in envelopes]

    # ---- the end ---------------------------------------------------------------------------------------------------

    async def test_closing_twice_is_no_error_and_log_and_bus_stay_open(self, recording: Recording) -> None:
        await recording.record("one")
        await recording.recorder.close()
        await recording.recorder.close()
        assert await payloads(recording.log, TAPE) == [event("one").payload]
        async with await recording.bus.subscribe(CHANNEL):
            assert await recording.bus.publish(CHANNEL, Envelope(event("x").payload, "said").encode()) == 1

    # ---- how cases look --------------------------------------------------------------------------------------------

    async def _take(self, subscription: Subscription, count: int) -> Sequence[Envelope]:
        async with asyncio.timeout(self.patience_s):
            messages = aiter(subscription)
            return [split((await anext(messages)).data) for _ in range(count)]

    async def _until(self, subscription: Subscription, last: bytes) -> list[Envelope]:
        """What comes before the event with this payload."""
        found: list[Envelope] = []
        async with asyncio.timeout(self.patience_s):
            async for message in subscription:
                envelope = split(message.data)
                if envelope.payload == last:
                    break
                found.append(envelope)
        return found

    async def _owner(self, recording: Recording) -> str | None:
        described = await recording.log.describe(TAPE)
        assert described is not None
        return described.owner

    async def _refused(self, recording: Recording, owner: str, key: str | None = None) -> None:
        try:
            await recording.recorder.record(TAPE, CHANNEL, event("theirs"), owner=owner, idempotency_key=key)
        except NotFoundError:
            return
        raise AssertionError(f"{owner} wrote on somebody else's tape")
