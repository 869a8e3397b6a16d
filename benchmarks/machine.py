"""Facts of the machine that figures were measured on, and whether it was quiet meanwhile."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
MAX_STEAL_PERCENT = 3.0
MAX_TRIES = 15


def cpu_times() -> list[int]:
    """user nice system idle iowait irq softirq steal … of all processors, in ticks."""
    return [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def steal_percent(before: list[int], after: list[int]) -> float:
    """Time that the host took away, of all time between the two."""
    spent = [b - a for a, b in zip(before, after, strict=True)]
    return 100 * spent[7] / max(1, sum(spent))


def busy_percent(before: list[int], after: list[int]) -> float:
    spent = [b - a for a, b in zip(before, after, strict=True)]
    return 100 * (sum(spent) - spent[3] - spent[4]) / max(1, sum(spent))


@dataclass(frozen=True)
class Sample(Generic[T]):
    value: T
    steal: float
    busy: float


@dataclass(frozen=True)
class Samples(Generic[T]):
    """The runs that count. `noisy`: too many were disturbed, so these are recorded as they are."""

    runs: list[Sample[T]]
    discarded: int
    noisy: bool

    @property
    def values(self) -> list[T]:
        return [run.value for run in self.runs]

    def facts(self) -> dict[str, Any]:
        return {
            "runs": len(self.runs),
            "discarded": self.discarded,
            "noisy": self.noisy,
            "steal_percent_max": round(max(run.steal for run in self.runs), 2),
        }


def sample(measure: Callable[[], T], *, runs: int = 5) -> Samples[T]:
    """Measure until enough runs had no more than 3 % steal; after 15 tries take the quietest."""
    good: list[Sample[T]] = []
    bad: list[Sample[T]] = []
    while len(good) < runs and len(good) + len(bad) < MAX_TRIES:
        before = cpu_times()
        value = measure()
        after = cpu_times()
        one = Sample(value, steal_percent(before, after), busy_percent(before, after))
        (good if one.steal <= MAX_STEAL_PERCENT else bad).append(one)
    noisy = len(good) < runs
    if noisy:
        good += sorted(bad, key=lambda run: run.steal)[: runs - len(good)]
    return Samples(good, len(bad), noisy)


def facts() -> dict[str, Any]:
    """Written beside every figure."""
    models = [x.partition(":")[2].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run(
        [*git, "rev-parse", "--verify", "-q", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "commit": commit or None,
        "uncommitted_changes": bool(changed.strip()),
        "cpus": os.cpu_count(),
        "cpu_model": models[0] if models else None,
        "memory_mib": int(memory) // 1024,
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "sqlite": sqlite3.sqlite_version,
        "load_average": os.getloadavg()[0],
    }
