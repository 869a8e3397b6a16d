"""Settings for every test: a clean environment, repeatable random numbers, no silent skips in CI."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import hypothesis
import pytest

import support
from postgres_server import PostgresServer
from postgres_server import running as running_postgres
from rabbit import RabbitServer
from rabbit import running as running_rabbit
from servers import Flavour, RedisServer, cluster, running
from virtual_time import VirtualTimeLoop

CI = os.environ.get("CI", "") in {"true", "1"}

# The tests with their assertions rewritten are kept, also where Python is told to keep no bytecode: making them anew is
# most of what collecting costs, and every worker of every part does it.
sys.dont_write_bytecode = False

# Settings of the developer's own shell must not reach a test: ours, the older names read as a fallback, and colours.
PRIVATE = re.compile(
    r"(LIVETAPE|REDIS|RABBITMQ|DATABASE|DB|JWT|SUPABASE)_\w+|DATABASE_URL|NO_COLOR|FORCE_COLOR|CLICOLOR\w*|COLUMNS|LINES"
)
for name in [name for name in os.environ if PRIVATE.fullmatch(name)]:
    del os.environ[name]

# The machine is shared and its speed varies: a slow example is no failure, a wrong one is.
UNHURRIED = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile(
    "ci", derandomize=True, print_blob=True, deadline=None, suppress_health_check=UNHURRIED
)
hypothesis.settings.register_profile("dev", print_blob=True, deadline=None, suppress_health_check=UNHURRIED)
hypothesis.settings.load_profile("ci" if CI else "dev")

PARTS = {"serial": "alone", "heavy": "pairs", "browser": "alone"}
"""Mark -> the part of `scripts/test` that its tests are in. All others are in "shared"."""

LONG_S = 180


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part",
        choices=("all", "shared", *sorted(set(PARTS.values()))),
        default="all",
        help=f"only the tests of one part: {', '.join(f'{part} (marked {mark})' for mark, part in PARTS.items())}",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # not in a worker of pytest-xdist: they report to this process
        config.pluginmanager.register(Skips(CI, (support.ROOT / "tests" / "skips.txt").read_text()), "livetape-skips")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files without a test of a small part are not even imported for it: importing all of them is most of its time."""
    part = config.getoption("--part")
    if part in ("all", "shared") or collection_path.suffix != ".py":
        return None
    return True if part not in _parts_named(collection_path) else None


