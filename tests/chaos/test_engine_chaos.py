"""The engine in pieces with random faults: a short run; `scripts/engine-chaos` runs longer and knows more faults."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from acceptance.server import PLUGIN
from chaos.engine_box import run_box
from chaos.engine_shapes import SHAPES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.serial,
    pytest.mark.needs("postgres", "rabbitmq", "redis"),
    pytest.mark.timeout(240),
]

KINDS = ("worker killed", "worker paused", "PostgreSQL restarted", "API killed")
PLANTED = Path(__file__).parent / "planted"


async def test_executions_survive_faults_at_random(tmp_path: Path) -> None:
    """CHAOS_SEED repeats a run; what the faults hit still depends on the machine's timing."""
    seed = int(os.environ.get("CHAOS_SEED") or 1)
    report = await run_box(tmp_path, seconds=8, executions=24, seed=seed, kinds=KINDS, settle_s=60, say=print)
    shown = json.dumps(report, indent=1)
    assert report["violations"] == [], f"CHAOS_SEED={seed}\n{shown}"
    # It was really done: every fault, every shape, starts that came twice, and stops. Whether a fault of these few
    # seconds meets a block that runs is luck; the long form counts it.
    assert set(report["faults"]) == set(KINDS), shown
    assert {shape.name for shape in SHAPES} | {"child", "probe"} == set(report["by_shape"]), shown
    assert sum(report["executions"].values()) >= 24 + 12, shown
    checks = report["checks"]
    assert min(checks["stopped"], checks["started_twice"]) > 0, shown
    assert checks["events_watched"] > 250, shown
    assert report["doctor"] == [], shown


async def test_a_planted_bug_is_seen(tmp_path: Path) -> None:
    """Workers whose leases run out while they work, and who write all the same."""
    planted = {"PYTHONPATH": f"{PLUGIN}:{PLANTED}", "LIVETAPE_BLOCKS": "lyingleases:blocks"}
    long = [shape for shape in SHAPES if shape.name == "long"]
    report = await run_box(
        tmp_path,
        seconds=1,
        executions=4,
        seed=2,
        kinds=(),
        shapes=long,
        settle_s=9,
        probes=False,
        workers_env=planted,
        say=print,
    )
    again = [v for v in report["violations"] if v["rule"] == 2 and "ran again" in v["text"]]
    assert again, json.dumps(report, indent=1)
