"""Servers that take turns: all are up with their sockets, and one at a time has something to do.

The host changes its speed by 40 % within seconds, so what is compared must be measured within a second or two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import machine
from load import Load, NoFiguresError
from targets import Target

Figures = dict[str, Any]

MAX_TRIES = 3


class Seat:
    """One server with its sockets. `complete`: so many sockets must get everything; None when some do not read."""

    def __init__(self, target: Target, load: Load, complete: int | None) -> None:
        self._target = target
        self._load = load
        self._complete = complete

    def measure(self) -> Figures:
        """Publish and count.

        Raises:
            NoFiguresError: something was lost, or nothing arrived.
        """
        figures = self._load.measure()
        if self._complete is not None:
            problems = [f"{name} {figures[name]}" for name in ("lost", "closed") if figures[name]]
            if problems or not figures["deliveries"]:
                raise NoFiguresError(", ".join(problems) or "nothing was delivered")
            self._target.check(self._complete, figures)
        figures["cpu_s_per_1m"] = figures["server_cpu"] / max(1, figures["deliveries"]) * 1e6
        figures["deliveries_per_s"] = figures["deliveries"] / figures["seconds"]
        figures["server_core"] = figures["server_cpu"] / figures["seconds"]
        figures["client_core"] = figures["client_cpu"] / figures["seconds"]
        return figures


def side_by_side(seats: dict[str, Seat], turns: int) -> Iterator[tuple[str, Figures | NoFiguresError]]:
    """`turns` rounds in which each is measured once, after one that does not count. Rounds in which the host stole more
    than it may are repeated, some times. Who gives no figures is out."""
    taking = dict(seats)
    for counts in [False] + [True] * turns:
        for left in reversed(range(MAX_TRIES)):
            before = machine.cpu_times()
            measured: dict[str, Figures] = {}
            for name, seat in list(taking.items()):
                try:
                    measured[name] = seat.measure()
                except NoFiguresError as failure:
                    del taking[name]
                    yield name, failure
            steal = machine.steal_percent(before, machine.cpu_times())
            if not counts or steal <= machine.MAX_STEAL_PERCENT or not left:
                break
        if counts:
            for name, figures in measured.items():
                noisy = {"noisy": True} if steal > machine.MAX_STEAL_PERCENT else {}
                yield name, {**figures, "steal_percent": steal, **noisy}
