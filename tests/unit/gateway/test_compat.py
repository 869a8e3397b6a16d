"""What old clients watched is kept for their next socket."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.adapters.memory.ephemeral import MemoryEphemeral
from livetape.errors import StoreUnavailableError
from livetape.events.log import Position
from livetape.gateway.compat import DEAD_AFTER_S, KEEP_S, CompatResume, Kept, Record, State
from livetape.gateway.subjects import Kind, Subject
from livetape.store.ephemeral import MAX_VALUE_BYTES
from livetape.testing.fakes import ManualClock

T = TypeVar("T")


def kept(name: str = "E", offset: int = 7, epoch: str = "e") -> Kept:
    return Kept(Subject(Kind.EXECUTION, name), Position(epoch, offset))


A, B, C = kept("A"), kept("B"), kept("C")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Store(MemoryEphemeral):
    """Counts what is written, and can be away."""

    puts = 0
    away = False

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        if self.away:
            raise StoreUnavailableError
        self.puts += not key.startswith("compat-process")
        await super().put(key, value, ttl_s=ttl_s)

    async def incr(self, key: str, *, ttl_s: float, by: int = 1) -> int:
        if self.away:
            raise StoreUnavailableError
        return await super().incr(key, ttl_s=ttl_s, by=by)


@pytest.fixture
def store(clock: ManualClock) -> Store:
    return Store(clock=clock)


def process(store: Store, clock: ManualClock, **options: int) -> CompatResume:
    """One gateway process. Its waiting is that of the clock, which moves by itself."""

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)
        await asyncio.sleep(0)

    return CompatResume(store, clock=clock, sleep=sleep, **options)


async def at_once(seconds: float) -> None:
    """Time stands still."""
    await asyncio.sleep(0)


async def take(compat: CompatResume, user: str = "U") -> list[Kept]:
    """As a new socket of this user."""
    return await compat.take(compat.slot(user))


@pytest.fixture
def compat(store: Store, clock: ManualClock) -> CompatResume:
    return process(store, clock)


async def test_what_a_lost_socket_watched_is_taken_once(compat: CompatResume) -> None:
    slot = compat.slot("U")
    await slot.save([A])
    await slot.leave([A, B])
    assert await take(compat, "V") == []
    assert await take(compat, "U") == [A, B]
    assert await take(compat, "U") == []


async def test_a_socket_that_is_open_keeps_its_own(compat: CompatResume) -> None:
    await compat.slot("U").save([A])
    assert await take(compat, "U") == []


async def test_it_is_kept_for_two_minutes(compat: CompatResume, clock: ManualClock) -> None:
    for seconds, expected in ((KEEP_S - 1, [A]), (KEEP_S + 1, [])):
        await compat.slot("U").leave([A])
        clock.advance(seconds)
        assert await take(compat, "U") == expected
        clock.advance(KEEP_S + 1)


async def test_of_a_killed_process_once_it_is_known_to_be_dead(store: Store, clock: ManualClock) -> None:
    killed, next_one = process(store, clock), process(store, clock)
    await killed.slot("U").save([A])
    before = clock.monotonic()
    assert await take(next_one, "U") == [A]
    assert DEAD_AFTER_S <= clock.monotonic() - before <= 2 * DEAD_AFTER_S


async def test_not_of_a_process_that_lives(store: Store, clock: ManualClock) -> None:
    other, this = process(store, clock), process(store, clock)
    await other.slot("U").save([A])
    beating = asyncio.create_task(other.run())
    try:
        assert await take(this, "U") == []
    finally:
        beating.cancel()


async def test_a_long_life_without_a_change_is_still_known(store: Store, clock: ManualClock) -> None:
    killed = process(store, clock)
    slot = killed.slot("U")
    await slot.save([A])
    for _ in range(20):
        clock.advance(25)
        await slot.save([A])
    assert store.puts < 12, "only as often as is needed"
    clock.advance(25)
    assert await take(process(store, clock), "U") == [A]


async def test_nothing_is_written_when_nothing_changed(compat: CompatResume, store: Store) -> None:
    slot = compat.slot("U")
    await slot.save([])
    await slot.save([A])
    await slot.save([A])
    assert store.puts == 0, "the first is the making of the slot"
    await slot.save([B])
    assert store.puts == 1


async def test_sockets_that_were_lost_together_each_get_everything(compat: CompatResume) -> None:
    """Nobody knows which page comes back first: each must find its own in what it is given."""
    for watched in ([A], [B, kept("X", 5)], [C, kept("X", 3)]):
        slot = compat.slot("U")
        await slot.save(watched)
        await slot.leave(watched)
    for _ in range(3):
        assert set(await take(compat, "U")) == {A, B, C, kept("X", 3)}
    assert await take(compat, "U") == []


async def test_concurrent_sockets_are_given_no_more_than_was_lost(store: Store, clock: ManualClock) -> None:
    for watched in (A, B):
        await process(store, clock).slot("U").leave([watched])
    takers = [CompatResume(store, clock=clock, sleep=at_once) for _ in range(6)]
    results = await asyncio.gather(*(take(taker, "U") for taker in takers))
    assert sum(bool(result) for result in results) == 2


class Fused(MemoryEphemeral):
    """The store as one process has it, which is stopped before one of its commands, until `go_on`."""

    def __init__(self, store: MemoryEphemeral, fuse: int) -> None:
        super().__init__()
        self._store = store
        self._left = fuse
        self.stopped = asyncio.Event()
        self.go_on = asyncio.Event()

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        await self._burn(self._store.put(key, value, ttl_s=ttl_s))

    async def put_once(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        return await self._burn(self._store.put_once(key, value, ttl_s=ttl_s))

    async def get(self, key: str) -> bytes | None:
        return await self._burn(self._store.get(key))

    async def take(self, key: str) -> bytes | None:
        return await self._burn(self._store.take(key))

    async def incr(self, key: str, *, ttl_s: float, by: int = 1) -> int:
        return await self._burn(self._store.incr(key, ttl_s=ttl_s, by=by))

    async def _burn(self, command: Coroutine[Any, Any, T]) -> T:
        self._left -= 1
        if self._left == 0:
            self.stopped.set()
            await self.go_on.wait()
        return await command


@pytest.mark.parametrize("lost", ["killed", "cut off"])
async def test_a_process_killed_while_it_takes_loses_nothing(store: Store, clock: ManualClock, lost: str) -> None:
    for fuse in range(1, 99):
        first, user = process(store, clock), f"U{fuse}"
        slot = first.slot(user)
        await slot.save([A])
        if lost == "cut off":
            await slot.leave([A])
        clock.advance(2 * DEAD_AFTER_S)
        fused = Fused(store, fuse)
        killed = CompatResume(fused, clock=clock, sleep=at_once)
        taking, burnt = asyncio.create_task(take(killed, user)), asyncio.create_task(fused.stopped.wait())
        await asyncio.wait({taking, burnt}, return_when=asyncio.FIRST_COMPLETED)
        burnt.cancel()
        if taking.done():
            assert taking.result() == [A]
            assert fuse > 7
            break
        # Nothing of it goes on: its task waits at the fuse for ever.
        assert await take(process(store, clock), user) == [A], f"killed before command {fuse}"
        fused.go_on.set()
        await taking
    else:
        pytest.fail("it never ends")


async def test_a_socket_lost_while_it_takes_gives_it_back(store: Store, clock: ManualClock) -> None:
    for fuse in range(1, 99):
        user = f"U{fuse}"
        await process(store, clock).slot(user).leave([A])
        fused = Fused(store, fuse)
        compat = CompatResume(fused, clock=clock, sleep=at_once)
        taking, burnt = asyncio.create_task(take(compat, user)), asyncio.create_task(fused.stopped.wait())
        await asyncio.wait({taking, burnt}, return_when=asyncio.FIRST_COMPLETED)
        burnt.cancel()
        if taking.done():
            break
        taking.cancel()
        await asyncio.wait({taking})
        assert taking.cancelled()
        fused.go_on.set()
        await compat.settled()
        assert await take(compat, user) == [A], f"lost before command {fuse}"
        assert await take(compat, user) == []


async def test_it_is_looked_for_again_when_the_store_was_away(store: Store, clock: ManualClock) -> None:
    await process(store, clock).slot("U").leave([A])

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)
        store.away = clock.monotonic() < back_at

    store.away, back_at = True, clock.monotonic() + 30
    assert await take(CompatResume(store, clock=clock, sleep=sleep)) == [A]


async def test_whoever_comes_while_the_loss_is_written_down_waits_for_it(store: Store, clock: ManualClock) -> None:
    fused = Fused(store, 99)
    compat = CompatResume(fused, clock=clock, sleep=at_once)
    slot = compat.slot("U")
    await slot.save([A])
    fused._left = 1
    leaving = asyncio.create_task(slot.leave([B]))
    await fused.stopped.wait()
    taking = asyncio.create_task(take(compat))
    for _ in range(10):
        await asyncio.sleep(0)
    fused.go_on.set()
    assert await taking == [B]
    await leaving


async def test_when_nobody_knows_whether_it_was_taken_it_was(store: Store, clock: ManualClock) -> None:
    await process(store, clock).slot("U").leave([A])
    compat = process(store, clock)

    async def lose_the_answer(key: str) -> bytes | None:
        await MemoryEphemeral.take(store, key)
        raise StoreUnavailableError

    store.take = lose_the_answer  # type: ignore[method-assign]
    assert await take(compat) == [A]


async def test_who_left_by_itself_leaves_nothing(compat: CompatResume) -> None:
    slot = compat.slot("U")
    await slot.save([A])
    await slot.drop()
    await slot.save([B])
    await slot.leave([B])
    assert await take(compat, "U") == []


async def test_what_is_forgotten(compat: CompatResume) -> None:
    await compat.slot("U").leave([A])
    await compat.slot("U").leave([B])
    await compat.slot("V").leave([C])
    await compat.forget("U")
    assert await take(compat, "U") == []
    assert await take(compat, "V") == [C]


async def test_a_store_that_is_away_harms_nobody(compat: CompatResume, store: Store) -> None:
    slot = compat.slot("U")
    store.away = True
    await slot.save([A])
    assert await take(compat, "U") == []
    store.away = False
    await slot.save([A])
    store.away = True
    await slot.leave([B])
    store.away = False
    assert await take(compat, "U") == [A], "as of when it could be written"


async def test_only_so_many_sockets_of_a_user_are_remembered(store: Store, clock: ManualClock) -> None:
    compat = process(store, clock, max_slots=2)
    slots = [compat.slot("U") for _ in range(3)]
    for number, slot in enumerate(slots):
        await slot.save([kept(str(number))])
    for slot in slots:
        await slot.leave([A])
    assert await take(compat, "U") == [A]
    assert await take(compat, "U") == [A]
    assert await take(compat, "U") == []


async def test_a_slot_that_was_used_again_meanwhile_is_left_alone(store: Store, clock: ManualClock) -> None:
    compat = process(store, clock)
    await compat.slot("U").leave([A])
    look = compat._look

    async def look_and_be_late(key: str) -> Record | None:
        record = await look(key)
        if record is not None and record.state is State.LOST:
            await store.put(key, Record(compat._process, State.LIVE, (B,)).encode(), ttl_s=9)
        return record

    compat._look = look_and_be_late  # type: ignore[method-assign]
    assert await take(compat, "U") == []


async def test_rubbish_in_a_slot_is_nothing(compat: CompatResume, store: Store) -> None:
    slot = compat.slot("U")
    await slot.leave([A])
    assert slot.key is not None
    for rubbish in (b"", b"[]", b"{}", b'{"process":"p","state":"lost","kept":[["execution","E","e"]]}'):
        await store.put(slot.key, rubbish, ttl_s=9)
        assert await take(compat, "U") == []


def test_the_newest_are_kept_when_they_are_too_many() -> None:
    many = tuple(kept(f"E{number}" + "x" * 190) for number in range(1024))
    data = Record("p", State.LIVE, many).encode()
    assert MAX_VALUE_BYTES - 300 < len(data) <= MAX_VALUE_BYTES
    found = Record.decode(data)
    assert found is not None
    assert found.kept == many[-len(found.kept) :]


SUBJECTS = st.builds(Subject, st.sampled_from(Kind), st.text(max_size=20))
POSITIONS = st.builds(Position, st.text(max_size=9), st.integers(0, 2**63 - 1))
RECORDS = st.builds(
    Record, st.text(max_size=9), st.sampled_from(State), st.lists(st.builds(Kept, SUBJECTS, POSITIONS)).map(tuple)
)


@given(RECORDS)
def test_what_is_written_is_read(record: Record) -> None:
    assert Record.decode(record.encode()) == record


@given(st.binary(max_size=40))
def test_anything_can_be_read(data: bytes) -> None:
    Record.decode(data)
