"""Log records: their two forms, and no token in either."""

from __future__ import annotations

import json
import logging
import logging.config
from collections.abc import Iterator

import pytest
import uvicorn.config

from livetape.cli.logs import configure
from livetape.gateway.redaction import RedactTokens
from livetape.observability import redact
from livetape.settings import Settings

NAMES = ("", "livetape", "uvicorn", "uvicorn.error", "uvicorn.access")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.level, list(logger.handlers), logger.propagate, logger.disabled) for logger in loggers]
    yield
    for logger, (level, handlers, propagate, disabled) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate, logger.disabled = propagate, disabled


def test_json_lines_carry_what_was_given(capfd: pytest.CaptureFixture[str]) -> None:
    configure(Settings(log_format="json"))
    try:
        raise KeyError("inside")
    except KeyError:
        logging.getLogger("livetape.x").exception("it broke: %s", "ä", extra={"action": "broke"})
    logging.getLogger("livetape.x").debug("not this")
    told = json.loads(capfd.readouterr().err)
    assert (told["level"], told["logger"], told["message"], told["action"]) == (
        "error",
        "livetape.x",
        "it broke: ä",
        "broke",
    )
    assert "KeyError" in told["stack"]
    assert told["time"].endswith("+00:00")


@pytest.mark.parametrize("form", ["text", "json"])
def test_tokens_never_leave(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    logging.config.dictConfig(uvicorn.config.LOGGING_CONFIG)  # what another way of starting may have left
    configure(Settings(log_format=form, log_level="debug"))
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', "peer", "/ws?token=abc.def.ghi&x=1")
    logging.getLogger("livetape").warning("Authorization: Bearer abc.def.ghi")
    told = capfd.readouterr().err
    assert told.count("\n") == 2
    assert "abc" not in told
    assert "***" in told


@pytest.mark.parametrize("form", ["text", "json"])
def test_tokens_leave_neither_with_an_exception_nor_with_what_was_given_beside(
    form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    configure(Settings(log_format=form, log_level="debug"))
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJVIn0.c2lnbmF0dXJl"
    try:
        raise ValueError(f"cannot read {token}")
    except ValueError:
        logging.getLogger("livetape.x").exception("a client says %s", {"token": "secret"}, extra={"what": [token]})
    logging.getLogger("uvicorn.error").debug("< TEXT 'hello'")
    told = capfd.readouterr().err
    assert "ValueError" in told
    for part in ("secret", "c2lnbmF0dXJl", "eyJ", "hello"):
        assert part not in told
    if form == "json":
        assert json.loads(told)["what"] == ["***"]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("/ws?token=a.b&x=1", "/ws?token=***&x=1"),
        ("&access_token=abc ticket=def", "&access_token=*** ticket=***"),
        ('{"token": "abc", "x": "abc"}', '{"token": "***", "x": "abc"}'),
        ('"{\\"ticket\\":\\"abc\\"}"', '"{\\"ticket\\":\\"***\\"}"'),
        ("livetape.v1, bearer.abc.def", "livetape.v1, bearer.***"),
        ("Authorization: Bearer abc", "Authorization: Bearer ***"),
        ("told eyJhbGci...XYZ] twice", "told ***] twice"),
        ("a token is missing; tokens: 3; survey", "a token is missing; tokens: 3; survey"),
    ],
)
def test_what_is_taken_for_a_token(text: str, safe: str) -> None:
    assert redact(text) == safe
    record = logging.makeLogRecord({"msg": "%s %d", "args": ({text: text}, 3)})
    assert RedactTokens().filter(record)
    assert record.getMessage() == redact(f"{ {text: text} } 3")


def test_only_what_was_asked_for_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    configure(Settings(log_level="error"))
    logging.getLogger("livetape").warning("no")
    logging.getLogger("uvicorn.access").info("no")
    logging.getLogger("livetape").error("yes")
    assert capfd.readouterr().err.endswith("ERROR   livetape: yes\n")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_record_is_one_line_whatever_a_client_says(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    configure(Settings(log_format=form))
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJVIn0.c2lnbmF0dXJl"
    said = f"oops\n12:00:00 ERROR   livetape: forged\r\x1b[2J\x9b\u2028\n{token}\ntoken=first\x1btoken=second"
    logging.getLogger("livetape.x").warning("a client reports: %s", said)
    told = capfd.readouterr().err
    assert told.splitlines() == [told.rstrip("\n")] or form == "json"
    assert told.count("\n") == 1
    assert "\x1b" not in told
    assert "oops" in told
    for part in (token, "first", "second"):
        assert part not in told


def test_a_stack_is_still_many_lines(capfd: pytest.CaptureFixture[str]) -> None:
    configure(Settings())
    try:
        raise KeyError("inside")
    except KeyError:
        logging.getLogger("livetape.x").exception("it broke\n")
    told = capfd.readouterr().err.splitlines()
    assert told[0].endswith("it broke")
    assert told[1].startswith("Traceback")
    assert "KeyError" in told[-1]
