"""The Python of the how-to pages has right types, as a program of somebody who uses livetape and checks strictly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from docs.pages import read_blocks
from support import ROOT

pytestmark = pytest.mark.slow

PAGES = sorted((ROOT / "docs/howto").glob("*.md"))


def test_the_pages_pass_mypy_strict(tmp_path: Path) -> None:
    """Without the plugin of Pydantic, which not everybody has. The line of an error is that of the page."""
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n"
        # What a page brings along in a shell block, and libraries without types.
        "[mypy-reports,celery.*,kombu.*]\nignore_missing_imports = true\n"
    )
    modules = []
    for page in PAGES:
        lines: list[str] = []
        for block in read_blocks(page.read_text(), page.name):
            if block.language == "python":
                lines += [""] * (block.line - len(lines))
                lines += block.text.splitlines()
        if lines:
            module = tmp_path / f"{page.stem.replace('-', '_')}.py"
            module.write_text("\n".join(lines) + "\n")
            modules.append(module.name)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run([*command, *modules], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
