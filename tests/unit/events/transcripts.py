"""What readers were told, held against what really happened to a tape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from livetape.events.log import Position
from livetape.events.recovery import Gap, Item


@dataclass
class Truth:
    """Every event there ever was, by epoch; how far each epoch was trimmed; the epoch there is now ("": none)."""

    events: dict[str, list[bytes]] = field(default_factory=dict)
    trimmed: dict[str, int] = field(default_factory=dict)
    epoch: str = ""
    undone: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    """What was written and then lost, so that its numbers came again; by epoch."""
    may_lose_end: bool = False
    """A tape may lose its end without a word in `undone`."""

    def append(self, position: Position, payload: bytes) -> None:
        self.epoch = position.epoch
        known = self.events.setdefault(position.epoch, [])
        assert position.offset == len(known) + 1
        known.append(payload)

    def trim(self, keep_after: int) -> None:
        if self.epoch:
            self.trimmed[self.epoch] = max(self.trimmed.get(self.epoch, 0), keep_after)

    def cut(self, keep: int) -> None:
        known = self.events[self.epoch]
        self.undone.setdefault(self.epoch, []).extend(enumerate(known[keep:], keep + 1))
        del known[keep:]

    def was(self, epoch: str, offset: int, payload: bytes) -> bool:
        """Whether this was ever written there."""
        known = self.events[epoch]
        return (offset, payload) in self.undone.get(epoch, ()) or (
            offset <= len(known) and known[offset - 1] == payload
        )

    @property
    def offset(self) -> int:
        return len(self.events.get(self.epoch, ()))


def check(items: Sequence[Item], start: Position, truth: Truth) -> Position:
    """Each event once, in order, as it was written; gaps only where something was lost. Returns where it ends."""
    epoch, offset = start.epoch, start.offset
    reborn = epoch == ""
    cut = False  # the end was lost: it goes on from where the tape ended then
    for item in items:
        if isinstance(item, Gap):
            assert item.epoch in truth.events, f"a gap of an unknown epoch: {item}"
            if item.first is None:
                assert item.epoch == epoch
                assert truth.may_lose_end or truth.undone.get(epoch), f"told of a lost end that was none: {item}"
                cut = True
                continue
            if item.last is None:
                assert item.epoch != epoch, f"told of a new epoch that is the old one: {item}"
                assert item.first == offset + 1 or cut
                epoch, offset, reborn, cut = item.epoch, 0, True, False
                continue
            epoch = epoch or item.epoch
            assert item.epoch == epoch, f"{item} after {epoch} {offset}"
            assert item.first == offset + 1 or reborn or cut, f"{item} after {epoch} {offset}"
            assert item.last >= item.first
            was_lost = epoch != truth.epoch
            assert was_lost or item.last <= truth.trimmed.get(epoch, 0), f"told of a loss that was none: {item}"
            offset, reborn, cut = item.last, False, False
            continue
        if epoch == "":
            epoch = item.epoch
        assert item.epoch == epoch, f"{item} of another epoch than {epoch}, without a word"
        if cut:
            pass  # nobody knows where the tape ended then
        elif reborn and item.offset != offset + 1:
            assert item.offset - 1 <= truth.trimmed.get(epoch, 0) or epoch != truth.epoch, f"lost before {item}"
        else:
            assert item.offset == offset + 1, f"{item} after {offset}"
        assert truth.was(epoch, item.offset, item.payload), f"never written: {item}"
        offset, reborn, cut = item.offset, False, False
    return Position(epoch, offset)
