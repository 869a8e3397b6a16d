"""Errors that nobody foresaw are told to the application, and telling it does no harm."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from livetape.errors import ConfigError
from livetape.observability import ErrorHook, get_logger, redact
from livetape.runtime.error_hook import error_hook
from livetape.settings import Settings

logger = get_logger("error_hook.test")
LIVETAPE = logging.getLogger("livetape")

heard: list[tuple[BaseException, Mapping[str, Any]]] = []


def hear(error: BaseException, context: Mapping[str, Any]) -> None:
    """What the settings name."""
    heard.append((error, context))


@pytest.fixture(autouse=True)
def nothing_heard() -> Iterator[None]:
    heard.clear()
    before = list(LIVETAPE.handlers)
    yield
    assert LIVETAPE.handlers == before


class Hooked:
    """A hook on the logger, with a clock of its own."""

    def __init__(self, per_minute: int = 60) -> None:
        self.time = 0.0
        self.told: list[tuple[BaseException, Mapping[str, Any]]] = []
        self.raising: Exception | None = None
        self.handler = ErrorHook(self.hear, per_minute=per_minute, now=lambda: self.time)

    def hear(self, error: BaseException, context: Mapping[str, Any]) -> None:
        self.told.append((error, context))
        fail("inside the hook")
        if self.raising is not None:
            raise self.raising

    def __enter__(self) -> Hooked:
        LIVETAPE.addHandler(self.handler)
        return self

    def __exit__(self, *error: object) -> None:
        LIVETAPE.removeHandler(self.handler)


def fail(text: str, **extra: Any) -> Exception:
    try:
        raise KeyError(text)
    except KeyError as error:
        logger.exception("it broke: %s", text, extra=extra)
        return error


def test_an_exception_and_where_it_happened() -> None:
    with Hooked() as hook:
        error = fail("a?token=abc.def", action="broke", tape="job_events:J", limit=3, what=["bearer abc.def"])
        logger.error("no exception")
        logger.warning("foreseen", exc_info=error)
    ((told, context),) = hook.told
    assert told is error
    assert context == {
        "logger": "livetape.error_hook.test",
        "message": "it broke: a?token=***",
        "action": "broke",
        "tape": "job_events:J",
        "limit": 3,
        "what": "['bearer ***']",
    }


def test_what_the_hook_raises_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    with Hooked() as hook:
        hook.raising = ValueError("the hook is broken")
        fail("one")
        fail("two")
    assert len(hook.told) == 2
    assert [record.message for record in caplog.records].count("the error hook failed") == 2
    assert "the hook is broken" in caplog.text


def test_an_avalanche_is_told_in_part() -> None:
    with Hooked(per_minute=3) as hook:
        for number in range(10):
            fail(str(number))
        hook.time = 20.0
        fail("later")
        hook.time = 1000.0
        for number in range(10):
            fail(str(number))
    contexts = [context for _, context in hook.told]
    assert [context.get("left_out") for context in contexts] == [None, None, None, 7, None, None, None]


def test_tokens_are_not_told() -> None:
    told = redact("GET /ws?ticket=abc&x=1 Authorization: Bearer a.b.c")
    assert told == "GET /ws?ticket=***&x=1 Authorization: Bearer ***"


def test_the_function_of_the_settings() -> None:
    with error_hook(Settings(error_hook=f"{__name__}:hear")):
        fail("one")
        logging.getLogger("asyncio").error("a task", exc_info=OSError("lost"))
    fail("nobody listens any more")
    assert [str(error) for error, _ in heard] == ["'one'", "lost"]
    with error_hook(Settings()):
        fail("nobody listens")
    assert len(heard) == 2


@pytest.mark.parametrize("name", ["no_such_module:hear", f"{__name__}:nobody", f"{__name__}:heard"])
def test_a_hook_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError) as error, error_hook(Settings(error_hook=name)):
        raise AssertionError
    assert error.value.set_by == "error_hook"
