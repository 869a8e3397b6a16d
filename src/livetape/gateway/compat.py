"""Keeps what old clients watched, for their next socket (wire contract, section 3): they do not subscribe again.

What a socket watches is written down in a slot of its user while the socket lives, so that it is there for another
process when this one is killed. A slot is free to be taken when its socket was lost, or its process is dead.

What is taken stands in the slot of the socket that takes it before it is taken away from where it was: whenever a
process is killed, it stands somewhere. At worst it stands twice, and is then given to two sockets.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias

from pydantic_core import from_json, to_json

from livetape.clock import Clock, SystemClock, new_id
from livetape.errors import LivetapeError
from livetape.events.backoff import Backoff
from livetape.events.log import Position
from livetape.gateway.subjects import Kind, Subject
from livetape.observability import get_logger
from livetape.store.ephemeral import MAX_VALUE_BYTES, Ephemeral

logger = get_logger(__name__)

Sleep: TypeAlias = Callable[[float], Awaitable[None]]

KEEP_S: Final = 120.0
MAX_SLOTS: Final = 32
"""So many sockets of one user are remembered; further ones are not."""

BEAT_S: Final = 1.5
"""So often does a process say that it lives."""

DEAD_AFTER_S: Final = 5.0
"""A process that has said nothing for so long is dead: its sockets are lost."""

TOGETHER_S: Final = 15.0
"""Sockets that were lost together come back within this time."""

COUNT_TTL_S: Final = 86_400.0

LOOKS_AT_ONCE: Final = 64
"""So many sockets look at the same time for what was lost: they may all come back at once."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Something that was watched, and the position up to which its client certainly has everything."""

    subject: Subject
    position: Position


class State(StrEnum):
    """Of a slot."""

    LIVE = "live"
    """Its socket is open, if its process lives."""

    LOST = "lost"
    TAKEN = "taken"
    """Another socket has come instead. Shown to those that were lost together with it: see `take`."""


@dataclass(frozen=True, slots=True)
class Record:
    """What stands in a slot."""

    process: str
    state: State
    kept: tuple[Kept, ...]

    def encode(self) -> bytes:
        """At most 64 KiB: when there is more, what was watched first is left out."""
        head = b'{"process":%b,"state":%b,"kept":[' % (to_json(self.process), to_json(self.state))
        size, rows = len(head) + 2, list[bytes]()
        for one in reversed(self.kept):
            subject, position = one.subject, one.position
            row = to_json([subject.kind, subject.id, position.epoch, position.offset])
            size += len(row) + 1
            if size > MAX_VALUE_BYTES:
                break
            rows.append(row)
        return head + b",".join(reversed(rows)) + b"]}"

    @classmethod
    def decode(cls, data: bytes) -> Record | None:
        """None for what no version of this has written."""
        try:
            body = from_json(data)
            kept = tuple([_kept_of(*row) for row in body["kept"]])
            return cls(_text(body["process"]), State(body["state"]), kept)
        except (ValueError, KeyError, TypeError):
            return None


