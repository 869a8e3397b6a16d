"""Blobs as files of a folder, which processes on several machines may share."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256 as digest_of
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote, unquote

from livetape.engine.blobs import Blob, Blobs, Place, Shelf
from livetape.engine.pointers import is_digest
from livetape.errors import BlobError, BlobUnavailableError, NotFoundError

T = TypeVar("T")

MAX_NAME: Final = 200
PART: Final = ".part-"
IDENTITY: Final = ".livetape-blobs"
PART_OLD_S: Final = 3600.0
"""What was begun so long ago and is not whole was left by a process that died."""


class FolderBlobs(Blobs):
    """`<folder>/<owner>/<execution>/<sha256>`, each written under another name, synced, and renamed when it is whole.

    Reading checks the hash. The folder is made when it is needed. On a network file system, renames must be atomic
    for all who mount it, as they are on NFS.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def put(self, place: Place, content: bytes) -> str:
        return await self._run(lambda: self._put(place, content))

    def _put(self, place: Place, content: bytes) -> str:
        sha256 = digest_of(content).hexdigest()
        folder = self._made(place)
        path = folder / sha256
        if _size(path) == len(content):
            os.utime(path)
            return sha256
        part = folder / f"{PART}{secrets.token_hex(8)}"
        try:
            with part.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            with suppress(OSError):
                part.unlink()
            raise
        _sync(folder)
        return sha256

    async def get(self, place: Place, sha256: str) -> bytes:
        return await self._run(lambda: self._get(place, sha256))

    def _get(self, place: Place, sha256: str) -> bytes:
        if not is_digest(sha256):
            raise NotFoundError("this is not the hash of a blob")
        try:
            content = (self._of(place) / sha256).read_bytes()
        except FileNotFoundError:
            if not self.folder.is_dir():  # not mounted, perhaps
                raise
            raise NotFoundError(f"there is no blob {sha256}") from None
        if digest_of(content).hexdigest() != sha256:
            raise BlobError(f"the blob {sha256} is damaged")
        return content

    async def share(self, source: Place, target: Place, sha256s: Collection[str]) -> None:
        def share() -> None:
            for sha256 in sorted(sha256s):
                self._put(target, self._get(source, sha256))

        await self._run(share)

    async def sizes(self, place: Place) -> dict[str, int]:
        return await self._run(lambda: {blob.sha256: blob.size for blob in _blobs(self._of(place))})

    async def delete(self, place: Place) -> None:
        def delete() -> None:
            with suppress(FileNotFoundError):
                shutil.rmtree(self._of(place))

        await self._run(delete)

    async def shelves(self) -> AsyncIterator[Shelf]:
        for owner in await self._run(partial(_folders, self.folder)):
            for one in await self._run(partial(_folders, owner)):
                blobs = await self._run(partial(_blobs, one))
                yield Shelf(unquote(one.name), str(one.relative_to(self.folder)), blobs)

    async def clear(self, shelf: Shelf, sha256s: Collection[str]) -> None:
        def clear() -> None:
            folder = self.folder / shelf.name
            for sha256 in sha256s:
                with suppress(FileNotFoundError):
                    (folder / sha256).unlink()
            _remove_parts(folder)
            with suppress(OSError):  # not empty, or gone
                folder.rmdir()

        await self._run(clear)

    async def identity(self) -> str:
        """What tells this folder from any other, for all who see it."""
        return await self._run(self._identity)

    def _identity(self) -> str:
        path = self.folder / IDENTITY
        try:
            return path.read_text("ascii").strip()
        except FileNotFoundError:
            pass
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.folder / f"{PART}{secrets.token_hex(8)}"
        part.write_text(secrets.token_hex(16), "ascii")
        try:
            os.link(part, path)  # of several who do this at once, one does
        except FileExistsError:
            pass
        finally:
            part.unlink()
        return path.read_text("ascii").strip()

    def check(self) -> None:
        """Whether it can be written. Blocks. Raises BlobUnavailableError."""
        with _errors():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.folder / f"{PART}{secrets.token_hex(8)}"
            probe.touch()
            probe.unlink()

    async def _run(self, work: Callable[[], T]) -> T:
        def run() -> T:
            with _errors():
                return work()

        return await asyncio.to_thread(run)

    def _of(self, place: Place) -> Path:
        return self.folder / _name(place.owner) / _name(place.execution_id)

    def _made(self, place: Place) -> Path:
        folder = self._of(place)
        if folder.is_dir():
            return folder
        for one in (self.folder, folder.parent, folder):
            if not one.is_dir():
                one.mkdir(mode=0o700, parents=True, exist_ok=True)
                _sync(one.parent)
        return folder


@contextmanager
def _errors() -> Iterator[None]:
    """Those of the file system as those of the port."""
    try:
        yield
    except OSError as error:
        raise BlobUnavailableError(f"the folder of large values cannot be used: {error.strerror or error}") from error


def _name(text: str) -> str:
    """A name of a file for any text: other texts have other names."""
    quoted = quote(text, safe="")
    if len(quoted) > MAX_NAME or quoted.strip(".") == "":
        return f"%{digest_of(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
    return quoted


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _blobs(folder: Path) -> list[Blob]:
    blobs: list[Blob] = []
    try:
        for entry in os.scandir(folder):
            if is_digest(entry.name):
                facts = entry.stat(follow_symlinks=False)
                blobs.append(Blob(entry.name, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC)))
    except FileNotFoundError:
        pass
    return blobs


def _remove_parts(folder: Path) -> None:
    before = datetime.now(UTC).timestamp() - PART_OLD_S
    for part in folder.glob(f"{PART}*"):
        with suppress(FileNotFoundError):
            if part.stat().st_mtime < before:
                part.unlink()


def _sync(folder: Path) -> None:
    """A name is durable when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
