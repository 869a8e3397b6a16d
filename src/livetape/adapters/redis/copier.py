"""Copies of tapes on Redis: the put, alone or with its push in the same script call."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from livetape.adapters.redis.commands import Commands, Word
from livetape.adapters.redis.entries import form_of
from livetape.adapters.redis.keys import keys_of
from livetape.adapters.redis.recorder import TIMEOUT_S
from livetape.adapters.redis.retention import words as retention_words
from livetape.adapters.redis.scripts import Scripts
from livetape.clock import Clock, SystemClock
from livetape.errors import LogError, NotFoundError, PositionLostError, TapeHoleError
from livetape.events.copier import Copier
from livetape.events.log import NewEvent, Position, PutResult
from livetape.events.tape_retention import TapeRetention

_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_PREFIX: Final = b'{"payload":'
_SEED_FORM: Final = 5


class RedisCopier(Copier):
    """Puts and publishes in one atomic step on the server; for one event loop. `commands` stays open.

    What is on the tape already is not published again: it was, when it was put.
    """

    def __init__(
        self,
        commands: Commands,
        *,
        clock: Clock | None = None,
        retention: TapeRetention | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._scripts = Scripts(commands)
        self._clock = clock or SystemClock()
        self._retention = retention or TapeRetention()
        self._timeout_s = timeout_s

    async def copy(self, tape: str, position: Position, event: NewEvent, *, channel: str, message: bytes) -> PutResult:
        now = (self._clock.now() - _UNIX_EPOCH) // _MICROSECOND
        begin = len(_PREFIX)
        end = begin + len(event.payload)
        whole = message.startswith(_PREFIX) and message[begin:end] == event.payload
        push: tuple[Word, ...] = (channel, message[end:], "t") if whole else (channel, message, "")
        words = (*put_words(tape, position, event, now, self._retention), *push)
        return await put(self._scripts, tape, words, self._timeout_s)


def put_words(
    tape: str, position: Position, event: NewEvent, now_us: int, retention: TapeRetention
) -> tuple[Word, ...]:
    """What the script is told of the event."""
    form: tuple[Word, ...] = form_of(tape, event)
    stamp = form[3] if len(form) == _SEED_FORM else ""
    return (
        position.epoch,
        position.offset,
        now_us,
        now_us if event.at_us is None else event.at_us,
        retention_words(retention, tape)[0],
        *form[:3],
        stamp,
    )


async def put(scripts: Scripts, tape: str, words: tuple[Word, ...], timeout_s: float) -> PutResult:
    """Run the script. Raises as `EventLog.put`."""
    stream, meta, _, times = keys_of(tape)
    answer = await scripts.run("put", tape, (stream, meta, times), words, timeout_s=timeout_s)
    result = answer[0]
    if result == b"stored":
        return "stored"
    if result == b"duplicate":
        return "duplicate"
    if result == b"hole":
        raise TapeHoleError("an earlier event is missing", tape=tape, missing_from=answer[1])
    if result == b"epoch":
        raise PositionLostError("the tape has another epoch", tape=tape, epoch=answer[1].decode())
    if result == b"mixed":
        raise LogError("somebody else writes to this tape, it cannot be a copy", tape=tape)
    raise NotFoundError(f"there is no tape {tape}", tape=tape)
