"""A real RabbitMQ for tests: a private node on free loopback ports, with an epmd of its own that ends with it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import support

PATIENCE_S: Final = 60.0
LIBRARY: Final = Path("/usr/lib/rabbitmq/bin")
"""The scripts themselves: the wrappers in the PATH change to another user and another home."""

ERLANG: Final = (
    "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none"
    " -rabbit dead_letter_worker_publisher_confirm_timeout 3000"
)
"""Loopback only, and no schedulers that spin while they wait: others use the machine. And where a delay ends
while the broker starts, the queue behind it may not be there yet and confirm nothing: the broker sends it again after
three seconds instead of three minutes (docs/howto/rabbitmq.md)."""


def script(name: str) -> str:
    """The path of `rabbitmq-server` or `rabbitmqctl`."""
    inside = LIBRARY / name
    if inside.exists():
        return str(inside)
    found = shutil.which(name)
    assert found is not None, "mark the test with @pytest.mark.needs('rabbitmq')"
    return found


class RabbitServer:
    """One broker. It survives `kill` and `start` with its port, its folder and its durable messages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = support.free_port()
        self._ports = support.free_port(), support.free_port()
        self._node = f"test{self.port}@localhost"
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._broker_pid = 0

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, port: int, query: str = "") -> str:
        """The same broker behind another port, for instance a proxy's."""
        return f"amqp://guest:guest@127.0.0.1:{port}/{query}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when it takes connections; five seconds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(secrets.token_hex(16))
            cookie.chmod(0o400)
        distribution, epmd = self._ports
        with (self.folder / "output.log").open("ab") as output:
            if self._epmd is None:
                # A node would start one that outlives it.
                self._epmd = subprocess.Popen(
                    ["epmd", "-port", str(epmd), "-address", "127.0.0.1"],
                    stdout=output,
                    stderr=output,
                    stdin=subprocess.DEVNULL,
                    env=self._environment(),
                )
                _until(lambda: _listens(epmd), "epmd")
            self._process = subprocess.Popen(
                [script("rabbitmq-server")],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=self._environment() | {"RABBITMQ_DIST_PORT": str(distribution)},
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                self.stop()
                text = (self.folder / "output.log").read_text(errors="replace")
                raise AssertionError(f"rabbitmq did not start (exit {ended}):\n{text[-3000:]}")
            time.sleep(0.05)
        self._broker_pid = int((self.folder / "pid").read_text())

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._ports[1]),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG,
            "ERL_CRASH_DUMP_SECONDS": "0",
        }

    def _answers(self) -> bool:
        """Whether the broker begins to speak AMQP: the listener opens last."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.5) as link:
                link.settimeout(0.5)
                link.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(link.recv(1))
        except OSError:
            return False

    def ctl(self, *words: str) -> str:
        """What `rabbitmqctl` says to this; about a second."""
        done = subprocess.run(
            [script("rabbitmqctl"), "-q", "-n", self._node, *words],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"rabbitmqctl {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def kill(self) -> None:
        """As a power cut for the broker: SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._broker_pid, signal.SIGKILL)
        self._ended()

    def pause(self) -> None:
        """It keeps its connections and answers nothing, until `resume`."""
        os.kill(self._broker_pid, signal.SIGSTOP)
        _until(self._stands_still, "the broker to stand still")

    def _stands_still(self) -> bool:
        """Every thread: on a busy machine the signal takes a moment."""
        threads = Path(f"/proc/{self._broker_pid}/task").glob("*/stat")
        return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)

    def resume(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._broker_pid, signal.SIGCONT)

    def stop(self) -> None:
        """Everything of it, the epmd too. Idempotent."""
        if self.is_running:
            self.resume()
            self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def _ended(self) -> None:
        """Wait for the script that started the broker, and take with it what the broker left behind."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        _until(lambda: not _listens(self.port), "the end of the broker")


@contextlib.contextmanager
def running(server: RabbitServer) -> Iterator[RabbitServer]:
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return True
    except OSError:
        return False


def _until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        time.sleep(0.02)
