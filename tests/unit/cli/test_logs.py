"""Log records: their two forms, and no token in either."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from livetape.cli.logs import configure
from livetape.settings import Settings


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    names = ("", "livetape", "uvicorn", "uvicorn.error", "uvicorn.access")
    before = [(logging.getLogger(n), logging.getLogger(n).level, list(logging.getLogger(n).handlers)) for n in names]
    for name in names[2:]:  # a server of another test may have left them a level and a handler of their own
        logging.getLogger(name).setLevel(logging.NOTSET)
        logging.getLogger(name).handlers[:] = []
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


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
    configure(Settings(log_format=form, log_level="debug"))
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', "peer", "/ws?token=abc.def.ghi&x=1")
    logging.getLogger("livetape").warning("Authorization: Bearer abc.def.ghi")
    told = capfd.readouterr().err
    assert told.count("\n") == 2
    assert "abc" not in told
    assert "***" in told


def test_only_what_was_asked_for_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    configure(Settings(log_level="error"))
    logging.getLogger("livetape").warning("no")
    logging.getLogger("uvicorn.access").info("no")
    logging.getLogger("livetape").error("yes")
    assert capfd.readouterr().err.endswith("ERROR   livetape: yes\n")
