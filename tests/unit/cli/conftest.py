"""A fake server that runs, and a way to call commands as a shell would."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn

from livetape.cli import main
from unit.cli.fake import FakeServer, Result


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(fake.app(), log_level="error", ws="websockets-sansio", lifespan="off", loop="asyncio")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve(sockets=[listener])), daemon=True)
    thread.start()
    yield fake
    running.should_exit = running.force_exit = True
    thread.join(10)
    listener.close()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Run `livetape ARGUMENTS` in an empty folder with an empty environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("LIVETAPE_URL", "LIVETAPE_TOKEN", "LIVETAPE_CONFIG", "JWT_VERIFY_KEY", "SUPABASE_JWT_SECRET"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def on(server: FakeServer, call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Commands that find the fake server by LIVETAPE_URL."""
    monkeypatch.setenv("LIVETAPE_URL", server.url)
    return call
