"""The public names of the library, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import livetape


def test_every_public_name_is_there_once() -> None:
    assert livetape.__all__ == sorted(set(livetape.__all__))
    for name in livetape.__all__:
        assert getattr(livetape, name).__name__ == name or name == "ExecutionEvent"
    assert set(livetape.__all__) <= set(dir(livetape))


def test_what_is_not_there_is_refused() -> None:
    assert not hasattr(livetape, "no_such_name")


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_event_library_loads_no_driver_and_no_framework() -> None:
    loaded = loaded_by("import livetape.events.jobs, livetape; livetape.Bus")
    forbidden = {"redis", "aio_pika", "sqlalchemy", "fastapi", "starlette", "asyncpg", "uvicorn", "click", "sqlite3"}
    assert not loaded & forbidden


def test_importing_the_package_loads_nothing() -> None:
    assert "pydantic" not in loaded_by("import livetape")
