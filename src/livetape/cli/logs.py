"""Where log records go: to stderr, as lines for people or one JSON object a line, never with a token in them."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Final

from livetape.observability import redact
from livetape.settings import Settings

STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Lines(logging.Formatter):
    """Lines for people. A message is one line, whatever is in it: what a client said must not look like another record,
    nor steer a terminal. A stack follows on lines of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of the base
        return _CONTROL.sub(lambda found: repr(found[0])[1:-1], super().formatMessage(record).rstrip())

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, what was given in `extra`, and the stack if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        told |= {name: value for name, value in vars(record).items() if name not in STANDARD and name not in told}
        if record.exc_info:
            told["stack"] = self.formatException(record.exc_info)
        return redact(json.dumps(told, ensure_ascii=False, default=str))


def configure(settings: Settings) -> None:
    """For a process that serves. Replaces what was configured before."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(Lines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("livetape").setLevel(settings.log_level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        # Whatever was set up for them before: their records go the one way that hides tokens.
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate, logger.disabled = True, False
        # Its INFO lines tell of every connection. On DEBUG there would be pieces of what is said on sockets: users'
        # data, and parts of tokens that nothing could be known by.
        logger.setLevel("INFO" if settings.log_level == "debug" else "WARNING")
