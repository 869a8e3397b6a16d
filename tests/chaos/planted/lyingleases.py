"""A planted bug, in the store of a worker that is given `LIVETAPE_BLOCKS=lyingleases:blocks`: leases are not renewed.

The worker is told that they were, so it goes on with what others take over meanwhile, and nothing that it writes is
refused. Only for the test that shows that the checker sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chaosblocks import blocks

from livetape.adapters.sql import executions
from livetape.adapters.sql.execution_rows import write_events
from livetape.store.executions import Renewal

__all__ = ["blocks"]


def _renewed(self: object, owner: str, leases: Mapping[str, int], lease_seconds: float) -> Renewal:
    return Renewal(held=frozenset(leases), cancelled=frozenset())


def _unfenced(*args: Any, fenced: bool, **kwargs: Any) -> Any:
    kwargs.pop("lease_no", None)
    return write_events(*args, fenced=False, **kwargs)


for where, name, instead in (
    (executions.SqlExecutionStore, "renew", _renewed),
    (executions, "write_events", _unfenced),
):
    setattr(where, name, instead)
