"""What every Ephemeral store must do. Each case is a sentence of the docstrings in `livetape.store.ephemeral`.

Subclass it in a test module and give the fixture `ephemeral`, a store in which the keys `suite…` are free.
"""

from __future__ import annotations

import asyncio

from livetape.store.ephemeral import MAX_VALUE_BYTES, Ephemeral


class EphemeralSuite:
    """Cases for the Ephemeral port."""

    brief_s = 0.05
    """A time to live that a case waits for."""

    async def wait(self, seconds: float) -> None:
        """Let so much of the store's time pass."""
        await asyncio.sleep(seconds)

    async def test_what_was_put_is_got_byte_for_byte(self, ephemeral: Ephemeral) -> None:
        await ephemeral.put("suite a/b *", b"\x00any\xff", ttl_s=60)
        assert await ephemeral.get("suite a/b *") == b"\x00any\xff"
        assert await ephemeral.get("suite a/b *") == b"\x00any\xff", "looking takes nothing away"
        assert await ephemeral.get("suite") is None

    async def test_several_are_got_in_the_order_asked_for(self, ephemeral: Ephemeral) -> None:
        await ephemeral.put("suite a", b"one", ttl_s=60)
        await ephemeral.put("suite c", b"two", ttl_s=60)
        assert await ephemeral.get_all(["suite c", "suite b", "suite a"]) == [b"two", None, b"one"]
        assert await ephemeral.get_all([]) == []

    async def test_put_replaces(self, ephemeral: Ephemeral) -> None:
        await ephemeral.put("suite", b"one", ttl_s=60)
        await ephemeral.put("suite", b"two", ttl_s=60)
        assert await ephemeral.get("suite") == b"two"

    async def test_put_once_is_for_the_first(self, ephemeral: Ephemeral) -> None:
        assert await ephemeral.put_once("suite", b"one", ttl_s=60) is True
        assert await ephemeral.put_once("suite", b"two", ttl_s=60) is False
        assert await ephemeral.get("suite") == b"one"

    async def test_of_many_who_put_once_exactly_one_does(self, ephemeral: Ephemeral) -> None:
        won = await asyncio.gather(*(ephemeral.put_once("suite", b"%d" % n, ttl_s=60) for n in range(20)))
        assert won.count(True) == 1
        assert await ephemeral.get("suite") == b"%d" % won.index(True)

    async def test_what_was_taken_is_gone(self, ephemeral: Ephemeral) -> None:
        await ephemeral.put("suite", b"one", ttl_s=60)
        assert await ephemeral.take("suite") == b"one"
        assert await ephemeral.take("suite") is None
        assert await ephemeral.put_once("suite", b"two", ttl_s=60)

    async def test_of_many_who_take_exactly_one_gets_it(self, ephemeral: Ephemeral) -> None:
        await ephemeral.put("suite", b"one", ttl_s=60)
        got = await asyncio.gather(*(ephemeral.take("suite") for _ in range(20)))
        assert sorted(got, key=bool) == [None] * 19 + [b"one"]

    async def test_a_value_goes_when_its_time_is_over(self, ephemeral: Ephemeral) -> None:
        await ephemeral.put("suite a", b"x", ttl_s=self.brief_s)
        await ephemeral.put_once("suite b", b"x", ttl_s=self.brief_s)
        await ephemeral.incr("suite c", ttl_s=self.brief_s)
        await ephemeral.put("suite d", b"x", ttl_s=60)
        await self.wait(2 * self.brief_s)
        assert [await ephemeral.get(f"suite {name}") for name in "abcd"] == [None, None, None, b"x"]
        assert await ephemeral.take("suite a") is None
        assert await ephemeral.put_once("suite b", b"y", ttl_s=60)
        assert await ephemeral.incr("suite c", ttl_s=60) == 1

    async def test_put_begins_the_time_anew(self, ephemeral: Ephemeral) -> None:
        await ephemeral.put("suite", b"one", ttl_s=self.brief_s)
        await ephemeral.put("suite", b"two", ttl_s=60)
        await self.wait(2 * self.brief_s)
        assert await ephemeral.get("suite") == b"two"

    async def test_a_counter_counts(self, ephemeral: Ephemeral) -> None:
        assert [await ephemeral.incr("suite", ttl_s=60) for _ in range(3)] == [1, 2, 3]
        assert await ephemeral.incr("suite", ttl_s=60, by=-5) == -2
        assert await ephemeral.get("suite") == b"-2"

    async def test_concurrent_counting_loses_nothing(self, ephemeral: Ephemeral) -> None:
        values = await asyncio.gather(*(ephemeral.incr("suite", ttl_s=60, by=2) for _ in range(30)))
        assert sorted(values) == list(range(2, 61, 2))

    async def test_counting_does_not_prolong(self, ephemeral: Ephemeral) -> None:
        await ephemeral.incr("suite", ttl_s=self.brief_s)
        await ephemeral.incr("suite", ttl_s=60)
        await self.wait(2 * self.brief_s)
        assert await ephemeral.get("suite") is None

    async def test_limits_are_kept(self, ephemeral: Ephemeral) -> None:
        await ephemeral.put("k" * 500, b"v" * MAX_VALUE_BYTES, ttl_s=60)
        assert len(await ephemeral.get("k" * 500) or b"") == MAX_VALUE_BYTES
        refused = (
            lambda: ephemeral.put("", b"", ttl_s=60),
            lambda: ephemeral.put_once("k" * 501, b"", ttl_s=60),
            lambda: ephemeral.put("suite", b"v" * (MAX_VALUE_BYTES + 1), ttl_s=60),
            lambda: ephemeral.incr("suite", ttl_s=0),
            lambda: ephemeral.put("suite", b"", ttl_s=float("nan")),
        )
        for call in refused:
            try:
                await call()
            except ValueError:
                continue
            raise AssertionError("a limit was not kept")
