"""The checker of the gateway's fault tests can fail: doctored transcripts are noticed, honest ones are not."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from chaos.chain import Chain, FrameError, Truth, judge_texts, parse

CHANNEL = "user|job#j"


def payload(n: int) -> bytes:
    """Every event has in it what stands at the end of a push, and what begins one."""
    inside = '","success":null,"channel":"x","error":null,"offset":7,"epoch":"y"}'
    return json.dumps({"event_type": "task_progress", "job_id": "j", "n": n, "text": inside}).encode()


def event(n: int, epoch: str = "e", *, body: bytes | None = None, final: bool = False) -> bytes:
    end = b',"final":true}' if final else b"}"
    return b'{"method":"job_event","data":%b,"success":null,"channel":"%b","error":null,"offset":%d,"epoch":"%b"%b' % (
        payload(n) if body is None else body,
        CHANNEL.encode(),
        n,
        epoch.encode(),
        end,
    )


def reply(offset: int, epoch: str | None = "e", *, recovered: bool = True) -> bytes:
    data = {"epoch": epoch, "offset": offset, "recovered": recovered, "count": 0}
    return json.dumps(
        {"method": "subscribe_job", "data": data, "success": True, "channel": CHANNEL, "error": None},
        separators=(",", ":"),
    ).encode()


def complete(offset: int, epoch: str = "e") -> bytes:
    return (
        b'{"method":"replay_complete","data":null,"success":null,"channel":"%b","error":null,"offset":%d,"epoch":"%b"}'
        % (CHANNEL.encode(), offset, epoch.encode())
    )


def gap(first: int | None, last: int | None, epoch: str | None = "e") -> bytes:
    data = json.dumps({"from": first, "to": last, "epoch": epoch}).encode()
    return b'{"method":"gap","data":%b,"success":null,"channel":"%b","error":null}' % (data, CHANNEL.encode())


def truth() -> Truth:
    made = Truth()
    assert made.log("e", [(n, payload(n)) for n in range(1, 7)]) == []
    return made


HONEST = [reply(2), event(1), event(2), complete(2), event(3), reply(4), event(4), complete(4), event(5), event(6)]


def test_an_honest_transcript_has_no_complaint() -> None:
    assert judge_texts(HONEST, truth()) == []


def test_bytes_are_taken_as_they_stand() -> None:
    message = parse(event(3, final=True))
    assert message.data == payload(3)
    assert message.keys["offset"] == 3
    assert message.keys["final"] is True
    odd = b'{"a": 1.50,\t"b":"\\u00e9"}'
    assert parse(event(1, body=odd)).data == odd


@pytest.mark.parametrize("text", [b"{}", b'{"data":1,"method":"job_event"}', b'{"method":"job_event","data":{}}'])
def test_a_message_of_another_form_is_refused(text: bytes) -> None:
    with pytest.raises((FrameError, ValueError)):
        parse(text)


DOCTORED: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "lost one": lambda t: t[:4] + t[5:],
    "lost the first": lambda t: [reply(2), event(2), *t[3:]],
    "lost the last": lambda t: t[:-1],
    "lost all": lambda t: [t[0]],
    "lost one over a reconnect": lambda t: [x for x in t if x != event(4)],
    "doubled one": lambda t: [*t[:5], event(3), *t[5:]],
    "doubled one over a reconnect": lambda t: [*t[:6], event(3), *t[6:]],
    "doubled the last": lambda t: [*t, t[-1]],
    "swapped two": lambda t: [*t[:-2], t[-1], t[-2]],
    "numbers swapped, bytes not": lambda t: [*t[:-2], event(5, body=payload(6)), event(6, body=payload(5))],
    "a byte changed": lambda t: [*t[:4], event(3, body=payload(3).replace(b"n", b"m", 1)), *t[5:]],
    "a space more": lambda t: [*t[:4], event(3, body=payload(3) + b" "), *t[5:]],
    "another epoch, untold": lambda t: [*t[:4], event(3, "f"), *t[5:]],
    "a new epoch for good, untold": lambda t: [*t[:8], event(1, "f"), event(2, "f")],
    "recovered in another epoch": lambda t: [*t[:5], reply(4, "f"), *t[6:]],
    "invented one": lambda t: [*t, event(7)],
    "after the last": lambda t: [*t[:-2], event(5, final=True), event(6)],
    "told of a loss that was none": lambda t: [*t[:-1], gap(None, None), t[-1]],
    "a gap over what is there": lambda t: [*t[:-2], gap(5, 5), t[-1]],
    "not recovered for nothing": lambda t: [*t[:5], reply(4, recovered=False), event(5), event(6)],
    "complete too soon": lambda t: [reply(2), event(1), complete(2), event(2), *t[4:]],
    "without a number": lambda t: [*t, event(7).replace(b',"offset":7,"epoch":"e"}', b"}")],
}


@pytest.mark.parametrize("how", DOCTORED)
def test_a_doctored_transcript_is_noticed(how: str) -> None:
    assert judge_texts(DOCTORED[how](list(HONEST)), truth()) != []


def reborn() -> Truth:
    """The tape was lost after 3 events, and is now at number 2 of another epoch."""
    made = Truth()
    for n in (1, 2, 3):
        assert made.add("e", n, payload(n)) is None
    assert made.log("f", [(n, payload(10 + n)) for n in (1, 2)]) == []
    return made


def new(n: int) -> bytes:
    return event(n, "f", body=payload(10 + n))


TOLD: dict[str, list[bytes]] = {
    "by a gap": [reply(2), event(1), event(2), event(3), gap(4, None, "f"), new(1), new(2)],
    "by a gap of all that is not known": [reply(2), event(1), event(2), event(3), gap(None, None, "f"), new(1), new(2)],
    "by the reply": [reply(2), event(1), event(2), reply(1, "f", recovered=False), new(2)],
    "by the reply, before it is there": [reply(2), event(1), reply(0, None, recovered=False), new(1), new(2)],
}


@pytest.mark.parametrize("how", TOLD)
def test_a_loss_that_is_told_is_no_complaint_where_there_was_one(how: str) -> None:
    assert judge_texts(TOLD[how], reborn(), may_lose=True) == []
    assert judge_texts(TOLD[how], reborn()) != []


UNTOLD: dict[str, list[bytes]] = {
    "no word": [reply(2), event(1), event(2), event(3), new(1), new(2)],
    "the numbers go on": [reply(2), event(1), event(2), event(3), event(4, body=payload(11)), new(2)],
    "told, then one is missing": [reply(2), event(1), event(2), reply(0, "f", recovered=False), new(2)],
    "told, then one comes again": [reply(2), event(1), gap(2, None, "f"), new(1), new(1), new(2)],
    "told, then another epoch": [reply(2), event(1), reply(0, "f", recovered=False), event(1, "g"), event(2, "g")],
    "told, but the bytes are old": [reply(2), event(1), gap(2, None, "f"), event(1, "f"), new(2)],
    "never the new ones": [reply(2), event(1), event(2), event(3)],
}


@pytest.mark.parametrize("how", UNTOLD)
def test_a_loss_that_is_not_told_is_noticed_though_there_was_one(how: str) -> None:
    assert judge_texts(UNTOLD[how], reborn(), may_lose=True) != []


def test_a_log_with_a_hole_or_two_events_of_one_number_is_noticed() -> None:
    made = Truth()
    assert made.log("e", [(1, b"a"), (3, b"c")]) != []
    made = Truth()
    assert made.add("e", 1, b"a") is None
    assert made.log("e", [(1, b"b")]) != []


def test_nothing_can_hide_between_two_events() -> None:
    """The same bytes, cut elsewhere."""
    made = Truth()
    made.log("e", [(1, b'{"a":1}'), (2, b"{}")])
    chain = Chain("w")
    chain.subscribed({"epoch": "e", "offset": 2, "recovered": True, "count": 2})
    chain.take(parse(event(1, body=b'{"a":1}{')))
    chain.take(parse(event(2, body=b"}")))
    assert list(made.judge(chain)) != []


def test_an_event_that_is_shortened_is_not_taken_for_the_whole() -> None:
    shortened = event(2)[:-1] + b',"truncated":true}'
    seen = [reply(6), event(1), shortened, event(3), event(4), event(5), event(6)]
    assert judge_texts(seen, truth(), may_lose=True) == []
    assert judge_texts(seen, truth()) != []


def test_an_event_too_large_is_told_and_the_next_follows() -> None:
    told = (
        b'{"method":"error","data":null,"success":false,"channel":"%b","error":"Event too large",'
        b'"code":"payload_too_large","retry":false,"offset":2,"epoch":"e"}' % CHANNEL.encode()
    )
    seen = [reply(6), event(1), told, event(3), event(4), event(5), event(6)]
    assert judge_texts(seen, truth(), may_lose=True) == []
    assert judge_texts(seen, truth()) != []
    assert judge_texts([*seen[:3], *seen[4:]], truth(), may_lose=True) != []
