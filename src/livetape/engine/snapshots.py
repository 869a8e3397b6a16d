"""When a node execution that gives many outputs tells its whole state again. Pure.

A snapshot carries all outputs so far; one per output would cost O(k²). Rule (execution contract, "Node snapshots"):
one for each of the first 8 outputs, then one whenever their number has grown by an eighth, never two within 100 ms,
always one with the terminal status (which is not this module's business).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

EACH_OF_FIRST: Final = 8
GROWTH: Final = 8
INTERVAL_S: Final = 0.1


@dataclass(slots=True)
class Snapshots:
    """The pace of one node execution. `told` outputs were in the last snapshot, at `at` (monotonic seconds)."""

    at: float
    told: int = 0

    def due_at(self, outputs: int) -> float | None:
        """When the next snapshot is due with this many outputs; None while there is no need of one."""
        if outputs <= self.told:
            return None
        if outputs > EACH_OF_FIRST and outputs < self.told + max(1, self.told // GROWTH):
            return None
        return self.at + INTERVAL_S

    def tell(self, outputs: int, now: float) -> None:
        """A snapshot with this many outputs was made."""
        self.told, self.at = outputs, now
