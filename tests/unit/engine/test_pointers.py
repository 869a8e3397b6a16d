"""Pointers: what is moved, what is not, and nothing of a user's is ever taken for one."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from livetape.adapters.memory.blobs import MemoryBlobs
from livetape.engine.large_values import BlobLimits, Keeping
from livetape.engine.pointers import RESERVED, Pointer, pointer_of, pointers_in, to_be_moved, whole_size
from livetape.errors import LimitError, NotFoundError

SHA = "0123456789abcdef" * 4
POINTER = Pointer(SHA, 300_000).to_json()

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.just(RESERVED) | st.just(SHA)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars | texts | st.just(POINTER) | st.just(f'{{"{RESERVED}":1}}'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(given=st.dictionaries(texts, values, max_size=4), inline=st.integers(8, 400))
def test_every_value_comes_back_and_what_stays_is_small(given: dict[str, Any], inline: int) -> None:
    async def case() -> None:
        blobs = MemoryBlobs()
        kept = Keeping(blobs, BlobLimits(inline=inline)).of("u", "e")
        moved = await kept.moved(given)
        stored = from_json(to_json(moved))
        assert await kept.whole(stored) == from_json(to_json(given))
        pointed = set()
        for name, value in stored.items():
            pointer = pointer_of(value)
            if pointer is None:
                text = to_json(value)
                assert len(text) <= inline
                assert f'"{RESERVED}":'.encode() not in text
                assert value == from_json(to_json(given[name]))
            else:
                text = to_json(given[name])
                assert pointer == Pointer(sha256(text).hexdigest(), len(text))
                pointed.add(pointer.sha256)
        assert pointers_in([to_json(moved)]) == pointed
        assert whole_size(to_json(moved)) == len(to_json(given))
        assert {sha256 for kept in blobs.contents.values() for sha256 in kept} == pointed

    asyncio.run(case())


@pytest.mark.parametrize(
    "value",
    [
        POINTER[RESERVED],
        {RESERVED: {"sha256": SHA, "size": 1}, "more": 1},
        {RESERVED: {"sha256": SHA, "size": 1, "more": 1}},
        {RESERVED: {"sha256": SHA.upper(), "size": 1}},
        {RESERVED: {"sha256": SHA[:-1], "size": 1}},
        {RESERVED: {"sha256": SHA, "size": True}},
        {RESERVED: SHA},
        [POINTER],
        RESERVED,
        None,
    ],
)
def test_only_the_exact_form_is_a_pointer(value: Any) -> None:
    assert pointer_of(value) is None
    assert pointer_of(POINTER) == Pointer(SHA, 300_000)


def test_the_limit_is_of_bytes_of_json() -> None:
    assert to_be_moved("x" * 98, 100) is None
    assert to_be_moved("x" * 99, 100) == b'"' + b"x" * 99 + b'"'
    assert to_be_moved("é" * 50, 100) is not None
    assert to_be_moved("\n" * 50, 100) is not None
    assert to_be_moved([0] * 60, 100) is not None
    assert to_be_moved(10**30, 8) is None
    assert to_be_moved(f'"{RESERVED}"', 1000) is None, "text is no object"


async def test_limits_are_told_in_bytes_and_nothing_is_kept_beyond() -> None:
    blobs = MemoryBlobs()
    kept = Keeping(blobs, BlobLimits(inline=10, value=1000, execution=2000)).of("u", "e")
    with pytest.raises(LimitError, match="it has 1001 bytes of JSON; a value may have 1000"):
        await kept.move("x" * 999)
    first = await kept.move("a" * 998)
    await kept.move("b" * 990)
    with pytest.raises(LimitError, match="would have 2012 bytes; they may have 2000"):
        await kept.move("c" * 18)
    assert await kept.move("a" * 998) == first, "what is there already takes no room"
    later = Keeping(blobs, BlobLimits(inline=10, value=1000, execution=2000)).of("u", "e")
    assert await later.move("a" * 998) == first, "nor for the next worker"
    with pytest.raises(LimitError):
        await later.move("c" * 18)
    assert await Keeping(blobs, BlobLimits(inline=10)).of("u", "other").move("c" * 18)


async def test_what_is_gone_is_said_so() -> None:
    blobs = MemoryBlobs()
    kept = Keeping(blobs, BlobLimits(inline=10)).of("u", "e")
    moved = await kept.moved({"a": "x" * 20})
    with pytest.raises(NotFoundError, match=r"the large value [0-9a-f]{12} of execution e2 is gone"):
        await Keeping(blobs).of("u", "e2").whole(moved)
