"""The stores of blobs keep the contract, and the suite notices every store that does not."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from livetape.adapters.folder.blobs import FolderBlobs
from livetape.adapters.memory.blobs import MemoryBlobs
from livetape.engine.blobs import Blobs, Place
from livetape.errors import BlobError, BlobUnavailableError, NotFoundError
from livetape.testing.broken_blobs import BROKEN_BLOBS
from livetape.testing.conformance.blobs import BlobsSuite
from livetape.testing.conformance.runner import cases, run_suite

PLACE = Place("u", "e")


class TestMemory(BlobsSuite):
    @pytest.fixture
    def blobs(self) -> Blobs:
        return MemoryBlobs()


class TestFolder(BlobsSuite):
    @pytest.fixture
    def blobs(self, tmp_path: Path) -> Blobs:
        return FolderBlobs(tmp_path / "not" / "there yet")


@pytest.mark.parametrize("name", BROKEN_BLOBS)
async def test_a_broken_store_fails(name: str) -> None:
    @asynccontextmanager
    async def made() -> AsyncIterator[Blobs]:
        yield BROKEN_BLOBS[name]()

    failed = [failure.case for failure in await run_suite(BlobsSuite, made)]
    assert failed
    assert len(failed) < len(cases(BlobsSuite)), "it is broken in one thing, not in all"


# ---- the folder ----------------------------------------------------------------------------------------------------


async def test_what_was_damaged_is_not_given_out(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    sha256 = await blobs.put(PLACE, b"whole")
    (tmp_path / "u" / "e" / sha256).write_bytes(b"wrong")
    with pytest.raises(BlobError, match="damaged"):
        await blobs.get(PLACE, sha256)


async def test_a_file_that_is_too_short_is_written_anew(tmp_path: Path) -> None:
    """After a loss of power a file system may have the name and not the content."""
    blobs = FolderBlobs(tmp_path)
    sha256 = await blobs.put(PLACE, b"whole")
    (tmp_path / "u" / "e" / sha256).write_bytes(b"")
    assert await blobs.put(PLACE, b"whole") == sha256
    assert await blobs.get(PLACE, sha256) == b"whole"


async def test_what_a_process_left_half_written_is_nothing_and_goes_in_time(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    sha256 = await blobs.put(PLACE, b"whole")
    old, new = (tmp_path / "u" / "e" / name for name in (".part-old", ".part-new"))
    for part in (old, new):
        part.write_bytes(b"ha")
    os.utime(old, (time.time() - 7200,) * 2)
    assert await blobs.sizes(PLACE) == {sha256: 5}
    with pytest.raises(NotFoundError):
        await blobs.get(PLACE, ".part-old")
    [shelf] = [shelf async for shelf in blobs.shelves()]
    assert [blob.sha256 for blob in shelf.blobs] == [sha256]
    await blobs.clear(shelf, [])
    assert (old.exists(), new.exists()) == (False, True), "another process may be writing it"


async def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    await blobs.put(PLACE, b"x")
    for folder in (tmp_path / "blobs", tmp_path / "blobs" / "u", tmp_path / "blobs" / "u" / "e"):
        assert folder.stat().st_mode & 0o077 == 0


async def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blobs = FolderBlobs(tmp_path / "file")
    with pytest.raises(BlobUnavailableError):
        await blobs.put(PLACE, b"x")
    with pytest.raises(BlobUnavailableError):
        blobs.check()
    for folder in (tmp_path / "file", tmp_path / "not there"):
        with pytest.raises(BlobUnavailableError):
            await FolderBlobs(folder).get(PLACE, "0" * 64)
