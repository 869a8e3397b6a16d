"""Random faults with the chain test: a short run of each kind; `scripts/gateway-chaos` runs longer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chaos.gateway_box import run_box

pytestmark = [pytest.mark.slow, pytest.mark.heavy, pytest.mark.needs("redis"), pytest.mark.timeout(120)]


@pytest.mark.parametrize("durable", [True, False])
async def test_the_chain_holds_over_faults_at_random(tmp_path: Path, durable: bool) -> None:
    report = await run_box(tmp_path, seconds=25, seed=1, durable=durable, sockets=120, say=print)
    assert report["problems"] == [], json.dumps(report, indent=1)
    assert sum(report["faults"].values()) >= 4
    checks = report["checks"]
    assert checks["watchers"] == 120
    assert checks["windows with events"] == sum(report["faults"].values())
    assert checks["events"] > 120 * 50
    if durable:
        assert (checks["hashes"], checks["losses told"]) == (120, 0)
