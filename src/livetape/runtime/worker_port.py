"""The port of a supervisor of workers: health and metrics of all of them, over HTTP."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Final, TypeAlias

from livetape.adapters.prometheus.merge import merged
from livetape.adapters.prometheus.metrics import PrometheusMetrics
from livetape.observability import get_logger
from livetape.runtime.worker_status import METRICS, MISSING, asked

logger = get_logger(__name__)

JSON: Final = "application/json"

Found: TypeAlias = tuple[int, str, bytes]
"""Status, content type and body."""


class WorkerPort:
    """`/livez`, `/readyz` and `/metrics` of the workers whose sockets are in `folder`, from when it is made.

    Ready when every one of them is. Each is asked anew for each request: what is shown is how it is now, and one that
    does not answer has no figures but `worker_up`, which is 0.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, host: str, port: int, folder: Path, count: int, *, namespace: str) -> None:
        self._folder = folder
        self._count = count
        self._namespace = namespace
        self._stopping = False
        self._server = _Server((host, port), self._answer)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="worker port", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it answers."""
        host, port = self._server.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def stopping(self) -> None:
        """From now on it is not ready."""
        self._stopping = True

    def close(self) -> None:
        """No more answers."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, path: str) -> Found:
        if path == "/livez":
            return 200, JSON, b'{"status":"alive"}'
        if path in ("/readyz", "/health"):
            return self._ready()
        if path == "/metrics":
            return self._metrics()
        return 404, JSON, _problem(404, "Not Found", "not_found", [])

    def _ready(self) -> Found:
        missing = ["running"] if self._stopping else []
        for number, answer in enumerate(self._ask(MISSING)):
            down = ["an answer"] if answer is None else json.loads(answer)
            missing += [f"{what} of worker {number}" for what in down]
        if missing:
            return 503, JSON, _problem(503, f"Not ready: {', '.join(missing)} missing", "not_ready", missing)
        return 200, JSON, b'{"status":"ready"}'

    def _metrics(self) -> Found:
        answers = self._ask(METRICS)
        metrics = PrometheusMetrics(self._namespace)
        for number, answer in enumerate(answers):
            metrics.gauge("worker_up", float(answer is not None), worker=str(number))
        text, content_type = metrics.render()
        return 200, content_type, merged([text, *(answer for answer in answers if answer is not None)])

    def _ask(self, question: str) -> Sequence[bytes | None]:
        with ThreadPoolExecutor(self._count) as threads:
            return list(threads.map(lambda number: asked(self._folder, number, question), range(self._count)))


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], answer: Callable[[str], Found]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.answer = answer
        super().__init__(address, _Answer)

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):  # else whoever asked has gone
            logger.exception("a question to the workers failed", extra={"action": "worker_port_failed"})


class _Answer(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5
    server_version = "livetape"
    sys_version = ""

    def do_GET(self) -> None:
        self._send(with_body=True)

    def do_HEAD(self) -> None:
        self._send(with_body=False)

    def _send(self, *, with_body: bool) -> None:
        status, content_type, body = self.server.answer(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
        logger.debug(format, *arguments)


def _problem(status: int, title: str, code: str, missing: list[str]) -> bytes:
    return json.dumps({"title": title, "status": status, "code": code, "missing": missing}).encode()