@cache
def _parts_named(file: Path) -> frozenset[str]:
    text = file.read_text("utf-8")
    return frozenset(part for mark, part in PARTS.items() if f"mark.{mark}" in text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part = config.getoption("--part")
    if part == "all":
        return
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        belongs = _part_of(item)
        if belongs != "shared" and belongs not in _parts_named(item.path):
            raise pytest.UsageError(f"{item.nodeid} is in the part {belongs!r}, but its file does not name the mark")
        (kept if belongs == part else left).append(item)
    items[:] = sorted(kept, key=_is_quick)
    if left:
        config.hook.pytest_deselected(items=left)


def _part_of(item: pytest.Item) -> str:
    return next((part for mark, part in PARTS.items() if item.get_closest_marker(mark)), "shared")


def _is_quick(item: pytest.Item) -> bool:
    """The others go first, so that none of them is left to one worker while the rest has nothing to do."""
    patience = item.get_closest_marker("timeout")
    return patience is None or patience.args[0] < LONG_S


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("virtual_time"):
        return {"virtual": VirtualTimeLoop}
    return {"real": asyncio.new_event_loop}


def pytest_runtest_setup(item: pytest.Item) -> None:
    names = [name for mark in item.iter_markers("needs") for name in mark.args]
    if item.get_closest_marker("browser"):
        names.append("chromium")
    known = support.services()
    for name in names:
        if known[name].path is None:
            if CI:
                pytest.fail(known[name].remedy, pytrace=False)
            pytest.skip(known[name].remedy)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    seed = config.getoption("randomly_seed", None)
    if seed is not None and (terminalreporter.stats.get("failed") or terminalreporter.stats.get("error")):
        terminalreporter.write_line(f"the same order and random numbers again: scripts/test --randomly-seed={seed}")


class Skips:
    """Fails a run in CI whose skips are not all on the list; elsewhere it only keeps count."""

    def __init__(self, refuse: bool, allowed: str) -> None:
        self.refuse = refuse
        self.allowed = [
            re.compile(re.escape(line.partition(" # ")[0].strip()).replace(r"\*", ".*"))
            for line in allowed.splitlines()
            if line.strip() and not line.startswith("#")
        ]
        self.unexpected: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.look_at(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.look_at(report)

    def look_at(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        if not any(pattern.fullmatch(report.nodeid) for pattern in self.allowed):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            self.unexpected[report.nodeid] = str(reason)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refuse and self.unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.refuse and self.unexpected:
            terminalreporter.section("skips that tests/skips.txt does not allow in CI", red=True)
            for nodeid, reason in sorted(self.unexpected.items()):
                terminalreporter.write_line(f"{nodeid}: {reason}")


@pytest.fixture
def free_port() -> int:
    return support.free_port()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder of its own for one server; it does not exist yet."""
    return tmp_path / "livetape-data"


@pytest.fixture
def chromium() -> str:
    """The path of the browser, for tests marked `browser`."""
    path = support.services()["chromium"].path
    assert path is not None, "mark the test with @pytest.mark.browser"
    return path


class RedisServers:
    """The servers that tests share: one of each kind, started when the first test asks for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._started: dict[Flavour, RedisServer] = {}
        self._clusters: dict[Flavour, list[RedisServer]] = {}
        self._numbers = itertools.count(1)

    def get(self, flavour: Flavour) -> RedisServer:
        if flavour not in self._started:
            server = RedisServer(flavour, self._folder / flavour)
            self._started[flavour] = self._stack.enter_context(running(server))
        return self._started[flavour]

    def cluster(self, flavour: Flavour) -> list[RedisServer]:
        if flavour not in self._clusters:
            self._clusters[flavour] = self._stack.enter_context(cluster(flavour, self._folder / f"{flavour}-cluster"))
        return self._clusters[flavour]

    def new_db(self) -> int:
        """The number of a database that no test has used."""
        return next(self._numbers)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="session")
def redis_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServers]:
    servers = RedisServers(tmp_path_factory.mktemp("redis"))
    yield servers
    servers.close()


@pytest.fixture(params=[pytest.param("redis", marks=pytest.mark.needs("redis")), "valkey"])
def redis_server(request: pytest.FixtureRequest, redis_servers: RedisServers) -> RedisServer:
    """A running server that other tests use too: once Redis, once Valkey. Do not kill it, do not flush it."""
    return redis_servers.get(request.param)


@pytest.fixture
def redis_url(redis_server: RedisServer, redis_servers: RedisServers) -> str:
    """The URL of an empty database. Channels are not per database: name them for the test, or end what listens."""
    return redis_server.url(redis_servers.new_db())


@pytest.fixture
def own_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, which it may kill, pause and start again."""
    with running(RedisServer("redis", tmp_path / "redis", **getattr(request, "param", {}))) as server:
        yield server


@pytest.fixture
def redis_cluster(redis_servers: RedisServers) -> list[RedisServer]:
    """Three masters that other tests use too."""
    return redis_servers.cluster("redis")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running server that other tests use too. Mark the test with needs("postgres"); do not stop it."""
    with running_postgres(PostgresServer()) as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of an empty database of the test's own."""
    return postgres_server.new_database()


@pytest.fixture
def own_postgres(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A server of the test's own, which it may stop, kill, pause and start again."""
    with running_postgres(PostgresServer(**getattr(request, "param", {}))) as server:
        yield server


@pytest.fixture(scope="session")
def rabbit_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """A running broker that other tests use too; names begin with a prefix of the test's own. Mark the test with
    needs("rabbitmq"); do not stop it."""
    with running_rabbit(RabbitServer(tmp_path_factory.mktemp("rabbitmq"))) as server:
        yield server


@pytest.fixture
def own_rabbit(tmp_path: Path) -> Iterator[RabbitServer]:
    """A broker of the test's own, which it may kill, pause and start again. Six seconds."""
    with running_rabbit(RabbitServer(tmp_path / "rabbitmq")) as server:
        yield server
