"""Blobs inside one process, gone with it: for tests and for trying things out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from hashlib import sha256 as digest_of

from livetape.clock import Clock, SystemClock
from livetape.engine.blobs import Blob, Blobs, Place, Shelf
from livetape.errors import NotFoundError


class MemoryBlobs(Blobs):
    """Without bounds. `contents` is everything, for tests that break it."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self.contents: dict[Place, dict[str, tuple[bytes, Blob]]] = {}

    async def put(self, place: Place, content: bytes) -> str:
        sha256 = digest_of(content).hexdigest()
        blob = Blob(sha256, len(content), self._clock.now())
        self.contents.setdefault(place, {})[sha256] = content, blob
        return sha256

    async def get(self, place: Place, sha256: str) -> bytes:
        found = self.contents.get(place, {}).get(sha256)
        if found is None:
            raise NotFoundError(f"there is no blob {sha256}")
        return found[0]

    async def share(self, source: Place, target: Place, sha256s: Collection[str]) -> None:
        for content in [await self.get(source, sha256) for sha256 in sha256s]:
            await self.put(target, content)

    async def sizes(self, place: Place) -> dict[str, int]:
        return {sha256: blob.size for sha256, (_, blob) in self.contents.get(place, {}).items()}

    async def delete(self, place: Place) -> None:
        self.contents.pop(place, None)

    async def shelves(self) -> AsyncIterator[Shelf]:
        for place, kept in list(self.contents.items()):
            yield Shelf(place.execution_id, "/".join(place), [blob for _, blob in kept.values()])

    async def clear(self, shelf: Shelf, sha256s: Collection[str]) -> None:
        for place, kept in list(self.contents.items()):
            if "/".join(place) == shelf.name:
                for sha256 in sha256s:
                    kept.pop(sha256, None)
                if not kept:
                    del self.contents[place]
