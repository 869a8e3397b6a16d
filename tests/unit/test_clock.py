"""Ids and epochs."""

from __future__ import annotations

import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from livetape.clock import IdFactory, IdPool, new_epoch, new_id


@pytest.mark.parametrize("make", [new_id, IdPool()], ids=["one", "pool"])
def test_ids_are_version_7_in_the_order_of_time(make: IdFactory) -> None:
    ids = [make() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(uuid.UUID(one).version == 7 and uuid.UUID(one).variant == uuid.RFC_4122 for one in ids)
    assert [one[:13] for one in ids] == sorted(one[:13] for one in ids)
    assert ids[0] == str(uuid.UUID(ids[0]))


def test_threads_never_draw_the_same_bits() -> None:
    pool = IdPool()
    with ThreadPoolExecutor(8) as threads:
        drawn = list(threads.map(lambda _: pool()[14:], range(20_000)))
    assert len(set(drawn)) == len(drawn)


def test_a_forked_process_draws_its_own() -> None:
    pool = IdPool()
    pool()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # straight out: nothing of this process may run its end there
        os.write(writing, pool()[14:].encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as told:
        assert told.read() != pool()[14:]


def test_epochs_have_no_dash() -> None:
    epochs = {new_epoch() for _ in range(200)}
    assert len(epochs) == 200
    assert not any("-" in epoch for epoch in epochs)
