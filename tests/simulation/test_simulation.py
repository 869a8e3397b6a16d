"""Seeds on production code, and what makes a seed worth something: it repeats, and it finds what is planted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from simulation.__main__ import main
from simulation.database import Shelf
from simulation.faults import ALL
from simulation.plants import EXPECTED, PLANTS
from simulation.simulation import Outcome, Simulation
from simulation.surroundings import quiet
from support import ROOT

SEEDS = 100
WITHIN = 200


@pytest.fixture(scope="module")
def shelf() -> Iterator[Shelf]:
    with quiet():
        shelf = Shelf()
        yield shelf
        shelf.close()


def run(seed: int, shelf: Shelf) -> Outcome:
    return Simulation(seed, shelf).run()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_seeds_break_no_invariant(shelf: Shelf) -> None:
    faults: Counter[str] = Counter()
    for seed in range(SEEDS):
        outcome = run(seed, shelf)
        said = "\n".join(map(str, outcome.violations))
        assert not outcome.violations, f"scripts/simulate --seed {seed} --trace\n{said}"
        faults += outcome.faults
    assert not [kind for kind in ALL if not faults[kind]], "a kind of fault never happened"


@pytest.mark.parametrize("seed", [3, 4, 11])
def test_the_same_seed_is_the_same_history(seed: int, shelf: Shelf) -> None:
    first, again = run(seed, shelf), run(seed, shelf)
    assert first.digest == again.digest
    assert first.history.lines == again.history.lines
    assert run(seed + 1, shelf).digest != first.digest


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 5, 14])
def test_looks_that_are_not_made_again_would_change_nothing(seed: int, shelf: Shelf) -> None:
    every = Shelf(remembers=False)
    assert run(seed, shelf).history.lines == run(seed, every).history.lines
    every.close()


@pytest.mark.slow
def test_the_same_seed_is_the_same_history_in_another_process(shelf: Shelf) -> None:
    said = {
        subprocess.run(
            [sys.executable, "-m", "simulation", "--seed", "7"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()[0]
        for hash_seed in ("1", "2")
    }
    assert len(said) == 1
    assert run(7, shelf).digest in said.pop()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_a_planted_bug_is_found(plant: str, shelf: Shelf) -> None:
    for seed in range(WITHIN):
        outcome = Simulation(seed, shelf, PLANTS[plant]()).run()
        if any(violation.invariant in EXPECTED[plant] for violation in outcome.violations):
            return
    pytest.fail(f"{plant} was not found in {WITHIN} seeds")


def test_a_failing_seed_says_how_to_see_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "20", "--plant", "event-outside-the-commit"]) == 1
    said = capsys.readouterr().out
    again = next(line for line in said.splitlines() if "again: scripts/simulate" in line)
    assert "--plant event-outside-the-commit --trace" in again
    seed = again.split("--seed ")[1].split()[0]
    assert main(["--seed", seed, "--plant", "event-outside-the-commit", "--trace"]) == 1
    assert "invariant 4" in capsys.readouterr().out
