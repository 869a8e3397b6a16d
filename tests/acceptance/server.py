"""A livetape server as a real process of its own, on a loopback port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import httpx2

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("livetape"))
PLUGIN = ROOT / "tests" / "chaos" / "plugin"
DEV_USER = "3e53486c-cf57-477e-ba2a-cb02dc828e1a"

T = TypeVar("T")


class ServerError(AssertionError):
    """The server did not do what the test needs; its output is in the message."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def poll(what: str, check: Callable[[], T | None], *, timeout: float = 20, every: float = 0.01) -> T:
    """Ask until the answer is not None or False. For things in other processes, which cannot wake us."""
    deadline = time.monotonic() + timeout
    while True:
        answer = check()
        if answer is not None and answer is not False:
            return answer
        if time.monotonic() > deadline:
            raise ServerError(f"not within {timeout:g} s: {what}")
        time.sleep(every)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without settings of livetape or proxies, and the blocks for tests on the path."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("LIVETAPE_") and not k.lower().endswith("_proxy")}
    env["PYTHONPATH"] = str(PLUGIN)
    env["NO_COLOR"] = "1"
    env.pop("PYTEST_CURRENT_TEST", None)
    return env | dict(extra or {})


def cli(
    *args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run one `livetape` command to its end."""
    return subprocess.run(
        [COMMAND, *args],
        env=environment(env),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )


class Server:
    """`livetape up` on one data folder and one port. May be stopped, killed and started again."""

    live: ClassVar[list[Server]] = []

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        blocks: bool = False,
        command: Sequence[str] = (COMMAND,),
    ) -> None:
        self.data_dir = data_dir
        self.port = port or free_port()
        self.env = dict(env or {})
        if blocks:
            self.env["LIVETAPE_BLOCKS"] = "chaosblocks:blocks"
        self.command = list(command)
        self.log_path = data_dir.with_name(data_dir.name + ".log")
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.ready_seconds = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def spawn(self) -> None:
        """Start the process without waiting for it."""
        assert not self.running
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        arguments = ["up", "--host", "127.0.0.1", "--port", str(self.port), "--data-dir", str(self.data_dir)]
        with self.log_path.open("ab") as log:
            log.write(f"--- start {self.starts + 1}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [*self.command, *arguments],
                env=environment(self.env),
                cwd=self.log_path.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.starts += 1
        Server.live.append(self)

    def start(self, timeout: float = 30) -> Self:
        """Start it and wait until it says that it is ready."""
        began = time.monotonic()
        self.spawn()
        with httpx2.Client(base_url=self.url, trust_env=False, timeout=5) as http:

            def ready() -> bool:
                if not self.running:
                    assert self.process is not None
                    raise ServerError(f"it ended with {self.process.returncode} before it was ready\n{self.output()}")
                try:
                    return http.get("/readyz").status_code == 200
                except httpx2.HTTPError:
                    return False

            try:
                poll("GET /readyz is 200", ready, timeout=timeout)
            except ServerError as error:
                self.kill()
                raise ServerError(f"{error}\n{self.output()}") from None
        self.ready_seconds = time.monotonic() - began
        return self

    def stop(self, timeout: float = 20) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        if self.running:
            os.kill(self.pid, signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(f"SIGTERM did not end it within {timeout:g} s\n{self.output()}") from None
        self._forget()
        return code

    def kill(self) -> None:
        """SIGKILL to the process, as a machine that dies would."""
        assert self.process is not None
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait(10)
        self._forget()

    def _forget(self) -> None:
        if self in Server.live:
            Server.live.remove(self)
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what it left behind: its session is ours alone

    def output(self, lines: int = 60) -> str:
        """The last lines of what it printed."""
        try:
            text = self.log_path.read_text(errors="replace")
        except FileNotFoundError:
            return "(no output)"
        return "\n".join(text.splitlines()[-lines:])

    def facts(self) -> dict[str, Any]:
        """What the kernel knows of the process."""
        return dict(
            line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if ":" in line
        )


MakeServer: TypeAlias = Callable[..., Server]
