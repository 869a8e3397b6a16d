"""What a run of a block costs. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from livetape.engine.block import Block
from livetape.engine.hooks import Costs, NodeIdentity
from livetape.engine.runner import RunStats
from livetape.observability import Metrics


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


class BlockCosts:
    """Keeps account of what blocks say that they cost, and refuses nobody: the price of each completed run is in the
    figures of its node and execution, and in the metrics. `payer` is asked and told before, and says what was taken."""

    def __init__(self, metrics: Metrics, payer: Costs | None = None) -> None:
        self._metrics = metrics
        self._payer = payer

    @property
    def has_payer(self) -> bool:
        """Whether anybody is asked and told."""
        return self._payer is not None

    async def before(self, who: NodeIdentity, block: Block[Any], inputs: dict[str, Any]) -> None:
        """Nothing is asked where nobody pays."""
        if self._payer is not None:
            await self._payer.before(who, block, inputs)

    async def after(self, who: NodeIdentity, block: Block[Any], inputs: dict[str, Any], stats: RunStats) -> int:
        """What was taken, else what the block says."""
        if self._payer is not None:
            cents = await self._payer.after(who, block, inputs, stats)
        else:
            cents = cost_of(block, inputs, stats)
        if cents:
            self._metrics.count("block_cost_cents_total", cents, block_type=block.name)
        return cents
