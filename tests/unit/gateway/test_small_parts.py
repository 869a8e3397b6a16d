"""Close codes, back-off, rate, options and redaction."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.errors import TokenExpiredError, UnauthenticatedError
from livetape.events.backoff import Backoff
from livetape.gateway.close_codes import CloseCode, close_code_of
from livetape.gateway.options import GatewayOptions
from livetape.gateway.rate import TokenBucket
from livetape.gateway.redaction import RedactTokens, redact
from livetape.gateway.reports import REPORTS_AT_ONCE, REPORTS_PER_SECOND, ClientReports
from livetape.settings import GatewaySettings
from livetape.testing.fakes import ManualClock


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (UnauthenticatedError(reason="missing"), 4001, "Missing authentication token"),
        (UnauthenticatedError(reason="no_user"), 4002, "Invalid token"),
        (UnauthenticatedError(reason="invalid"), 4003, "Invalid token"),
        (TokenExpiredError(reason="expired"), 4003, "Invalid token"),
        (UnauthenticatedError(reason="revoked"), 4003, "Invalid token"),
        (UnauthenticatedError(reason="other_user"), 4003, "Invalid token"),
    ],
)
def test_close_codes_of_the_seed(error: UnauthenticatedError, code: int, reason: str) -> None:
    assert close_code_of(error) == code
    assert close_code_of(error).reason == reason


def test_every_close_code_has_a_reason_and_an_advice() -> None:
    for code in CloseCode:
        assert 0 < len(code.reason.encode()) <= 123
        assert code.advice


def test_backoff_doubles_up_to_a_limit() -> None:
    backoff = Backoff(1, 8, jitter=lambda: 1.0)
    assert [backoff.next() for _ in range(5)] == [1, 2, 4, 8, 8]
    backoff.reset()
    assert backoff.next() == 1
    assert Backoff(1, 8, jitter=lambda: 0.0).next() == 0.5
    endless = Backoff()
    assert all(endless.next() <= 5 for _ in range(2000))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=50))
def test_who_waits_as_told_is_never_faster_than_the_rate(gaps: list[float]) -> None:
    bucket, now = TokenBucket(10, 5, 0.0), 0.0
    for taken, gap in enumerate(gaps, start=1):
        now += gap
        now += bucket.take(now)
        assert taken <= 5 + now * 10 + 1e-6


def test_time_that_goes_backwards_gives_nothing() -> None:
    bucket = TokenBucket(1, 1, 100.0)
    assert bucket.take(100.0) == 0
    assert bucket.take(50.0) == 1
    assert bucket.limited_since == 50.0


def test_the_settings_fit_the_options() -> None:
    """What the settings name like an option has the same default."""
    settings = GatewaySettings().model_dump()
    options = GatewayOptions().model_dump()
    shared = settings.keys() & options.keys()
    assert shared >= {"max_message_bytes", "max_channels", "max_sockets_per_user", "outbox_max_bytes", "jobs_unowned"}
    assert {name: settings[name] for name in shared} == {name: options[name] for name in shared}


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("GET /ws?token=ey.J.x HTTP", "GET /ws?token=*** HTTP"),
        ("/ws?a=1&token=ey&b=2", "/ws?a=1&token=***&b=2"),
        ("GET /ws?ticket=aB3_-x HTTP", "GET /ws?ticket=*** HTTP"),
        ("/ws?v=1&TICKET=aB3_-x&b=2", "/ws?v=1&TICKET=***&b=2"),
        ("Authorization: Bearer ey.J-x_=", "Authorization: Bearer ***"),
        ("livetape.v1, bearer.ey.J.x", "livetape.v1, bearer.***"),
        ("nothing here", "nothing here"),
    ],
)
def test_tokens_do_not_reach_the_log(text: str, safe: str) -> None:
    assert redact(text) == safe
    record = logging.LogRecord("uvicorn.error", logging.INFO, "", 0, '%s - "WebSocket %s"', ("1.2.3.4", text), None)
    assert RedactTokens().filter(record)
    assert record.getMessage() == f'1.2.3.4 - "WebSocket {safe}"'
    plain = logging.LogRecord("x", logging.INFO, "", 0, text, None, None)
    RedactTokens().filter(plain)
    assert plain.getMessage() == safe


def test_what_clients_report_is_bounded_and_says_how_much_was_left_out(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    reports = ClientReports(clock)
    with caplog.at_level("INFO", "livetape"):
        for _ in range(1000):
            reports.tell("x" * 2000)
        assert len(caplog.records) == REPORTS_AT_ONCE
        assert all(len(record.getMessage()) < 600 for record in caplog.records)
        clock.advance(1 / REPORTS_PER_SECOND)
        reports.tell("y")
        assert len(caplog.records) == REPORTS_AT_ONCE + 1
        assert vars(caplog.records[-1])["left_out"] == 1000 - REPORTS_AT_ONCE
