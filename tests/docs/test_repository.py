"""What must hold for the repository itself, so that a fresh clone sets itself up."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from packaging.requirements import Requirement

from docs.pages import other_pages, pages
from support import ROOT, services

LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file())
PINNED = re.compile(r"^([a-z0-9-]+)==([^ ;\\]+)", re.MULTILINE)


def pins(lock: str) -> dict[str, str]:
    return dict(PINNED.findall((ROOT / "requirements" / lock).read_text()))


def wanted(pyproject: dict, extra: str) -> Iterator[Requirement]:
    """What the project and one of its extras ask for, extras of its own unfolded."""
    project = pyproject["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"][extra]]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            for name in requirement.extras:
                yield from wanted(pyproject, name)
        else:
            yield requirement


def test_the_lock_files_satisfy_pyproject():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    run = [*wanted(pyproject, "platform"), *map(Requirement, pyproject["build-system"]["requires"])]
    dev = [*run, *map(Requirement, pyproject["dependency-groups"]["dev"])]
    for lock, requirements in (("run.txt", run), ("dev.txt", dev)):
        found = pins(lock)
        for requirement in requirements:
            assert requirement.name in found, f"{requirement} is not in {lock}: run scripts/lock"
            assert requirement.specifier.contains(found[requirement.name]), f"{requirement}: run scripts/lock"


def test_both_levels_have_the_same_versions():
    assert pins("run.txt").items() <= pins("dev.txt").items()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_file_holds_versions_and_hashes_alone(lock: Path):
    entries = re.split(r"\n(?=\S)", lock.read_text().strip())
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+==[^\n]+?(?: \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry[:200]
    assert "://" not in lock.read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_plain_sh_and_can_be_started(script: Path):
    assert script.read_text().startswith("#!/bin/sh\n")
    assert script.stat().st_mode & 0o111 == 0o111
    subprocess.run(["/bin/sh", "-n", script], check=True)


def test_the_services_are_the_table():
    table = "# comment\n\nname command one two\n"
    assert services(table)["name"].remedy == "command is missing. Type: sudo apt-get install one two"
    assert "chromium" in services()


def test_the_licence_is_complete():
    text = (ROOT / "LICENSE").read_text()
    assert re.match(r"\s*Apache License\s+Version 2\.0, January 2004\n", text)
    assert all(f"\n   {number}. " in text for number in range(1, 10))
    assert "APPENDIX: How to apply the Apache License to your work." in text


@pytest.mark.parametrize("page", [*pages(), *other_pages()], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(page: Path):
    for token in MarkdownIt("commonmark").parse(page.read_text()):
        for child in token.children or ():
            link = child.attrGet("href") or child.attrGet("src")
            if link and not re.match(r"[a-z]+:", str(link)):
                target = str(link).partition("#")[0]
                assert not target or (page.parent / target).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize(
    ("contents", "pages"),
    [
        ("index.md", ["contracts/*.md", "explanation/*.md", "howto/*.md", "reference/*.md"]),
        ("decisions/README.md", ["decisions/0*.md"]),
    ],
)
def test_every_page_is_in_the_contents(contents: str, pages: list[str]):
    text = (ROOT / "docs" / contents).read_text()
    found = [page for pattern in pages for page in sorted((ROOT / "docs").glob(pattern))]
    assert [page.name for page in found if f"{page.name})" not in text] == []


def test_the_glossary_is_in_order_and_has_each_word_once():
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert words == sorted(set(words))
