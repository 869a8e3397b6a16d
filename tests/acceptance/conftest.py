from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from acceptance.api import Api
from acceptance.server import MakeServer, Server


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[MakeServer]:
    """Servers that are stopped at the end of the test, whatever happened to them."""
    made: list[Server] = []

    def make(name: str = "data", **options: Any) -> Server:
        made.append(Server(tmp_path / name, **options))
        return made[-1]

    yield make
    for server in made:
        if server.running:
            server.kill()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that only look at it from outside."""
    started = Server(
        tmp_path_factory.mktemp("shared") / "data", blocks=True, env={"LIVETAPE_ENGINE__STEP_LIMIT": "500"}
    )
    started.start()
    yield started
    if started.running:
        started.stop()


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    with Api(server.url) as client:
        yield client


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """A failed test shows what the servers printed."""
    report = yield
    if report.failed:
        for one in Server.live:
            report.sections.append((f"server on port {one.port}", one.output()))
    return report
