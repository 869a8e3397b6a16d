"""A `livetape` command as a process of its own: started, told to stop, killed, always ended."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import support

COMMAND = str(Path(sys.executable).with_name("livetape"))
START_S = 30.0
STOP_S = 30.0

T = TypeVar("T")


class ServerError(AssertionError):
    """The process did not do what the test needs; its output is in the message."""


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


def clean_environment() -> dict[str, str]:
    """Our own without settings of livetape, proxies and colours."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("LIVETAPE_") and not k.lower().endswith("_proxy")}
    env.pop("PYTEST_CURRENT_TEST", None)
    return env | {"NO_COLOR": "1"}


class LivetapeProcess:
    """`livetape *words --port <port>`, by default on a free one; `environment` holds what it is told beside.

    It keeps its port over `kill` and `start`. Nothing that it has started outlives it: its session is ours alone.
    """

    live: ClassVar[list[LivetapeProcess]] = []

    def __init__(
        self,
        folder: Path,
        *words: str,
        environment: Mapping[str, str] | None = None,
        port: int | None = None,
        command: Sequence[str] = (COMMAND,),
    ) -> None:
        self.port = port or support.free_port()
        self.folder = folder
        self.words = words
        self.environment = dict(environment or {})
        self.command = list(command)
        self.log_path = folder / f"{'-'.join(words[:2])}-{self.port}.log"
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

    # ---- life ------------------------------------------------------------------------------------------------------

    def arguments(self) -> list[str]:
        """What stands after the command."""
        return [*self.words, "--port", str(self.port)]

    def spawn(self) -> None:
        """Start the process without waiting for it."""
        assert not self.running
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.starts += 1
        with self.log_path.open("ab") as log:
            log.write(f"--- start {self.starts}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [*self.command, *self.arguments()],
                env=clean_environment() | self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        LivetapeProcess.live.append(self)

    def start(self, timeout: float = START_S) -> Self:
        """Start it and wait until it is ready."""
        began = time.monotonic()
        self.spawn()
        self.wait_ready(timeout)
        self.ready_seconds = time.monotonic() - began
        return self

    def wait_ready(self, timeout: float = START_S) -> None:
        def ready() -> bool:
            if not self.running:
                assert self.process is not None
                raise ServerError(f"it ended with {self.process.returncode} before it was ready")
            return self.is_ready()

        try:
            poll("it is ready", ready, timeout=timeout)
        except ServerError as error:
            self.kill()
            raise ServerError(f"{error}\n{self.output(60)}") from None

    def is_ready(self) -> bool:
        return self.status("/readyz") == 200

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def wait(self, timeout: float = STOP_S) -> int:
        """Until it has ended by itself; its exit code."""
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self, timeout: float = STOP_S) -> int:
        """SIGTERM, as a deployment does, also to one that is paused; its exit code. Idempotent."""
        if self.process is None:
            return 0
        if self.running:
            self.signal(signal.SIGTERM)
            self.resume()
        try:
            code = self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(f"SIGTERM did not end it within {timeout:g} s\n{self.output(60)}") from None
        self._forget()
        return code

    def kill(self) -> None:
        """SIGKILL to the process, as a machine that dies would."""
        if self.running:
            self.signal(signal.SIGKILL)
        self.wait()
        self._forget()

    def end(self) -> None:
        """Whatever is left of it. Idempotent."""
        if self.process is not None:
            self.kill()

    def _forget(self) -> None:
        if self in LivetapeProcess.live:
            LivetapeProcess.live.remove(self)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it left behind

    # ---- what can be seen of it ------------------------------------------------------------------------------------

    def output(self, lines: int | None = None) -> str:
        """What it printed, or the last lines of it."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else "(no output)"
        return text if lines is None else "\n".join(text.splitlines()[-lines:])

    def status(self, path: str) -> int | None:
        """Of GET. None: it does not answer."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with closing(link):
            try:
                link.request("GET", path)
                return link.getresponse().status
            except (OSError, http.client.HTTPException):
                return None

    def text(self, path: str) -> str:
        """What GET is answered with."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with closing(link):
            link.request("GET", path)
            return link.getresponse().read().decode()

    def wait_for(self, path: str, status: int, timeout: float = 20.0) -> None:
        """Until this path answers so."""

        def answered() -> bool:
            assert self.running, f"it ended\n{self.output(60)}"
            return self.status(path) == status

        poll(f"GET {path} is {status}\n{self.output(60)}", answered, timeout=timeout)

    def workers(self) -> set[int]:
        """Its child processes."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return {int(pid) for pid in children.split()}

    def facts(self) -> dict[str, Any]:
        """What the kernel knows of the process."""
        return dict(
            line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if ":" in line
        )


@contextmanager
def ending(*processes: LivetapeProcess) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.end()
