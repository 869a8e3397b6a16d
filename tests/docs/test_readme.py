"""Every command and every program that the documentation shows does what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.pages import Runner, other_pages, pages, read_blocks, read_commands
from support import ROOT


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def with_needs(page: Path) -> object:
    """The page as a parameter, with what its commands need beside Python."""
    text = page.read_text()
    services = [
        name
        for name, command in (
            ("redis", "redis-server"),
            ("rabbitmq", "broker rabbitmq-server"),
            ("postgres", "as_user postgres"),
        )
        if f"\n{command} " in text
    ]
    marks = [pytest.mark.needs(*services)] if services else []
    return pytest.param(page, marks=marks, id=name(page))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [with_needs(page) for page in pages()])
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    Runner(name(page), tmp_path / "page").run(page.read_text())


@pytest.mark.parametrize("page", [*pages(), *other_pages()], ids=name)
def test_every_code_block_names_its_language(page: Path) -> None:
    for block in read_blocks(page.read_text(), name(page)):
        if block.language == "sh":
            read_commands(block, name(page))


@pytest.mark.parametrize("command", ["scripts/up", "scripts/test"])
def test_the_readme_begins_with_the_two_commands(command: str) -> None:
    first = next(block for block in read_blocks((ROOT / "README.md").read_text()) if block.language == "sh")
    assert command in [line.text.partition("#")[0].strip() for line in read_commands(first)]
