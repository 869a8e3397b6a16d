"""`livetape serve gateway` as a real process: on a free port, killed, paused or told to stop, always ended."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import support

START_S = 30.0
TERM_S = 30.0
_SAMPLE = re.compile(r"^(\w+)(\{[^}]*\})? (\S+)$", re.MULTILINE)


class GatewayProcess:
    """One gateway. It keeps its port and its options over `kill` and `start`.

    `options` are the settings `gateway.*`. Without `key` authentication is off: everybody is the default user.
    """

    def __init__(
        self,
        folder: Path,
        redis_url: str,
        *,
        key: str | None = None,
        port: int | None = None,
        **options: Any,
    ) -> None:
        self.port = support.free_port() if port is None else port
        self.folder = folder
        self._environment = {
            "LIVETAPE_BUS": redis_url,
            "LIVETAPE_ENABLE_METRICS": "true",
            "LIVETAPE_DATA_DIR": str(folder / "data"),
            "LIVETAPE_APP_ENV": "prod" if key else "local",  # with a key nobody is let in without a token
            **({"LIVETAPE_JWT_VERIFY_KEY": key} if key else {"LIVETAPE_ENABLE_AUTH": "false"}),
            **{f"LIVETAPE_GATEWAY__{name.upper()}": str(value) for name, value in options.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None

    # ---- life ------------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> None:
        """Start it without waiting."""
        assert not self.is_running
        self.folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "livetape", "serve", "gateway", "--port", str(self.port)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LIVETAPE_")}
        with (self.folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                words,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=clean | self._environment,
                cwd=self.folder,
            )

    def wait_ready(self) -> None:
        """Until sockets may come."""
        deadline = time.monotonic() + START_S
        while not self._answers():
            if not self.is_running or time.monotonic() > deadline:
                raise AssertionError(f"the gateway did not start:\n{self.output()[-3000:]}")
            time.sleep(0.01)

    def start(self) -> Self:
        self.spawn()
        self.wait_ready()
        return self

    def kill(self) -> None:
        """SIGKILL: nobody is told."""
        if self.is_running:
            os.kill(self.pid, signal.SIGKILL)
        self._ended()

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self) -> int:
        """SIGTERM, as a deployment does; returns its exit code."""
        if self.is_running:
            os.kill(self.pid, signal.SIGTERM)
        return self._ended()

    def stop(self) -> None:
        """Idempotent, whatever state it is in."""
        if self.is_running:
            self.resume()
            os.kill(self.pid, signal.SIGTERM)
        if self._process is not None:
            self._ended()

    def _ended(self) -> int:
        assert self._process is not None
        try:
            return self._process.wait(TERM_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"SIGTERM did not end it within {TERM_S:g} s:\n{self.output()[-3000:]}") from None

    def _answers(self) -> bool:
        """Whether a socket is let in; an answer to HTTP alone does not say so."""
        request = (
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
                link.settimeout(2)
                link.sendall(request)
                return link.recv(64).startswith(b"HTTP/1.1 101")
        except OSError:
            return False

    # ---- what can be seen of it ------------------------------------------------------------------------------------

    def rss_bytes(self) -> int:
        words = Path(f"/proc/{self.pid}/status").read_text().split()
        return int(words[words.index("VmRSS:") + 1]) * 1024

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all labels that are not named; `name` is without the namespace."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(link):
            link.request("GET", "/metrics")
            text = link.getresponse().read().decode()
        total = 0.0
        for found, having, value in _SAMPLE.findall(text):
            if found == f"livetape_{name}" and all(f'{k}="{v}"' in having for k, v in labels.items()):
                total += float(value)
        return total

    def output(self) -> str:
        """All that it has written."""
        path = self.folder / "output.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def tracebacks(self) -> list[str]:
        """What broke in it, as its log says."""
        found = [part[:2000] for part in self.output().split("Traceback (most recent call last)")[1:]]
        return found + [line for line in self.output().splitlines() if '"action": "socket_broke"' in line]


@contextlib.contextmanager
def running(*gateways: GatewayProcess) -> Iterator[tuple[GatewayProcess, ...]]:
    """All of them, started together."""
    try:
        for gateway in gateways:
            gateway.spawn()
        for gateway in gateways:
            gateway.wait_ready()
        yield gateways
    finally:
        for gateway in gateways:
            gateway.stop()
