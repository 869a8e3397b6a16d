"""The folder of a supervisor is gone with it, however it ended; those of others stay."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from livetape.runtime.worker_folder import HELD, PREFIX, worker_folder

LIVES = """
import sys
from pathlib import Path
from livetape.runtime.worker_folder import worker_folder
with worker_folder(Path(sys.argv[1])) as folder:
    (folder / "0.sock").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


def other(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that has such a folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", LIVES, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


def test_it_is_ones_own_and_gone_at_the_end(tmp_path: Path) -> None:
    with worker_folder(tmp_path) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "0.sock").touch()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_a_killed_process_left_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    killed, left = other(tmp_path)
    living, kept = other(tmp_path)
    try:
        end(killed)
        assert left.exists()
        with worker_folder(tmp_path) as folder:
            assert set(tmp_path.iterdir()) == {kept, folder}
    finally:
        end(living)


def test_what_somebody_else_made_there_stays(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / HELD).touch()
    (tmp_path / f"{PREFIX}trap").symlink_to(data)
    (tmp_path / f"{PREFIX}empty").mkdir()
    (tmp_path / "livetape-chaos").mkdir()
    (tmp_path / "livetape-chaos" / HELD).touch()
    before = set(tmp_path.rglob("*"))
    with worker_folder(tmp_path):
        pass
    assert set(tmp_path.rglob("*")) == before