class CompatResume:
    """The slots of all users in the Ephemeral store. One per process; `run` for as long as it serves.

    Nothing here raises when the store is away: then nothing is kept, and a page shows what it showed until it is
    loaded again.
    """

    def __init__(
        self,
        ephemeral: Ephemeral,
        *,
        keep_s: float = KEEP_S,
        max_slots: int = MAX_SLOTS,
        process: str | None = None,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._ephemeral = ephemeral
        self._keep_s = keep_s
        self._max_slots = max_slots
        self._process = process or new_id()
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._held: dict[str, Slot] = {}
        self._turns = asyncio.Semaphore(LOOKS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._beaten_at: float | None = None

    async def run(self) -> None:
        """Tell the other processes that this one lives, while it holds slots. Until cancelled."""
        while True:
            if self._held:
                try:
                    await self._beat()
                except LivetapeError as error:
                    _warn("cannot tell that this process lives", error)
            await self._sleep(BEAT_S)

    def slot(self, user_id: str) -> Slot:
        """For one socket of this user. Nothing is written before its first `save`."""
        return Slot(self, _prefix(user_id))

    async def take(self, slot: Slot, *, looked: Callable[[], object] = lambda: None) -> list[Kept]:
        """What the socket of this slot, which has written nothing yet, is to go on watching: it then stands there.
        Empty when no socket of its user was lost.

        Of several sockets that were lost together nobody knows which page comes back first, so each that comes is
        given what all of them watched; but no more sockets are given anything than were lost. Looks for a few
        seconds when it cannot be told yet whether a process is dead, and again when the store is away. Cancel it when
        the client is gone or subscribes by itself: what was being taken is then kept for the next one.

        `looked` is called each time when it has looked.
        """
        waited, away = 0.0, 0.0
        backoff = Backoff()
        while True:
            look = asyncio.create_task(self._look_in_turn(slot), name="look for a lost socket")
            try:
                try:
                    found = await asyncio.shield(look)
                except LivetapeError as error:
                    _warn("cannot look for what a client watched before", error)
                    if away > self._keep_s:  # it is not kept any more
                        return []
                    pause = backoff.next()
                    away += pause
                else:
                    if found.taken or not found.is_doubtful or waited > DEAD_AFTER_S:
                        return found.taken
                    pause = BEAT_S
                    waited += pause
                finally:
                    looked()
                await self._sleep(pause)
            except asyncio.CancelledError:
                self._spawn(_give_back(look, slot))
                raise

    async def settled(self) -> None:
        """All that was given back is written down."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def forget(self, user_id: str) -> None:
        """Keep nothing of this user. What its sockets that are still open watch is written down again later.

        Raises:
            StoreUnavailableError: perhaps it is still kept.
        """
        prefix = _prefix(user_id)
        for number in range(await self._count(prefix)):
            await self._ephemeral.take(_key(prefix, number))

    # ---- slots -----------------------------------------------------------------------------------------------------

    async def _look_in_turn(self, slot: Slot) -> _Found:
        async with self._turns:
            return await self._look_round(slot)

    async def _look_round(self, slot: Slot) -> _Found:
        free: list[tuple[str, Record]] = []
        is_doubtful = False
        alive: dict[str, bool] = {}
        for number in range(await self._count(slot.prefix)):
            key = _key(slot.prefix, number)
            record = await self._look(key)
            if record is None:
                continue
            if record.state is State.LIVE and await self._is_live(key, record, alive):
                is_doubtful = is_doubtful or record.process != self._process or self._is_ending(key)
                continue
            free.append((key, record))
        for key, record in free:
            if record.state is State.TAKEN:
                continue
            # Of those that were taken before, only what was lost with it: all else its page has long since.
            lost = [one for _, one in free if one.state is State.LOST or one.process == record.process]
            taken = _together(kept for one in lost for kept in one.kept)
            await slot.put(taken)
            try:
                is_mine = await self._claim(key, record)
            except LivetapeError as error:
                _warn("perhaps what a client watched is given to two", error)
                is_mine = True  # nobody knows: better twice than not at all
            if is_mine:
                return _Found(taken, is_doubtful=False)
        await slot.vacate()
        return _Found([], is_doubtful)

    async def _claim(self, key: str, record: Record) -> bool:
        data = await self._ephemeral.take(key)
        if data is None:
            return False
        if Record.decode(data) != record:  # it has been used for another socket meanwhile
            await self._ephemeral.put_once(key, data, ttl_s=self._keep_s)
            return False
        shown = Record(record.process, State.TAKEN, record.kept)
        await self._ephemeral.put_once(key, shown.encode(), ttl_s=min(self._keep_s, TOGETHER_S))
        return True

    async def _is_live(self, key: str, record: Record, alive: dict[str, bool]) -> bool:
        if record.process == self._process:
            return key in self._held
        if record.process not in alive:
            alive[record.process] = await self._ephemeral.get(_alive(record.process)) is not None
        return alive[record.process]

    def _is_ending(self, key: str) -> bool:
        """Its socket is lost, which is being written down."""
        slot = self._held.get(key)
        return slot is not None and slot.ended

    async def _look(self, key: str) -> Record | None:
        data = await self._ephemeral.get(key)
        return None if data is None else Record.decode(data)

    async def _count(self, prefix: str) -> int:
        count = await self._ephemeral.incr(f"{prefix}:count", ttl_s=COUNT_TTL_S, by=0)
        return max(0, min(count, self._max_slots))

    async def _allot(self, prefix: str, data: bytes, ttl_s: float) -> str | None:
        """The key of a slot that was free, written; None when there is none."""
        count = await self._count(prefix)
        for number in range(self._max_slots):
            if number >= count:  # first, so that nothing ever stands where nobody looks
                await self._count_up_to(prefix, number + 1)
            key = _key(prefix, number)
            if await self._ephemeral.put_once(key, data, ttl_s=ttl_s):
                return key
        return None

    async def _count_up_to(self, prefix: str, least: int) -> None:
        """`take` looks at so many slots."""
        count = await self._ephemeral.incr(f"{prefix}:count", ttl_s=COUNT_TTL_S, by=0)
        if count < least:  # two that do this at the same time make it larger than needed, which does no harm
            await self._ephemeral.incr(f"{prefix}:count", ttl_s=COUNT_TTL_S, by=least - count)

    async def _beat(self) -> None:
        await self._ephemeral.put(_alive(self._process), b"1", ttl_s=DEAD_AFTER_S)
        self._beaten_at = self._clock.monotonic()

    # ---- what slots call -------------------------------------------------------------------------------------------

    async def _write(self, slot: Slot, kept: Sequence[Kept], state: State) -> bool:
        now = self._clock.monotonic()
        if self._beaten_at is None or now - self._beaten_at > 2 * BEAT_S:
            await self._beat()
        data = Record(self._process, state, tuple(kept)).encode()
        # One that lives is written anew before half of this is over.
        ttl_s = 2 * self._keep_s if state is State.LIVE else self._keep_s
        if slot.key is None:
            slot.key = await self._allot(slot.prefix, data, ttl_s)
            if slot.key is None:
                return False
        else:
            await self._ephemeral.put(slot.key, data, ttl_s=ttl_s)
            await self._count_up_to(slot.prefix, _number_of(slot.key) + 1)
        if state is State.LIVE:
            self._held[slot.key] = slot
        return True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="give back what was taken")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass(frozen=True, slots=True)
class _Found:
    """What was taken in one round. `is_doubtful`: there is more, which may belong to a dead process."""

    taken: list[Kept]
    is_doubtful: bool


class Slot:
    """Where one old client's socket writes down what it watches. One caller at a time waits its turn."""

    def __init__(self, compat: CompatResume, prefix: str) -> None:
        self._compat = compat
        self._turn = asyncio.Lock()
        self._saved: tuple[Kept, ...] = ()
        self._saved_at: float | None = None
        self.ended = False
        """Its socket is gone."""
        self.prefix = prefix
        self.key: str | None = None

    async def save(self, kept: Iterable[Kept]) -> None:
        """This is what it watches now, and its client certainly has. Writes only when something changed, and often
        enough that it is kept while the socket lives: to be called at each confirmed position."""
        watched = tuple(kept)
        async with self._turn:
            if self.ended or (watched == self._saved and (not watched or not self._is_due())):
                return
            try:
                if await self._compat._write(self, watched, State.LIVE):
                    self._saved, self._saved_at = watched, self._compat._clock.monotonic()
            except LivetapeError as error:
                _warn("cannot write down what a client watches", error)

    async def put(self, kept: Sequence[Kept]) -> None:
        """As `save`, for what is not its own yet. Without a free slot nothing is written.

        Raises:
            StoreUnavailableError: perhaps it is written.
        """
        async with self._turn:
            if await self._compat._write(self, kept, State.LIVE):
                self._saved, self._saved_at = tuple(kept), self._compat._clock.monotonic()

    async def vacate(self) -> None:
        """What was `put` was not given to it after all.

        Raises:
            StoreUnavailableError: perhaps it still stands there.
        """
        async with self._turn:
            if self.key is not None:
                await self._compat._ephemeral.take(self.key)
                self._release()
                self.key, self._saved, self._saved_at = None, (), None

    async def leave(self, kept: Iterable[Kept]) -> None:
        """The socket was lost, or the server has closed it: keep this for the user's next one. Nothing follows."""
        watched = tuple(kept)
        async with self._turn:
            if self.ended:
                return
            self.ended = True
            try:
                if watched:
                    await self._compat._write(self, watched, State.LOST)
                elif self.key is not None:
                    await self._compat._ephemeral.take(self.key)
            except LivetapeError as error:
                _warn("cannot keep what a client watched", error)
            finally:
                self._release()

    async def drop(self) -> None:
        """The client has gone by itself, uses newer messages, or was revoked: keep nothing. Nothing follows."""
        await self.leave(())

    def _is_due(self) -> bool:
        return self._saved_at is None or self._compat._clock.monotonic() - self._saved_at >= self._compat._keep_s / 2

    def _release(self) -> None:
        if self.key is not None:
            self._compat._held.pop(self.key, None)


async def _give_back(look: asyncio.Task[_Found], slot: Slot) -> None:
    await asyncio.wait({look})
    await slot.leave(() if look.exception() is not None else look.result().taken)


def _together(kept: Iterable[Kept]) -> list[Kept]:
    """Each subject once, from the earliest position: what comes twice is only shown twice."""
    found: dict[Subject, Position] = {}
    for one in kept:
        known = found.get(one.subject)
        if known is None or (known.epoch == one.position.epoch and one.position.offset < known.offset):
            found[one.subject] = one.position
    return [Kept(subject, position) for subject, position in found.items()]


def _prefix(user_id: str) -> str:
    """Ids may be long, and need not stand in the store."""
    return f"compat:{hashlib.sha256(user_id.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _key(prefix: str, number: int) -> str:
    return f"{prefix}:{number}"


def _number_of(key: str) -> int:
    return int(key.rpartition(":")[2])


def _alive(process: str) -> str:
    return f"compat-process:{process}"


def _kept_of(kind: Any, name: Any, epoch: Any, offset: Any) -> Kept:
    return Kept(Subject(Kind(kind), _text(name)), Position(_text(epoch), _number(offset)))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(value)
    return value


def _warn(text: str, error: Exception) -> None:
    logger.warning("%s: %s", text, error, extra={"action": "compat_unavailable"})
