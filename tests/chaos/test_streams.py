"""Job streams over the deaths of Redis: a short run of each kind; `scripts/stream-chaos` runs longer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chaos.streams import run_box

pytestmark = [pytest.mark.slow, pytest.mark.needs("redis"), pytest.mark.timeout(240)]


def test_nothing_is_lost_or_doubled_over_five_deaths(tmp_path: Path) -> None:
    report = run_box(tmp_path, events=6000, kills=5, seed=1)
    assert report["problems"] == [], json.dumps(report, indent=1)
    assert len(report["kills"]) == 5
    assert report["acknowledged"] == 6000
    assert report["new_epochs_told"] == 0
    assert report["checks"]["transcripts"] == 6


def test_without_persistence_the_loss_is_told(tmp_path: Path) -> None:
    report = run_box(tmp_path, events=6000, kills=5, seed=2, durable=False)
    assert report["problems"] == [], json.dumps(report, indent=1)
    assert report["new_epochs_told"] >= 6, "each follower was told at least once"
    assert report["checks"]["transcripts"] == 6
