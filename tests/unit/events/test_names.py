"""The public names of the event library, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from livetape import events

FORBIDDEN = {"redis", "hiredis", "celery", "cryptography", "sqlite3", "sqlalchemy", "fastapi", "starlette", "click"}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_every_public_name_is_there_once() -> None:
    assert events.__all__ == sorted(set(events.__all__))
    assert set(events.__all__) == set(events._HOME) <= set(dir(events))
    for name in events.__all__:
        assert getattr(events, name).__name__ == name or name == "ExecutionEvent"


def test_what_is_not_there_is_refused() -> None:
    assert not hasattr(events, "no_such_name")


@pytest.mark.parametrize(
    "statement",
    [
        "import livetape.events",
        "from livetape.events import AsyncRedisExecutionEventBus, EventBus, RedisStreamPublisher, JobReader",
        "import livetape.events.buses, livetape.events.sync; livetape.events.buses.RedisEventBus",
    ],
)
def test_the_library_loads_no_driver(statement: str) -> None:
    assert not loaded_by(statement) & FORBIDDEN


def test_importing_the_package_loads_nothing() -> None:
    assert "pydantic" not in loaded_by("import livetape.events")
    assert "asyncio" not in loaded_by("import livetape.events")
