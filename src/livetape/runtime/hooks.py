"""What the settings add to the running of nodes."""

from __future__ import annotations

from livetape.engine.block_cost import BlockCosts
from livetape.engine.hooks import Costs, Hooks, Moderation
from livetape.observability import ErrorReporter, Metrics
from livetape.runtime.named import made_by
from livetape.settings import Settings


def open_hooks(settings: Settings, metrics: Metrics, reporter: ErrorReporter) -> Hooks:
    """Costs are kept account of in any case; nothing is moderated unless the settings name who does.

    Raises:
        ConfigError: what they name cannot be had.
    """
    moderation: Moderation | None = None
    if settings.moderation is not None:
        moderation = made_by(settings.moderation, "the moderation", "start", "output", setting="moderation")
    payer: Costs | None = None
    if settings.costs is not None:
        payer = made_by(settings.costs, "the account of costs", "before", "after", setting="costs")
    return Hooks(moderation=moderation, reporter=reporter, costs=BlockCosts(metrics, payer))
