"""Control events: their form on the bus, and whom they concern."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.adapters.memory.bus import MemoryBus
from livetape.auth import Principal
from livetape.events.channel import gateway_channel
from livetape.events.codec import split
from livetape.gateway.control import (
    AnyControlEvent,
    Control,
    PermissionChanged,
    TokensRevoked,
    decode_control,
    encode_control,
)
from livetape.gateway.control_listener import ControlListener
from livetape.gateway.subjects import Kind, Subject
from unit.gateway.rig import Counts

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SUBJECT = Subject(Kind.EXECUTION, "E")
MOMENTS = st.none() | st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
EVENTS = st.one_of(
    st.builds(PermissionChanged, user_id=st.none() | NAMES, tape=st.none() | NAMES),
    st.builds(TokensRevoked, user_id=NAMES, at=MOMENTS, until=MOMENTS),
    st.builds(TokensRevoked, token_id=NAMES, at=MOMENTS, until=MOMENTS),
)


@given(EVENTS)
def test_what_was_told_is_heard(event: AnyControlEvent) -> None:
    data = encode_control(event)
    assert decode_control(data) == event
    assert decode_control(split(data)) == event


def test_the_form_on_the_bus() -> None:
    assert gateway_channel() == "gateway_event/all"
    assert encode_control(PermissionChanged(user_id="U")) == (
        b'{"payload":{"event_type":"permission_changed","user_id":"U"}}'
    )
    assert encode_control(TokensRevoked(token_id="T")) == (
        b'{"payload":{"event_type":"tokens_revoked","token_id":"T"}}'
    )


@pytest.mark.parametrize(
    "payload",
    [
        {"event_type": "tokens_revoked"},
        {"event_type": "tokens_revoked", "user_id": "U", "token_id": "T"},
        {"event_type": "tokens_revoked", "user_id": ""},
        {"event_type": "tokens_revoked", "user_id": 7},
        {"event_type": "tokens_revoked", "user_id": "U", "at": "yesterday"},
        {"event_type": "permission_changed", "tape": ["x"]},
        {"event_type": "something_newer", "user_id": "U"},
        {"user_id": "U"},
    ],
)
def test_what_is_none_is_passed_over(payload: dict[str, object]) -> None:
    assert decode_control(json.dumps({"payload": payload}).encode()) is None


@given(st.binary(max_size=100))
def test_rubbish_on_the_channel_is_passed_over(data: bytes) -> None:
    assert decode_control(data) is None


def test_what_a_newer_version_adds_is_ignored() -> None:
    data = b'{"payload":{"event_type":"permission_changed","tape":"t","reason":"new"},"extra":1}'
    assert decode_control(data) == PermissionChanged(tape="t")


@pytest.mark.parametrize(
    ("event", "affected"),
    [
        (PermissionChanged(), True),
        (PermissionChanged(user_id="U"), True),
        (PermissionChanged(user_id="V"), False),
        (PermissionChanged(tape=SUBJECT.tape), True),
        (PermissionChanged(tape="job_events:E"), False),
        (PermissionChanged(user_id="U", tape=SUBJECT.tape), True),
        (PermissionChanged(user_id="V", tape=SUBJECT.tape), False),
    ],
)
def test_whose_permission_changed(event: PermissionChanged, affected: bool) -> None:
    assert event.affects(Principal("U"), SUBJECT) is affected


def test_a_guest_is_checked_again_whoever_is_named() -> None:
    guest = Principal("share:x", shares=frozenset({SUBJECT.tape}))
    assert PermissionChanged(user_id="V", tape=SUBJECT.tape).affects(guest, SUBJECT)
    assert not PermissionChanged(tape="job_events:E").affects(guest, SUBJECT)


@pytest.mark.parametrize(
    ("event", "affected"),
    [
        (TokensRevoked(token_id="T"), True),
        (TokensRevoked(token_id="S"), False),
        (TokensRevoked(user_id="U"), True),
        (TokensRevoked(user_id="U", at=NOW), True),
        (TokensRevoked(user_id="U", at=NOW + timedelta(seconds=1)), True),
        (TokensRevoked(user_id="U", at=NOW - timedelta(seconds=1)), False),
        (TokensRevoked(user_id="V"), False),
    ],
)
def test_whose_tokens_were_revoked(event: TokensRevoked, affected: bool) -> None:
    assert event.affects(Principal("U", token_id="T", issued_at=NOW)) is affected


def test_a_token_that_does_not_say_when_it_was_issued_is_an_old_one() -> None:
    assert TokensRevoked(user_id="U", at=NOW).affects(Principal("U"))
    assert not TokensRevoked(token_id="T").affects(Principal("U"))


def test_a_time_without_a_zone_is_in_utc() -> None:
    data = b'{"payload":{"event_type":"tokens_revoked","user_id":"U","at":"2030-01-01T00:00:00","until":"2031-01-01"}}'
    event = decode_control(data)
    assert event == TokensRevoked(user_id="U", at=NOW, until=datetime(2031, 1, 1, tzinfo=UTC))
    assert isinstance(event, TokensRevoked)
    assert event.affects(Principal("U", issued_at=NOW))
    assert not event.affects(Principal("U", issued_at=NOW + timedelta(seconds=1)))


async def test_control_tells_everybody() -> None:
    bus = MemoryBus()
    async with await bus.subscribe(gateway_channel()) as heard:
        control = Control(bus)
        await control.permission_changed(user_id="U", tape="t")
        await control.publish(TokensRevoked(user_id="U", at=NOW))
        messages = aiter(heard)
        assert decode_control((await anext(messages)).data) == PermissionChanged(user_id="U", tape="t")
        assert decode_control((await anext(messages)).data) == TokensRevoked(user_id="U", at=NOW)
    await bus.close()


async def test_an_event_that_cannot_be_followed_does_not_end_the_listening(caplog: pytest.LogCaptureFixture) -> None:
    bus, heard, counts = MemoryBus(), asyncio.Queue[AnyControlEvent | None](), Counts()

    def handle(event: AnyControlEvent | None) -> None:
        heard.put_nowait(event)
        if isinstance(event, PermissionChanged):
            raise TypeError("cannot")

    listening = asyncio.create_task(ControlListener(bus, handle, sleep=asyncio.sleep, metrics=counts).run())
    assert await heard.get() is None
    control = Control(bus)
    await control.permission_changed(user_id="U")
    await control.publish(TokensRevoked(user_id="U"))
    assert await heard.get() == PermissionChanged(user_id="U")
    assert await asyncio.wait_for(heard.get(), 5) == TokensRevoked(user_id="U")
    assert [record.__dict__["action"] for record in caplog.records] == ["control_failed"]
    assert counts.values == {"internal_errors_total,control": 1}
    listening.cancel()
    await asyncio.wait({listening})
    await bus.close()
