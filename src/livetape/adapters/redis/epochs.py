"""Epochs of new tapes, cheaply: most candidates are made for tapes that have one already."""

from __future__ import annotations

from typing import Final

from livetape.clock import EPOCH_ALPHABET, new_epoch

_PAIRS: Final = [a + b for a in EPOCH_ALPHABET for b in EPOCH_ALPHABET]


class Epochs:
    """As `livetape.clock.new_epoch`: six random characters, and two that count before others are drawn."""

    def __init__(self) -> None:
        self._drawn = ""
        self._next = len(_PAIRS)

    def new(self) -> str:
        """Different from all others of this object, and of any other as far as chance goes."""
        if self._next == len(_PAIRS):
            self._drawn, self._next = new_epoch()[:6], 0
        epoch = self._drawn + _PAIRS[self._next]
        self._next += 1
        return epoch
