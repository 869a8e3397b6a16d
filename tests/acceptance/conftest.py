from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from acceptance.api import Api
from acceptance.deployment import Deployment
from acceptance.server import MakeServer, Server
from livetape_process import LivetapeProcess


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


BOTH_MODES = {"test_semantics", "test_reference", "test_large_values", "test_zero_characters"}
"""Stories that run on everything in one process, and unchanged on everything in pieces."""

STEP_LIMIT = {"LIVETAPE_ENGINE__STEP_LIMIT": "500"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        distributed = pytest.param("distributed", marks=[pytest.mark.needs("postgres", "rabbitmq"), pytest.mark.slow])
        modes = ["embedded", distributed] if metafunc.module.__name__.rpartition(".")[2] in BOTH_MODES else ["embedded"]
        metafunc.parametrize("server", modes, indirect=True, scope="package")


@pytest.fixture(scope="package")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server | Deployment]:
    """One server for the tests that only look at it from outside."""
    folder = tmp_path_factory.mktemp("shared")
    if request.param == "distributed":
        deployment = Deployment(folder, env=STEP_LIMIT).start()
        yield deployment
        deployment.stop()
        return
    started = Server(folder / "data", blocks=True, env=STEP_LIMIT)
    started.start()
    yield started
    if started.running:
        started.stop()


@pytest.fixture
def api(server: Server | Deployment) -> Iterator[Api]:
    with Api(server.url) as client:
        yield client


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """A failed test shows what the servers printed."""
    report = yield
    if report.failed:
        for one in LivetapeProcess.live:
            report.sections.append((f"server on port {one.port}", one.output(60)))
    return report
