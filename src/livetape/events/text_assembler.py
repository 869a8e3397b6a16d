"""From the events of a stream of tokens back to its text. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from livetape.events.tokens import ABORT, CHECKPOINT, DELTA, END

TOKEN_EVENTS: Final = frozenset({DELTA, CHECKPOINT, END, ABORT})

_MAX_SEGMENT: Final = 1_000_000
"""Of more segments no text is made; a larger number is not ours."""


class TextChange(NamedTuple):
    """What an event did to the text. `added` came at its end; with `replaces` it is the whole text as it is now."""

    added: str
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """An event of a stream of tokens, checked."""

    event_type: str
    run: int
    index: int
    text: str
    segment: int
    sealed: bool
    previous: int | None
    finish_reason: str | None
    error: str | None

    @property
    def is_base(self) -> bool:
        """Whether it says the text of its segment without what came before it."""
        return self.event_type != DELTA or self.index == 0


def token_record(event_type: str, data: object, stream_id: str) -> TokenRecord | None:
    """From an event of a tape; None when it is no event of this stream."""
    if event_type not in TOKEN_EVENTS or not isinstance(data, dict) or data.get("stream_id") != stream_id:
        return None
    index, text = _number(data.get("index")), data.get("text")
    run, segment = _number(data.get("run", 0)), _number(data.get("segment", 0))
    if index is None or run is None or segment is None or segment > _MAX_SEGMENT or not isinstance(text, str):
        return None
    return TokenRecord(
        event_type,
        run,
        index,
        text,
        segment,
        event_type == CHECKPOINT and data.get("sealed") is True,
        _number(data.get("previous")),
        _word(data.get("finish_reason")) if event_type == END else None,
        (_word(data.get("error")) or "") if event_type == ABORT else None,
    )


class TextAssembler:
    """The text of one stream, from its events in the order of their tape.

    Events of other streams and types are ignored, and so are repetitions and those of an older run. It may begin
    anywhere: `complete` says whether all of the text is here. After a hole, the next checkpoint makes it good.
    """

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        self.finish_reason: str | None = None
        """What the end said; None before it, and after an abort."""
        self.error: str | None = None
        """What an abort said; None when there was none."""
        self.finished = False
        """After the end or an abort."""
        self.duplicates = 0
        """How many repeated events were ignored."""
        self.holes = 0
        """How often events were missing."""
        self._run = -1
        self._next = 0
        self._sealed: list[str | None] = []  # of the segments before the present one
        self._parts: list[str] = []
        self._broken = False  # a delta of the present segment is missing

    @property
    def started(self) -> bool:
        """Whether there was any event of the stream."""
        return self._run >= 0

    @property
    def complete(self) -> bool:
        """Whether nothing of the text so far is missing."""
        return not self._broken and None not in self._sealed

    @property
    def text(self) -> str:
        """The text so far; where something is missing, without it."""
        self._parts = ["".join(self._parts)]
        return "".join(part for part in (*self._sealed, *self._parts) if part is not None)

    def feed(self, event_type: str, data: object) -> TextChange | None:
        """Take the next event; None when it changed nothing."""
        record = token_record(event_type, data, self.stream_id)
        return None if record is None else self.take(record)

    def take(self, record: TokenRecord) -> TextChange | None:
        """As `feed`."""
        if record.run < self._run:
            return None
        is_anew = record.run > self._run
        if is_anew:
            self._begin(record.run)
        if record.index < self._next:
            self.duplicates += 1
            return None
        is_behind = record.index > self._next
        self.holes += is_behind
        self._next = record.index + 1
        if record.event_type == DELTA:
            self._broken = self._broken or is_behind
            self._parts.append(record.text)
            return TextChange(self.text, replaces=True) if is_anew else TextChange(record.text)
        changed = self._replace(record)
        if record.sealed:
            self._sealed.append(record.text)
            self._parts = []
        if record.event_type in (END, ABORT):
            self.finished, self.finish_reason, self.error = True, record.finish_reason, record.error
            changed = changed or TextChange("")
        return TextChange(self.text, replaces=True) if is_anew else changed

    def know(self, segment: int, text: str) -> None:
        """Fill in a sealed segment that came before what was fed."""
        self._sealed[segment] = text

    def missing(self) -> list[int]:
        """The numbers of the segments before the present one that are not known."""
        return [number for number, text in enumerate(self._sealed) if text is None]

    def _begin(self, run: int) -> None:
        self._run, self._next, self._sealed, self._parts, self._broken = run, 0, [], [], False
        self.finished, self.finish_reason, self.error = False, None, None

    def _replace(self, record: TokenRecord) -> TextChange | None:
        """The text of the present segment is what the event says. Usually that is known."""
        before = len(self._sealed)
        if record.segment < before:  # not from a writer of ours
            return None
        is_same = record.segment == before and "".join(self._parts) == record.text and not self._broken
        while len(self._sealed) < record.segment:
            self._sealed.append(None)
        self._parts, self._broken = [record.text], False
        if is_same:
            return None
        return TextChange(self.text, replaces=True)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) else None
