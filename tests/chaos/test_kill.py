"""The server is killed with SIGKILL at random instants, and nothing is lost, doubled or out of order."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from chaos.box import run_box

RUNS = int(os.environ.get("CHAOS_RUNS", "20"))
KILLED_MORE = 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_at_random_instants(tmp_path: Path) -> None:
    """CHAOS_SEED repeats a run; what the kills hit still depends on the machine's timing."""
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"CHAOS_SEED={seed}")
    report = run_box(tmp_path, runs=RUNS, seed=seed, killed_more=KILLED_MORE, say=print)
    artefact = os.environ.get("CHAOS_REPORT")
    if artefact:
        Path(artefact).write_text(json.dumps(report, indent=1) + "\n")
    assert report["problems"] == [], f"CHAOS_SEED={seed}"
    # It was really done: every kill, and every check of every run.
    faults = dict(report["faults"])
    faults.pop("kill while it started", None)
    assert sum(faults.values()) == RUNS + 2 * min(KILLED_MORE, RUNS)
    assert report["faults"]["kill while it ran"] > 0
    assert all(n >= RUNS for name, n in report["checks"].items() if name != "no work of nobody")
