"""`scripts/simulate`: many seeds, or one with its trace."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from simulation.database import Shelf
from simulation.faults import ALL
from simulation.plants import PLANTS
from simulation.processes import Classes
from simulation.simulation import Outcome, Simulation
from simulation.surroundings import quiet

TRACED: Final = 60
"""Lines of the trace of a seed that fails; `--trace` shows all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when no invariant was broken."""
    with quiet():
        return _main(_options(argv))


def _main(options: argparse.Namespace) -> int:
    if options.seed is not None:
        return _one(options.seed, options.plant, trace=options.trace, about=options.about)
    shelf, faults, modes = Shelf(), Counter[str](), Counter[str]()
    failed = 0
    begun = time.perf_counter()
    for seed in range(options.start, options.start + options.seeds):
        outcome = Simulation(seed, shelf, _classes(options.plant)).run()
        faults += outcome.faults
        modes[outcome.mode] += 1
        if outcome.violations:
            failed += 1
            _tell(outcome, options.plant)
            if options.plant or failed >= options.stop_after:
                break
    took = time.perf_counter() - begun
    done = sum(modes.values())
    for kind in ALL:
        print(f"  {kind:<22} {faults[kind]:>7}{'' if faults[kind] else '  never happened'}")
    said = ", ".join(f"{mode} {count}" for mode, count in sorted(modes.items()))
    print(f"{done} seeds ({said}) in {took:.1f} s, {done / took:.1f} per second; {failed} broke an invariant")
    return 1 if failed else 0


def _one(seed: int, plant: str | None, *, trace: bool, about: Sequence[str]) -> int:
    outcome = Simulation(seed, Shelf(), _classes(plant)).run()
    if trace:
        for line in outcome.history.about(*about):
            print(line)
    print(f"seed {seed} ({outcome.mode}): {outcome.seconds:.1f} virtual seconds, history {outcome.digest}")
    print("  faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(outcome.faults.items())))
    print("  executions: " + ", ".join(f"{status} {count}" for status, count in sorted(outcome.statuses.items())))
    for complaint in outcome.complaints:
        print(f"  unhandled: {complaint}")
    for violation in outcome.violations:
        print(f"  {violation}")
    return 1 if outcome.violations else 0


def _tell(outcome: Outcome, plant: str | None) -> None:
    """Why it failed, what led to it, and how to see it again."""
    first = outcome.violations[0]
    lines = list(outcome.history.about(first.of))
    until = next((n for n, line in enumerate(lines) if " violation " in line), len(lines) - 1)
    print(f"seed {outcome.seed} ({outcome.mode}) broke an invariant")
    for line in lines[max(0, until - TRACED) : until + 1]:
        print(f"  {line[:240]}")
    for violation in outcome.violations[:5]:
        print(f"  {violation}")
    planted = "" if plant is None else f" --plant {plant}"
    print(f"  again: scripts/simulate --seed {outcome.seed}{planted} --trace")


def _classes(plant: str | None) -> Classes | None:
    return None if plant is None else PLANTS[plant]()


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description="The engine under seeded faults.")
    parser.add_argument("--seeds", type=int, default=200, metavar="N", help="how many seeds (200)")
    parser.add_argument("--from", dest="start", type=int, default=0, metavar="S", help="the first of them (0)")
    parser.add_argument("--seed", type=int, metavar="S", help="this seed alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: everything that happened")
    parser.add_argument("--about", nargs="*", default=[], metavar="WORD", help="with --trace: lines with these words")
    parser.add_argument("--plant", choices=sorted(PLANTS), metavar="BUG", help=f"one of {', '.join(sorted(PLANTS))}")
    parser.add_argument("--stop-after", type=int, default=5, metavar="N", help="stop after so many failures (5)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
