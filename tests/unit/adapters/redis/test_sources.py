"""Each message once, whatever copies a server sends."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.adapters.redis.router import Router
from livetape.adapters.redis.sources import Sources, own_pattern, server_name
from livetape.events.bus import BusMessage
from livetape.events.channel import is_pattern, matches
from livetape.events.inbox import Inbox

LEVEL = st.text("ab*[?\\", min_size=1, max_size=3)
PATTERN = st.builds(lambda levels: "bus/" + "/".join(levels), st.lists(LEVEL, min_size=1, max_size=3))
CHANNEL = PATTERN.map(lambda pattern: pattern.replace("*", "a"))


@given(PATTERN)
def test_the_servers_name_leads_back(pattern: str) -> None:
    if is_pattern(pattern):
        assert own_pattern(server_name(pattern)) == pattern
    else:
        assert server_name(pattern).decode() == pattern


async def take(inbox: Inbox, count: int) -> list[BusMessage]:
    return [await anext(inbox) for _ in range(count)]


class Server:
    """Sends what a Redis would: a copy for the channel and one for each pattern, in an order of its own."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.names: list[str] = []

    def change(self, pattern: str, listens: bool) -> None:
        if listens and pattern not in self.names:
            self.names.append(pattern)
        if not listens and pattern in self.names:
            self.names.remove(pattern)
        self.router.changed(pattern, listens)

    def publish(self, channel: str, data: bytes) -> None:
        if channel in self.names:
            self.router.message(None, channel.encode(), data)
        for pattern in reversed(self.names):
            regex = ".*".join(re.escape(piece) for piece in pattern.split("*"))
            if is_pattern(pattern) and re.fullmatch(regex, channel, re.DOTALL):
                self.router.message(server_name(pattern), channel.encode(), data)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), PATTERN),
        st.tuples(st.just("remove"), PATTERN),
        st.tuples(st.just("publish"), CHANNEL),
    ),
    max_size=40,
)


@given(STEPS)
async def test_each_message_comes_once_to_those_whose_patterns_match(steps: list[tuple[str, str]]) -> None:
    router, inbox = Router(), Inbox()
    server, expected = Server(router), []
    listening: list[str] = []
    for number, (step, name) in enumerate(steps):
        data = b"%d" % number
        if step == "add" and name not in listening:
            listening.append(name)
            router.attach(name, inbox)
            server.change(name, True)
        elif step == "remove" and name in listening:
            listening.remove(name)
            router.detach(name, inbox)
            server.change(name, False)
        elif step == "publish":
            server.publish(name, data)
            if any(matches(pattern, name) for pattern in listening):
                expected.append(BusMessage(name, data))
    assert await take(inbox, len(expected)) == expected
    inbox.mark_gap()
    assert (await take(inbox, 1))[0].gap, "and nothing more"


async def test_the_exact_channel_goes_first_then_the_first_confirmed_pattern() -> None:
    sources = Sources()
    assert sources.of("bus/a/b") == (None, 0)
    sources.confirm("bus/*")
    sources.confirm("bus/a/*")
    assert sources.of("bus/a/b") == (b"bus/*", 2)
    sources.confirm("bus/a/b")
    assert sources.of("bus/a/b") == (None, 3)
    sources.withdraw("bus/*")
    sources.withdraw("bus/a/b")
    assert sources.of("bus/a/b") == (b"bus/a/*", 1)


@pytest.mark.parametrize("max_held", [10, 2])
async def test_after_a_loss_the_marker_stands_before_all_that_follows(max_held: int) -> None:
    router, inbox = Router(max_held=max_held), Inbox()
    router.open(inbox)
    for channel in ("bus/a", "bus/b"):
        router.attach(channel, inbox)
        router.changed(channel, True)
    router.listening(again=False)
    router.message(None, b"bus/a", b"before")
    router.lost()
    router.lost()
    router.changed("bus/a", True)
    for number in range(3):
        router.message(None, b"bus/a", b"%d" % number)
    router.changed("bus/b", True)
    router.listening(again=True)
    router.message(None, b"bus/b", b"after")
    got = await take(inbox, 3 + min(3, max_held))
    assert [m.data for m in got if not m.gap] == [b"before", *[b"0", b"1", b"2"][-max_held:], b"after"]
    assert got[1] == BusMessage("", b"", gap=True)
