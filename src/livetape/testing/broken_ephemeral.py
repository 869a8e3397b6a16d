"""Ephemeral stores that break one promise each. `EphemeralSuite` must fail every one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from livetape.store.ephemeral import Ephemeral, check


class SoftEphemeral(Ephemeral):
    """A sound store in memory, with seams where the broken ones differ."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[float, bytes]] = {}

    def end(self, ttl_s: float) -> float:
        return asyncio.get_running_loop().time() + ttl_s

    def live(self, key: str) -> bytes | None:
        end, value = self.values.get(key, (0.0, b""))
        return value if end > asyncio.get_running_loop().time() else None

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        check(key, value, ttl_s)
        self.values[key] = (self.end(ttl_s), value)

    async def put_once(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        check(key, value, ttl_s)
        if self.live(key) is not None:
            return False
        self.values[key] = (self.end(ttl_s), value)
        return True

    async def get(self, key: str) -> bytes | None:
        check(key)
        return self.live(key)

    async def take(self, key: str) -> bytes | None:
        value = await self.get(key)
        self.values.pop(key, None)
        return value

    async def incr(self, key: str, *, ttl_s: float, by: int = 1) -> int:
        check(key, ttl_s=ttl_s)
        value = self.live(key)
        end = self.end(ttl_s) if value is None else self.values[key][0]
        total = int(value or 0) + by
        self.values[key] = (end, b"%d" % total)
        return total

    async def close(self) -> None:
        self.values.clear()


class ForgetsBytes(SoftEphemeral):
    """Takes values for text."""

    async def get(self, key: str) -> bytes | None:
        value = await super().get(key)
        return None if value is None else value.decode("utf-8", "replace").encode()


class LeavesOutWhatIsNotThere(SoftEphemeral):
    """`get_all` does not tell which keys have nothing."""

    async def get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        return [value for key in keys if (value := await self.get(key)) is not None]


class KeepsTheFirst(SoftEphemeral):
    """`put` does not replace."""

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        await self.put_once(key, value, ttl_s=ttl_s)


class OnceIsAlways(SoftEphemeral):
    """`put_once` replaces, and says so."""

    async def put_once(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        fresh = self.live(key) is None
        await self.put(key, value, ttl_s=ttl_s)
        return fresh


class LooksThenPuts(SoftEphemeral):
    """`put_once` in two steps."""

    async def put_once(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        if self.live(key) is not None:
            return False
        await asyncio.sleep(0)
        await self.put(key, value, ttl_s=ttl_s)
        return True


class TakesNothingAway(SoftEphemeral):
    """`take` only looks."""

    async def take(self, key: str) -> bytes | None:
        return await self.get(key)


class LooksThenTakes(SoftEphemeral):
    """`take` in two steps."""

    async def take(self, key: str) -> bytes | None:
        value = await self.get(key)
        await asyncio.sleep(0)
        self.values.pop(key, None)
        return value


class NeverEnds(SoftEphemeral):
    """Times to live are not kept."""

    def end(self, ttl_s: float) -> float:
        return super().end(ttl_s + 3600)


class KeepsTheFirstEnd(SoftEphemeral):
    """`put` leaves the time to live."""

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        end = self.values.get(key, (None,))[0]
        await super().put(key, value, ttl_s=ttl_s)
        self.values[key] = (end or self.values[key][0], value)


class CountsUpOnly(SoftEphemeral):
    """Ignores `by`."""

    async def incr(self, key: str, *, ttl_s: float, by: int = 1) -> int:
        return await super().incr(key, ttl_s=ttl_s)


class LooksThenCounts(SoftEphemeral):
    """`incr` in two steps."""

    async def incr(self, key: str, *, ttl_s: float, by: int = 1) -> int:
        before = int(self.live(key) or 0)
        await asyncio.sleep(0)
        end = self.values[key][0] if self.live(key) is not None else self.end(ttl_s)
        self.values[key] = (end, b"%d" % (before + by))
        return before + by


class CountingProlongs(SoftEphemeral):
    """`incr` begins the time anew."""

    async def incr(self, key: str, *, ttl_s: float, by: int = 1) -> int:
        total = await super().incr(key, ttl_s=ttl_s, by=by)
        self.values[key] = (self.end(ttl_s), self.values[key][1])
        return total


class TakesAnything(SoftEphemeral):
    """No limits."""

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        self.values[key] = (self.end(ttl_s), value)


BROKEN_EPHEMERALS: Final[Mapping[Callable[[], Ephemeral], str]] = {
    ForgetsBytes: "test_what_was_put_is_got_byte_for_byte",
    LeavesOutWhatIsNotThere: "test_several_are_got_in_the_order_asked_for",
    KeepsTheFirst: "test_put_replaces",
    OnceIsAlways: "test_put_once_is_for_the_first",
    LooksThenPuts: "test_of_many_who_put_once_exactly_one_does",
    TakesNothingAway: "test_what_was_taken_is_gone",
    LooksThenTakes: "test_of_many_who_take_exactly_one_gets_it",
    NeverEnds: "test_a_value_goes_when_its_time_is_over",
    KeepsTheFirstEnd: "test_put_begins_the_time_anew",
    CountsUpOnly: "test_a_counter_counts",
    LooksThenCounts: "test_concurrent_counting_loses_nothing",
    CountingProlongs: "test_counting_does_not_prolong",
    TakesAnything: "test_limits_are_kept",
}
"""Each with the case that is there for it."""
