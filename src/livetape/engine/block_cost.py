"""What a run of a block costs. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from livetape.engine.block import Block
from livetape.engine.runner import RunStats


def cost_of(block: Block[Any], inputs: Mapping[str, Any], stats: RunStats | None = None) -> int:
    """Cents, by the first of the block's costs whose filter the input matches; 0 if none does.

    `second` is counted by what the run took, `byte` by the amount `bytes` that the block counted, begun units in full.
    Without `stats`, before the run: what it costs at least.
    """
    for cost in block.costs:
        if not _matches(cost.cost_filter, inputs):
            continue
        if cost.cost_type == "run":
            return cost.cost_amount
        if stats is None:
            return 0
        amount = stats.seconds if cost.cost_type == "second" else stats.usage.get("bytes", 0)
        return math.ceil(amount) * cost.cost_amount
    return 0


def _matches(wanted: Mapping[str, Any], given: Any) -> bool:
    """Whether everything in the filter is in the input, in dictionaries within it too."""
    if not isinstance(given, Mapping):
        return False
    return all(
        _matches(value, given.get(name)) if isinstance(value, Mapping) else given.get(name) == value
        for name, value in wanted.items()
    )
