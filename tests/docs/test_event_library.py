"""The reference page of the event library names what is there, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator

import livetape.events
from livetape.adapters.redis import endpoint
from livetape.errors import LivetapeError
from livetape.events import open as opening
from support import ROOT

PAGE = (ROOT / "docs" / "reference" / "event-library.md").read_text()
PACKAGE = ROOT / "src" / "livetape"
METRIC = re.compile(r'metrics\.(?:count|gauge|observe)\(\s*"(\w+)"')


def rows(title: str) -> list[list[str]]:
    """The cells of the tables of a section, without their heads."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0].startswith("`")]


def code(cell: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def sections() -> Iterator[str]:
    yield from re.findall(r"^## (.+)$", PAGE, re.MULTILINE)


NAMES = [title for title in sections() if title not in {"Guarantees", "URLs", "Metrics"}]


def test_every_public_name_has_one_line() -> None:
    named = [code(row[0])[0] for title in NAMES for row in rows(title)]
    assert sorted(named) == sorted(livetape.events.__all__)


def test_every_line_explains() -> None:
    assert [row for title in NAMES for row in rows(title) if not row[-1].strip()] == []


def test_errors_have_their_codes() -> None:
    errors = {name: getattr(livetape.events, name) for name in livetape.events.__all__ if name.endswith("Error")}
    stated = {code(row[0])[0]: (code(row[1])[0], "(retryable)" in row[2]) for row in rows("Errors")}
    assert all(issubclass(error, LivetapeError) for error in errors.values())
    assert stated == {name: (error.code, error.retryable) for name, error in errors.items()}


def test_every_scheme_has_an_example() -> None:
    shown = {url.partition("://")[0] for row in rows("URLs") for url in code(row[0]) if "://" in url}
    assert shown == set(opening._OPENERS)


def test_every_option_of_a_redis_url_is_named() -> None:
    listed = {name for row in rows("URLs") if "://" not in row[0] for name in [*code(row[0]), *code(row[2])]}
    assert listed >= endpoint._KNOWN
    assert {name for row in rows("URLs") if len(row) == 4 for name in code(row[0])} <= endpoint._KNOWN | {"durability"}
    ignored = PAGE.partition("redis-py's own pools (")[2].partition(")")[0]
    assert set(code(ignored)) == endpoint._WITHOUT_MEANING


def test_defaults_are_those_of_the_code() -> None:
    made = endpoint.Endpoint.from_url("rediss://host")
    assert made.tls is not None
    shown = {name: row[2].strip("`") for row in rows("URLs") if "://" not in row[0] for name in code(row[0])}
    assert shown["socket_timeout"] == f"{made.reply_s:g}"
    assert shown["client_name"] == made.client_name
    assert shown["ssl_cert_reqs"] == made.tls.verify.name.removeprefix("CERT_").lower()
    assert shown["ssl_check_hostname"] == str(made.tls.check_hostname).lower()


def test_every_metric_is_named() -> None:
    files = [*(PACKAGE / "events").glob("*.py"), *(PACKAGE / "adapters" / "redis").glob("*.py")]
    found = {name for file in files for name in METRIC.findall(file.read_text())}
    found |= set(re.findall(r'"(bus_\w+_total)"', (PACKAGE / "adapters" / "redis" / "bus.py").read_text()))
    found |= set(re.findall(r'"((?:bus|log)_\w+)"', (PACKAGE / "events" / "tally.py").read_text()))
    assert {code(row[0])[0] for row in rows("Metrics")} == found
