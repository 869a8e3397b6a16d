"""`livetape up` and the server inside `livetape run`, with a runtime that only waits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from livetape.errors import ConfigError, StoreError
from livetape.settings import Settings
from unit.cli.fake import GRAPH_ID, FakeServer, Result

Call = Callable[..., Result]


class Runtime(ModuleType):
    """Stands where `livetape.runtime` is."""

    def __init__(self) -> None:
        super().__init__("livetape.runtime")
        self.url = "http://127.0.0.1:1"
        self.settings: Settings | None = None
        self.server_file: Any = None
        self.drained = False
        self.breaks_after = 0.0
        self.fails: Exception | None = None
        self.when_ready: Callable[[], None] = lambda: None

    async def serve(self, settings: Settings, *, on_ready: Callable[[Any], None]) -> None:
        self.settings = settings
        if self.fails is not None:
            raise self.fails
        info = SimpleNamespace(
            url=self.url,
            ws_url="ws://127.0.0.1:1/ws",
            data_dir=settings.data_dir,
            graphs=3,
            executions=1,
            development_user=True,
            pid=os.getpid(),
        )
        on_ready(info)
        self.server_file = json.loads(settings.server_file.read_text()) if settings.server_file.exists() else None
        self.when_ready()
        try:
            await asyncio.sleep(self.breaks_after or 30)
            raise StoreError("the disk is full")
        finally:
            self.drained = True


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    fake = Runtime()
    monkeypatch.setitem(sys.modules, "livetape.runtime", fake)
    fake.when_ready = lambda: os.kill(os.getpid(), signal.SIGTERM)
    return fake


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_up_says_where_everything_is_and_drains(call: Call, runtime: Runtime, tmp_path: Path, free_port: int) -> None:
    result = call("up", "--port", str(free_port))
    assert result.code == 0
    for text in (
        "development mode, not for production",
        "Console    http://127.0.0.1:1/    (signed in as dev)",
        "REST API   http://127.0.0.1:1/api    docs at http://127.0.0.1:1/docs",
        "Live       ws://127.0.0.1:1/ws",
        "Metrics    http://127.0.0.1:1/metrics",
        "State      ./.livetape/livetape.db (SQLite, kept)",
        "Found      3 graphs, 1 execution",
        "Stop       Ctrl-C",
    ):
        assert text in result.out
    assert "\x1b" not in result.out
    assert result.err.splitlines() == [
        "stopping: letting sockets and running nodes end (again to stop at once)",
        "stopped",
    ]
    assert runtime.drained
    assert runtime.server_file == {"url": "http://127.0.0.1:1", "pid": os.getpid()}
    assert not (tmp_path / ".livetape" / "server.json").exists()


def test_interrupt_drains_too(call: Call, runtime: Runtime) -> None:
    runtime.when_ready = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert call("up", "--port", "0").code == 0
    assert runtime.drained


def test_flags_reach_the_settings(call: Call, runtime: Runtime, tmp_path: Path) -> None:
    call("up", "--host", "localhost", "--port", "0", "--data-dir", "d", "-vv")
    assert runtime.settings is not None
    assert (runtime.settings.host, runtime.settings.port) == ("localhost", 0)
    assert (runtime.settings.data_dir, runtime.settings.log_level) == (tmp_path / "d", "debug")


def test_a_port_that_is_taken(call: Call, runtime: Runtime, taken_port: int) -> None:
    result = call("up", "--port", str(taken_port), "--data-dir", "d")
    assert result.code == 3
    assert f"error[LT-E301]: port {taken_port} of 127.0.0.1 is taken" in result.err
    assert f"process {os.getpid()}" in result.err
    assert "  set by    --port" in result.err
    command = result.err.splitlines()[-1].removeprefix("  fix       ")
    assert command.startswith("livetape up --port ")
    assert command.endswith("/d")
    assert runtime.settings is None


def test_an_address_that_is_not_ours(call: Call, runtime: Runtime) -> None:
    result = call("up", "--host", "192.0.2.1")
    assert result.code == 3
    assert "cannot listen on 192.0.2.1:8420" in result.err


def test_a_data_folder_that_is_in_use(call: Call, runtime: Runtime, tmp_path: Path, taken_port: int) -> None:
    (tmp_path / ".livetape").mkdir()
    url = f"http://127.0.0.1:{taken_port}"
    (tmp_path / ".livetape" / "server.json").write_text(json.dumps({"url": url, "pid": os.getppid()}))
    result = call("up", "--port", "0")
    assert result.code == 3
    assert "error[LT-E302]" in result.err
    assert f"process {os.getppid()} serves it at {url}" in result.err


def test_a_data_folder_that_cannot_be_made(call: Call, runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = call("up", "--port", "0", "--data-dir", "file/d")
    assert result.code == 3
    assert "error[LT-E303]: cannot write to the data folder" in result.err
    assert "--data-dir" in result.err


def test_what_the_runtime_refuses_is_shown_with_its_remedy(
    call: Call, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.fails = StoreError("the database x.db cannot be opened: file is not a database", fix="restore it")
    result = call("up", "--port", "0")
    assert result.code == 3
    assert result.err == (
        "error[LT-E304]: the database x.db cannot be opened: file is not a database\n  fix       restore it\n"
    )
    runtime.fails = ConfigError("cannot load the blocks", set_by="blocks", fix="correct it")
    monkeypatch.setenv("LIVETAPE_BLOCKS", "a:b")
    assert "  set by    LIVETAPE_BLOCKS in the environment" in call("up", "--port", "0").err
    runtime.fails = ConfigError("another livetape uses it", because="process 7", fix="stop it")
    result = call("up", "--port", "0")
    assert (result.code, "  because   process 7" in result.err) == (3, True)


def test_run_without_a_server_starts_one(call: Call, runtime: Runtime, server: FakeServer) -> None:
    runtime.url = server.url
    runtime.when_ready = lambda: None
    result = call("run", GRAPH_ID, "--data-dir", "d")
    assert (result.code, result.out) == (0, "words: 2\n")
    assert "started one here" in result.err
    assert runtime.drained
    assert runtime.settings is not None
    assert (runtime.settings.host, runtime.settings.port) == ("127.0.0.1", 0)
    assert runtime.server_file is None


def test_run_without_a_server_shows_why_it_cannot_start_one(call: Call, runtime: Runtime) -> None:
    runtime.fails = ConfigError("no way", fix="another way")
    result = call("run", "x")
    assert (result.code, "error[LT-E300]: no way" in result.err) == (3, True)
    assert call("run", "x", "--detach").code == 4


def test_run_ends_with_the_server_that_it_started(call: Call, runtime: Runtime, server: FakeServer) -> None:
    runtime.url, server.ends = server.url, False
    runtime.breaks_after, runtime.when_ready = 0.5, lambda: None
    result = call("run", GRAPH_ID)
    assert result.code == 3
    assert "error[LT-E304]: the disk is full" in result.err
