"""Stores of blobs that break one promise each. `BlobsSuite` must fail every one of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Final

from livetape.adapters.memory.blobs import MemoryBlobs
from livetape.engine.blobs import Blobs, Place, Shelf


class OneForAll(MemoryBlobs):
    """Whoever knows the hash gets it."""

    async def get(self, place: Place, sha256: str) -> bytes:
        for kept in self.contents.values():
            if sha256 in kept:
                return kept[sha256][0]
        return await super().get(place, sha256)


class ForgetsOwners(MemoryBlobs):
    """An execution is a place, whoever's it is."""

    async def put(self, place: Place, content: bytes) -> str:
        return await super().put(Place("", place.execution_id), content)

    async def get(self, place: Place, sha256: str) -> bytes:
        return await super().get(Place("", place.execution_id), sha256)

    async def sizes(self, place: Place) -> dict[str, int]:
        return await super().sizes(Place("", place.execution_id))


class TakesTextOnly(MemoryBlobs):
    """Ends at the first zero byte."""

    async def get(self, place: Place, sha256: str) -> bytes:
        return (await super().get(place, sha256)).partition(b"\0")[0]


class MovesInsteadOfSharing(MemoryBlobs):
    """What is shared goes from where it was, all of it."""

    async def share(self, source: Place, target: Place, sha256s: Collection[str]) -> None:
        self.contents[target] = self.contents.pop(source, {})


class SharesWhatIsThere(MemoryBlobs):
    """Says nothing of what is missing."""

    async def share(self, source: Place, target: Place, sha256s: Collection[str]) -> None:
        there = self.contents.get(source, {})
        await super().share(source, target, [sha256 for sha256 in sha256s if sha256 in there])


class DeletesOnlyOnce(MemoryBlobs):
    """Fails where nothing is left."""

    async def delete(self, place: Place) -> None:
        del self.contents[place]


class DeletesTheOwner(MemoryBlobs):
    """Takes the other executions of the user with it."""

    async def delete(self, place: Place) -> None:
        for other in [one for one in self.contents if one.owner == place.owner]:
            del self.contents[other]


class CountsOne(MemoryBlobs):
    """Tells the size of one of them."""

    async def sizes(self, place: Place) -> dict[str, int]:
        return dict(list((await super().sizes(place)).items())[:1])


class ClearsEverything(MemoryBlobs):
    """A shelf is cleared as a whole."""

    async def clear(self, shelf: Shelf, sha256s: Collection[str]) -> None:
        await super().clear(shelf, [blob.sha256 for blob in shelf.blobs])


class ShowsOneShelf(MemoryBlobs):
    """Tells of the first place only."""

    async def shelves(self) -> AsyncIterator[Shelf]:
        async for shelf in super().shelves():
            yield shelf
            return


BROKEN_BLOBS: Final[Mapping[str, Callable[[], Blobs]]] = {
    made.__name__: made
    for made in (
        OneForAll,
        ForgetsOwners,
        TakesTextOnly,
        MovesInsteadOfSharing,
        SharesWhatIsThere,
        DeletesOnlyOnce,
        DeletesTheOwner,
        CountsOne,
        ClearsEverything,
        ShowsOneShelf,
    )
}
