"""What a process does not need it does not import: that is most of the time, and half of the memory, of a start."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from livetape_process import COMMAND, LivetapeProcess, clean_environment, ending, poll
from servers import RedisServer, running

TOLD = {"PYTHONPROFILEIMPORTTIME": "1"}
"""Python says of every module that it was imported."""

KEY = "k" * 48

pytestmark = pytest.mark.slow

SERVERS = ("fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "asyncpg", "redis", "prometheus_client")
OURS = ("runtime", "engine", "store", "gateway", "api", "events", "auth", "adapters")


def imported(said: str) -> set[str]:
    """Every module that was imported, and the packages that it is in."""
    names = {line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")}
    assert "livetape.cli.app" in names, "Python told nothing of its imports"
    return names | {name.rpartition(".")[0] for name in names if "." in name}


@pytest.fixture
def bus_url(tmp_path: Path) -> Iterator[str]:
    with running(RedisServer("valkey", tmp_path / "redis")) as server:
        yield server.url()


@pytest.mark.parametrize(
    "words", [["graphs", "list"], ["executions", "list"], ["tail", "01"], ["run", "x", "--detach"]]
)
def test_a_command_that_asks_a_server_loads_nothing_of_servers(words: list[str], free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"
    asked = subprocess.run(
        [COMMAND, *words, "--url", url], env=clean_environment() | TOLD, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 4, asked.stderr[-2000:]  # it came so far as to ask
    parts = imported(asked.stderr)
    assert parts & {*SERVERS, *(f"livetape.{part}" for part in OURS), "pydantic", "jwt", "rich", "jinja2"} == set()


def test_so_does_one_that_finds_the_server_by_its_data_folder(tmp_path: Path) -> None:
    asked = subprocess.run(
        [COMMAND, "graphs", "list"],
        cwd=tmp_path,
        env=clean_environment() | TOLD,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 4, asked.stderr[-2000:]
    assert imported(asked.stderr) & {*SERVERS, *(f"livetape.{part}" for part in OURS), "pydantic"} == set()


def test_a_gateway_loads_no_engine_and_no_database(tmp_path: Path, bus_url: str) -> None:
    told = TOLD | {"LIVETAPE_BUS": bus_url, "LIVETAPE_JWT_VERIFY_KEY": KEY}
    with ending(gateway := LivetapeProcess(tmp_path, "serve", "gateway", environment=told)):
        gateway.start()
        parts = imported(gateway.output())
    assert parts & {"sqlalchemy", "alembic", "asyncpg", "sqlite3", "fastapi", "jinja2", "rich", "httpx2"} == set()
    assert parts.isdisjoint(
        {"livetape.engine", "livetape.adapters.sql", "livetape.adapters.sqlite", "livetape.api.app"}
    )
    assert "livetape.runtime.engine" not in parts


@pytest.mark.needs("postgres")
def test_a_worker_loads_no_interface(tmp_path: Path, bus_url: str, postgres_url: str) -> None:
    told = TOLD | {"LIVETAPE_BUS": bus_url, "LIVETAPE_DATABASE": postgres_url}
    with ending(worker := Worker(tmp_path, "serve", "worker", environment=told)):
        worker.spawn()
        poll("the worker says where it works", lambda: "Stop " in worker.output(), timeout=60)
        parts = imported(worker.output())
    assert "livetape.runtime.engine" in parts
    assert parts & {"fastapi", "starlette", "uvicorn", "websockets", "jwt", "cryptography.hazmat", "rich"} == set()
    assert parts & {"livetape.gateway", "livetape.api", "livetape.auth", "livetape.console"} == set()


class Worker(LivetapeProcess):
    """It listens nowhere."""

    def arguments(self) -> list[str]:
        return [*self.words]
