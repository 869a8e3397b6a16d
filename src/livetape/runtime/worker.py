"""A worker alone: it runs the executions of a PostgreSQL that it shares with others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from livetape.runtime.engine import Engine, open_engine
from livetape.runtime.error_hook import error_hook
from livetape.runtime.worker_status import told_status
from livetape.settings import Settings


async def serve_worker(
    settings: Settings,
    *,
    name: str,
    on_ready: Callable[[], None],
    label: str | None = None,
    status: Path | None = None,
) -> None:
    """Run executions until cancelled, then hand back what is not finished. `name`, `label`: see `open_engine`.

    `status`: where its supervisor asks how it is (`told_status`).

    Raises:
        ConfigError, StoreError: as `open_engine`.
    """
    async with AsyncExitStack() as stack:
        reporter = stack.enter_context(error_hook(settings))
        engine = await stack.enter_async_context(open_engine(settings, name=name, label=label, reporter=reporter))
        if status is not None:
            await stack.enter_async_context(
                told_status(status, partial(_missing, engine), lambda: engine.render_metrics()[0])
            )
        on_ready()
        await engine.failed


async def _missing(engine: Engine) -> list[str]:
    """What is not up: whoever takes no doorbells now does not work."""
    return await engine.missing() + engine.degraded()
