"""What a connection makes of the bytes of a server, however they are cut."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import hiredis
from hypothesis import given
from hypothesis import strategies as st

from livetape.adapters.redis.connection import Connection


class Wire(asyncio.Transport):
    """Takes what is written; nothing comes back but what the test hands over."""

    def write(self, data: Any) -> None:
        pass

    def abort(self) -> None:
        pass

    def close(self) -> None:
        pass


def push(data: bytes) -> bytes:
    return b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$%d\r\n%b\r\n" % (len(data), data)


def reply(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


SIZES = st.one_of(st.integers(0, 40), st.integers(900, 1100), st.integers(16_300, 16_400), st.just(100_000))
SENT = st.lists(st.tuples(st.booleans(), SIZES), min_size=1, max_size=30)


@given(sent=SENT, cuts=st.lists(st.integers(0, 400_000), max_size=4))
def test_everything_arrives_in_order_however_it_is_cut(sent: list[tuple[bool, int]], cuts: list[int]) -> None:
    async def receive() -> None:
        heard: list[tuple[bool, Any]] = []

        def pushed(pushes: list[Any]) -> None:
            heard.extend((True, message[2]) for message in pushes)

        connection = Connection(60, on_pushes=pushed)
        connection.connection_made(Wire())
        for is_push, _ in sent:
            if not is_push:
                answer = connection.call("GET", "x")
                answer.add_done_callback(lambda done: answers.append(done.result()))
        answers: list[Any] = []
        data = b"".join((push if is_push else reply)(b"%d" % n * size) for n, (is_push, size) in enumerate(sent))
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for begin, end in itertools.pairwise(edges):
            connection.data_received(data[begin:end])
        await asyncio.sleep(0)
        expected = [(is_push, b"%d" % n * size) for n, (is_push, size) in enumerate(sent)]
        assert heard == [(True, value) for is_push, value in expected if is_push]
        assert answers == [value for is_push, value in expected if not is_push]
        assert connection.alive
        connection.connection_lost(None)
        await connection.ended

    asyncio.run(receive())


def test_what_is_pushed_before_a_reply_is_handled_before_it() -> None:
    async def receive() -> None:
        order: list[str] = []
        connection = Connection(60, on_pushes=lambda pushes: order.extend(str(one[2], "ascii") for one in pushes))
        connection.connection_made(Wire())
        answer = connection.call("GET", "x")
        filler = "f" * 20_000  # more than is parsed at once
        connection.data_received(push(b"a") + push(filler.encode()) + reply(b"") + push(b"z"))
        assert answer.done()
        assert order == ["a", filler, "z"]
        connection.connection_lost(None)
        await connection.ended

    asyncio.run(receive())


def test_what_is_not_the_protocol_ends_the_connection_and_keeps_what_came_before() -> None:
    async def receive() -> None:
        heard: list[Any] = []
        connection = Connection(60, on_pushes=heard.extend)
        connection.connection_made(Wire())
        connection.data_received(push(b"x" * 20_000) + b"!!!" + push(b"y" * 40_000))
        assert not connection.alive
        assert [type(one) for one in heard] == [hiredis.PushNotification]
        connection.connection_lost(None)
        await connection.ended

    asyncio.run(receive())
