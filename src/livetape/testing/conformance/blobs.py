"""What every store of blobs must do. Each case is a sentence of the docstrings in `livetape.engine.blobs`.

Subclass it in a test module and give the fixture `blobs`, an empty store.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from hashlib import sha256 as digest_of

from livetape.engine.blobs import Blobs, Place, Shelf
from livetape.errors import NotFoundError

PLACE = Place("user", "execution")
OTHERS = (Place("user", "other"), Place("other", "execution"), Place("user/execution", ""), Place("", "user/execution"))


class BlobsSuite:
    """Cases for the Blobs port."""

    async def test_what_was_put_is_got_byte_for_byte(self, blobs: Blobs) -> None:
        for content in (b"", b"x", bytes(range(256)) * 1000):
            sha256 = await blobs.put(PLACE, content)
            assert sha256 == digest_of(content).hexdigest()
            assert await blobs.get(PLACE, sha256) == content

    async def test_putting_it_again_is_harmless(self, blobs: Blobs) -> None:
        first = await blobs.put(PLACE, b"one")
        [before] = (await _shelf(blobs)).blobs
        assert await blobs.put(PLACE, b"one") == first
        [after] = (await _shelf(blobs)).blobs
        assert after.stored_at >= before.stored_at
        assert await blobs.get(PLACE, first) == b"one"

    async def test_many_at_once_are_all_kept(self, blobs: Blobs) -> None:
        contents = [b"%d" % (number % 10) * 5000 for number in range(40)]
        names = await asyncio.gather(*(blobs.put(PLACE, content) for content in contents))
        assert [await blobs.get(PLACE, name) for name in names] == contents
        assert len(await blobs.sizes(PLACE)) == 10

    async def test_nobody_gets_it_under_another_place(self, blobs: Blobs) -> None:
        sha256 = await blobs.put(PLACE, b"mine")
        for place in OTHERS:
            await _is_not_there(blobs, place, sha256)
            assert await blobs.sizes(place) == {}

    async def test_strange_places_and_hashes_lead_nowhere_else(self, blobs: Blobs) -> None:
        names = ("..", ".", "a/b", "a\\b", "é" * 200, "x" * 200, "%2e", "a b")
        kept = {name: await blobs.put(Place(name, "e"), name.encode()) for name in names}
        for name, sha256 in kept.items():
            assert await blobs.get(Place(name, "e"), sha256) == name.encode()
            assert await blobs.sizes(Place(name, "e")) == {sha256: len(name.encode())}
        for sha256 in ("", "..", "../e", "A" * 64, "f" * 63, "f" * 64):
            await _is_not_there(blobs, Place("a b", "e"), sha256)

    async def test_sizes_are_those_of_the_contents(self, blobs: Blobs) -> None:
        assert await blobs.sizes(PLACE) == {}
        one, two = await blobs.put(PLACE, b"one"), await blobs.put(PLACE, b"three")
        assert await blobs.sizes(PLACE) == {one: 3, two: 5}

    async def test_what_is_shared_is_in_both_places(self, blobs: Blobs) -> None:
        one, two = await blobs.put(PLACE, b"one"), await blobs.put(PLACE, b"two")
        await blobs.share(PLACE, OTHERS[0], [one])
        await blobs.delete(PLACE)
        assert await blobs.get(OTHERS[0], one) == b"one"
        await _is_not_there(blobs, OTHERS[0], two)
        try:
            await blobs.share(PLACE, OTHERS[0], [two])
        except NotFoundError:
            return
        raise AssertionError("what is not there was shared")

    async def test_deleting_takes_everything_of_one_place_alone(self, blobs: Blobs) -> None:
        one = await blobs.put(PLACE, b"one")
        await blobs.put(PLACE, b"two")
        await blobs.put(OTHERS[0], b"one")
        await blobs.delete(PLACE)
        await blobs.delete(PLACE)
        assert await blobs.sizes(PLACE) == {}
        assert await blobs.get(OTHERS[0], one) == b"one"

    async def test_shelves_tell_of_everything_and_can_be_cleared(self, blobs: Blobs) -> None:
        one, two = await blobs.put(PLACE, b"one"), await blobs.put(PLACE, b"three")
        await blobs.put(OTHERS[0], b"one")
        shelf = await _shelf(blobs)
        assert sorted([one.execution_id async for one in blobs.shelves()]) == ["execution", "other"]
        assert {blob.sha256: blob.size for blob in shelf.blobs} == {one: 3, two: 5}
        assert all(abs(blob.stored_at - datetime.now(UTC)) < timedelta(minutes=1) for blob in shelf.blobs)
        await blobs.clear(shelf, [one, "f" * 64])
        await blobs.clear(shelf, [one])
        assert await blobs.sizes(PLACE) == {two: 5}
        await blobs.clear(shelf, [two])
        assert [shelf.execution_id async for shelf in blobs.shelves()] == ["other"]
        assert len(await blobs.sizes(OTHERS[0])) == 1


async def _shelf(blobs: Blobs) -> Shelf:
    [shelf] = [one async for one in blobs.shelves() if one.execution_id == PLACE.execution_id]
    return shelf


async def _is_not_there(blobs: Blobs, place: Place, sha256: str) -> None:
    try:
        await blobs.get(place, sha256)
    except NotFoundError:
        return
    raise AssertionError(f"{sha256} was found in {place}")
