"""What may go wrong, how often in this seed, and how often it did."""

from __future__ import annotations

import random
from collections import Counter
from typing import Final

CRASHES: Final = ("crash_any_time", "crash_before_commit", "crash_in_commit", "crash_after_commit")
"""Deaths of a process: between two things that it does, or around a commit. `in`: the commit is rolled back.
`after`: it happened, and nobody learns it."""

PER_CALL: Final = {
    "crash_before_commit": 0.01,
    "crash_in_commit": 0.01,
    "crash_after_commit": 0.015,
    "commit_unknown": 0.02,
    "unit_run_again": 0.02,
    "call_refused": 0.02,
    "call_slow": 0.03,
    "call_stuck": 0.01,
    "bell_lost": 0.25,
    "bell_doubled": 0.25,
    "bell_late": 0.25,
    "bell_reordered": 0.3,
    "bus_lost": 0.05,
    "bus_doubled": 0.1,
    "bus_late": 0.1,
    "bus_reordered": 0.2,
    "hint_lost": 0.3,
}
"""Kinds that strike single calls and messages, with the chance of each where the seed has chosen the kind."""

AT_TIMES: Final = {
    "crash_any_time": 2.0,
    "pause": 2.0,
    "loop_hang": 1.0,
    "partition_database": 1.5,
    "partition_queue": 1.5,
    "partition_bus": 1.5,
    "black_hole": 1.5,
    "database_down": 1.0,
    "graceful_stop": 1.0,
    "queue_pause": 1.0,
}
"""Kinds that strike a process or everything at some moment, with the mean number in a history."""

IN_BLOCKS: Final = (
    "block_slow",
    "block_error",
    "block_base_exception",
    "block_exits",
    "block_kills",
    "block_in_thread",
)
"""What blocks do, chosen with the workload."""

BESIDE: Final = (
    "restart",
    "clock_skew",
    "cancel",
    "start_repeated",
    "supervisor_releases",
    "watcher_reconnects",
    "retry",
)
"""What goes on anyway and is counted."""

SEEN: Final = (
    "held_by_user",
    "held_by_graph",
    "queue_timeout",
    "run_timeout",
    "node_timeout",
    "interrupted_fails",
    "interrupted_asks",
    "fork_takes_over",
    "ran_before_its_commit",
    "transaction",
)
"""What limits, time limits, interruptions and forks came to, as the judge has seen it (`Bounds.seen`)."""

NOT_EMBEDDED: Final = frozenset(
    {"commit_unknown", "unit_run_again", "partition_database", "partition_queue", "black_hole"}
)
"""What cannot happen where the database is a file of the one process."""

ALL: Final = (*PER_CALL, *AT_TIMES, *IN_BLOCKS, *BESIDE, *SEEN)


class Faults:
    """The faults of one history. Each kind is in about half of the histories, so that each is also seen alone."""

    def __init__(self, rng: random.Random, *, without: frozenset[str] = frozenset()) -> None:
        self._rng = rng
        self.active = True
        self.counts: Counter[str] = Counter()
        self.chosen = frozenset(kind for kind in (*PER_CALL, *AT_TIMES) if rng.random() < 0.5) - without

    def strikes(self, kind: str) -> bool:
        """Whether this call has it; counted when it has."""
        if not self.active or kind not in self.chosen or self._rng.random() >= PER_CALL[kind]:
            return False
        self.counts[kind] += 1
        return True

    def moments(self, until: float) -> list[tuple[float, str]]:
        """When which of the other kinds strikes, in the order of time."""
        drawn: list[tuple[float, str]] = []
        for kind, mean in AT_TIMES.items():
            if kind in self.chosen:
                drawn += [
                    (self._rng.uniform(0.0, until), kind) for _ in range(1 + int(self._rng.expovariate(1 / mean)))
                ]
        return sorted(drawn)
