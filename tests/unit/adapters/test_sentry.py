"""Errors reach a Sentry with the tags of whose they are, and nothing of that is left afterwards."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import sentry_sdk

from livetape.adapters.sentry.reporter import SentryReporter
from livetape.errors import ConfigError
from livetape.observability import get_logger
from livetape.runtime.error_hook import error_hook
from livetape.settings import Settings

logger = get_logger("sentry.test")


class Sentry:
    """Takes what a client sends, on the loopback interface."""

    def __init__(self) -> None:
        sentry = self
        self.events: list[dict[str, Any]] = []

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers["Content-Length"]))
                sentry.take(gzip.decompress(sent) if self.headers.get("Content-Encoding") == "gzip" else sent)
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.dsn = f"http://key@127.0.0.1:{self._server.server_port}/1"

    def take(self, envelope: bytes) -> None:
        lines = envelope.split(b"\n")
        self.events += [
            json.loads(body)
            for head, body in zip(lines[1::2], lines[2::2], strict=False)
            if json.loads(head).get("type") == "event"
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def sentry() -> Iterator[Sentry]:
    made = Sentry()
    yield made
    made.close()


def fail(text: str, **extra: Any) -> None:
    try:
        raise KeyError(text)
    except KeyError:
        logger.exception("it broke", extra=extra)


def test_an_error_with_whose_it_is(sentry: Sentry) -> None:
    with error_hook(Settings(sentry_dsn=sentry.dsn)) as reporter:
        with reporter.scope({"user_id": "u", "graph_exec_id": "e"}):
            with reporter.scope({"node_id": "n"}):
                fail("/ws?token=abc.def", action="broke")
            fail("outer")
        fail("alone")
    inner, outer, alone = sentry.events
    assert inner["user"] == outer["user"] == {"id": "u"}
    assert inner["tags"] == {"graph_exec_id": "e", "node_id": "n", "logger": logger.name, "action": "broke"}
    assert outer["tags"] == {"graph_exec_id": "e", "logger": logger.name}
    assert "user" not in alone
    assert alone["tags"] == {"logger": logger.name}
    (told,) = inner["exception"]["values"]
    assert (told["type"], told["value"]) == ("KeyError", "'/ws?token=***'")
    assert inner["contexts"]["livetape"]["message"] == "it broke"
    assert inner["environment"] == "local"
    assert inner["release"].startswith("livetape@")
    assert not any("vars" in frame for frame in told["stacktrace"]["frames"]), "they may hold anything"


async def test_nodes_side_by_side_are_not_mixed_up(sentry: Sentry) -> None:
    with error_hook(Settings(sentry_dsn=sentry.dsn)) as reporter:
        met = asyncio.Barrier(3)

        async def node(name: str) -> None:
            with reporter.scope({"node_id": name}):
                await met.wait()
                fail(name)
                sentry_sdk.capture_message(f"of a block in {name}")
                await met.wait()

        await asyncio.gather(*(node(name) for name in "abc"))
        assert not sentry_sdk.is_initialized(), "nothing is left for the rest of the process"
    errors = [event for event in sentry.events if "exception" in event]
    assert {event["exception"]["values"][0]["value"]: event["tags"]["node_id"] for event in errors} == {
        "'a'": "a",
        "'b'": "b",
        "'c'": "c",
    }
    assert sorted(event["message"] for event in sentry.events if "message" in event) == [
        f"of a block in {name}" for name in "abc"
    ]


def test_an_application_keeps_its_own(sentry: Sentry) -> None:
    theirs: list[Any] = []
    with sentry_sdk.isolation_scope() as scope:
        scope.set_client(sentry_sdk.Client("http://k@127.0.0.1:1/1", before_send=lambda e, _: theirs.append(e)))
        with error_hook(Settings(sentry_dsn=sentry.dsn)):
            fail("ours")
            sentry_sdk.capture_message("theirs")
    assert [event["message"] for event in theirs if "message" in event] == ["theirs"]
    assert [event["exception"]["values"][0]["value"] for event in sentry.events] == ["'ours'"]


@pytest.mark.parametrize("dsn", ["nonsense", "http://127.0.0.1/1", "ftp://key@host/1"])
def test_what_is_no_dsn_is_refused_without_telling_it(dsn: str) -> None:
    with pytest.raises(ConfigError) as refused:
        SentryReporter(dsn, environment="local", release="r")
    assert dsn not in f"{refused.value} {refused.value.because}"
    with pytest.raises(ConfigError) as refused, error_hook(Settings(sentry_dsn=dsn)):
        raise AssertionError
    assert refused.value.set_by == "sentry_dsn"


def test_errors_go_to_one_place(sentry: Sentry) -> None:
    with pytest.raises(ConfigError) as refused:
        Settings(sentry_dsn=sentry.dsn, error_hook="a:b")
    assert refused.value.set_by == "error_hook, sentry_dsn"


def test_without_the_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, sentry: Sentry) -> None:
    monkeypatch.delitem(sys.modules, "livetape.adapters.sentry.reporter")
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)
    with pytest.raises(ConfigError) as refused, error_hook(Settings(sentry_dsn=sentry.dsn)):
        raise AssertionError
    assert (refused.value.set_by, refused.value.fix) == ("sentry_dsn", "pip install 'livetape[sentry]'")
