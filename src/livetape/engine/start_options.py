"""How an execution is to be started. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StartOptions:
    """How to start. Higher `priority` goes first. `dry_run`: nothing with effects is run. `masks` are inputs by node,
    in place of what the nodes have."""

    priority: int = 0
    dry_run: bool = False
    masks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
