"""The folder in which workers are asked by the process that looks after them."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

PREFIX: Final = "livetape-workers-"
HELD: Final = "lock"
"""Locked as long as the process lives whose folder it is."""


@contextmanager
def worker_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder of this user alone, below `parent` (by default where temporary files are), gone at the end.

    What processes have left there that were killed is taken away.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    _clear(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    handle = os.open(folder / "new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        (folder / "new").rename(folder / HELD)  # locked before anybody can find it
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _clear(parent: Path) -> None:
    for held in parent.glob(f"{PREFIX}*/{HELD}"):
        with suppress(OSError):
            handle = os.open(held, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_own(held.parent):
                    shutil.rmtree(held.parent)
            finally:
                os.close(handle)


def _is_own(folder: Path) -> bool:
    """Not a link, nor made by another user: where temporary files are, anybody may make names."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
