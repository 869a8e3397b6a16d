"""`livetape serve gateway` as a real process: on a free port, killed, paused or told to stop, always ended."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from livetape_process import LivetapeProcess

_SAMPLE = re.compile(r"^(\w+)(\{[^}]*\})? (\S+)$", re.MULTILINE)


class GatewayProcess(LivetapeProcess):
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
        environment = {
            "LIVETAPE_BUS": redis_url,
            "LIVETAPE_ENABLE_METRICS": "true",
            "LIVETAPE_DATA_DIR": str(folder / "data"),
            "LIVETAPE_APP_ENV": "prod" if key else "local",  # with a key nobody is let in without a token
            **({"LIVETAPE_JWT_VERIFY_KEY": key} if key else {"LIVETAPE_ENABLE_AUTH": "false"}),
            **{f"LIVETAPE_GATEWAY__{name.upper()}": str(value) for name, value in options.items()},
        }
        super().__init__(folder, "serve", "gateway", environment=environment, port=port)

    def is_ready(self) -> bool:
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
