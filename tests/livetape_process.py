"""A `livetape` command as a process of its own: started, told to stop, killed, always ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2

import support

COMMAND = str(Path(sys.executable).with_name("livetape"))
START_S = 30.0
STOP_S = 30.0


def until(true: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
    """For things of other processes, which cannot wake us."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.02)


class LivetapeProcess:
    """`livetape *words --port <free>`; `environment` holds what it is told beside."""

    def __init__(self, folder: Path, *words: str, environment: Mapping[str, str]) -> None:
        self.port = support.free_port()
        self.folder = folder
        self.words = words
        self.environment = dict(environment)
        self.log = folder / f"{'-'.join(words[:2])}-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None

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

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def spawn(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [COMMAND, *self.words, "--port", str(self.port)],
                env={**os.environ, "NO_COLOR": "1", **self.environment},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def start(self, path: str = "/readyz") -> None:
        """Returns when this path answers 200."""
        self.spawn()
        self.wait_for(path, 200, START_S)

    def status(self, path: str) -> int | None:
        """None: it does not answer."""
        try:
            return httpx2.get(self.url + path, timeout=5, trust_env=False).status_code
        except httpx2.HTTPError:
            return None

    def wait_for(self, path: str, status: int | None, timeout: float = 20.0) -> None:
        def answered() -> bool:
            assert self.process is not None
            if status is not None:
                assert self.process.poll() is None, f"it ended with {self.process.returncode}\n{self.output()}"
            return self.status(path) == status

        until(answered, f"GET {path} is {status}\n{self.output()}", timeout)

    def workers(self) -> set[int]:
        """Its child processes."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return {int(pid) for pid in children.split()}

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(STOP_S)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        """Whatever is left of it."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_S)


@contextmanager
def ending(*processes: LivetapeProcess) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            process.end()
