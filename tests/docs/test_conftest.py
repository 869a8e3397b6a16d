"""A run in CI does not pass over what it skipped; each test runs in one of the three parts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

pytestmark = pytest.mark.slow

EXAMPLE = """
import os, pytest
def test_runs(free_port, data_dir):
    assert 0 < free_port < 65536 and not data_dir.exists()
    assert not {"LIVETAPE_URL", "REDIS_HOST", "NO_COLOR"} & set(os.environ)
def test_skips():
    pytest.skip("no reason")
@pytest.mark.parametrize("n", ["a[1]"])
def test_may_skip(n):
    pytest.skip("known")
@pytest.mark.needs("absent")
def test_needs():
    pass
@pytest.mark.serial
def test_alone():
    pass
@pytest.mark.heavy
def test_heavy():
    pass
@pytest.mark.browser
def test_browser():
    pass
"""


@pytest.fixture
def run(tmp_path: Path):
    tests = tmp_path / "tests"
    tests.mkdir()
    for name in (
        "conftest.py",
        "ports.py",
        "postgres_server.py",
        "rabbit.py",
        "servers.py",
        "support.py",
        "virtual_time.py",
    ):
        shutil.copy(ROOT / "tests" / name, tests / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    (tests / "services.txt").write_text("absent no-such-program absent-package\nchromium sh chromium\n")
    (tests / "skips.txt").write_text("# comment\ntests/test_example.py::test_may_* # known\n")
    (tests / "test_example.py").write_text(EXAMPLE)

    def run(*arguments: str, ci: bool) -> tuple[int, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI"))}
        environment |= {"LIVETAPE_URL": "x", "REDIS_HOST": "x", "NO_COLOR": "1"} | ({"CI": "true"} if ci else {})
        command = [sys.executable, "-m", "pytest", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    return run


def test_a_developer_may_skip(run):
    code, output = run("-p", "no:randomly", ci=False)
    assert code == 0, output
    assert "Type: sudo apt-get install absent-package" in output
    assert "4 passed, 3 skipped" in output


@pytest.mark.parametrize("workers", ["0", "2"])
def test_ci_refuses_a_skip_that_is_not_on_the_list(run, workers):
    code, output = run("-k", "skip or runs", "-n", workers, ci=True)
    assert code == 1
    assert "tests/test_example.py::test_skips: Skipped: no reason" in output
    assert "test_may_skip[a[1]]: " not in output


def test_ci_accepts_a_skip_on_the_list(run):
    code, output = run("-k", "may_skip or runs", ci=True)
    assert code == 0, output


def test_ci_refuses_a_missing_program(run):
    code, output = run("-k", "needs", "--randomly-seed=77", ci=True)
    assert code == 1
    assert "no-such-program is missing" in output
    assert "scripts/test --randomly-seed=77" in output


def test_every_test_is_in_one_part(run):
    shared = run("--part=shared", "-v", ci=False)[1]
    pairs = run("--part=pairs", "-v", ci=False)[1]
    alone = run("--part=alone", "-v", ci=False)[1]
    assert "1 passed, 3 skipped, 3 deselected" in shared
    assert "1 passed, 6 deselected" in pairs
    assert "2 passed, 5 deselected" in alone
