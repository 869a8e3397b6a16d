"""Names of keys, and offsets as entry ids and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from livetape.adapters.redis.keys import (
    FIRST_TIME,
    id_after,
    id_of,
    is_job_tape,
    is_number,
    is_time,
    keys_of,
    offset_of,
    score_of,
    tape_of_meta,
    writer_key,
)
from livetape.adapters.redis.scripts import NAMES, header, text_of
from livetape.errors import LogError
from livetape.events.channel import job_tape
from livetape.events.log import Position

numbers = st.integers(1, FIRST_TIME - 1)
times = st.tuples(st.integers(FIRST_TIME, (1 << 42) - 1), st.integers(0, 2047))


@given(numbers)
def test_a_number_of_the_log_is_an_id_and_back(offset: int) -> None:
    assert offset_of(id_of(offset)) == offset
    assert is_number(id_of(offset).encode())
    assert not is_time(offset)
    assert Position.parse(str(Position("e", offset))).offset == offset


@given(times)
def test_an_id_of_the_server_is_an_offset_and_back(parts: tuple[int, int]) -> None:
    entry_id = f"{parts[0]}-{parts[1]}"
    offset = offset_of(entry_id.encode())
    assert id_of(offset) == entry_id
    assert is_time(offset)
    assert not is_number(entry_id.encode())
    assert Position.parse(str(Position("e", offset))).offset == offset
    assert 0 < offset < 1 << 63


@given(st.one_of(numbers.map(lambda n: (n, 0)), times), st.one_of(numbers.map(lambda n: (n, 0)), times))
def test_the_order_of_ids_is_the_order_of_offsets_and_of_scores(one: tuple[int, int], two: tuple[int, int]) -> None:
    first, second = (offset_of(f"{high}-{low}") for high, low in (one, two))
    assert (first < second) == (one < two)
    assert (score_of(first) < score_of(second)) == (one < two)
    assert float(score_of(first)) == score_of(first)


@given(st.one_of(numbers.map(lambda n: (n, 0)), times))
def test_what_comes_after_an_offset_begins_behind_its_entry(parts: tuple[int, int]) -> None:
    high, low = id_after(offset_of(f"{parts[0]}-{parts[1]}")).split("-")
    assert (int(high), int(low)) == ((parts[0] + 1, 0) if parts[0] < FIRST_TIME else (parts[0], parts[1] + 1))


@given(st.text("abc:|%é ", min_size=1))
def test_all_keys_of_a_tape_share_a_slot(tape: str) -> None:
    keys = (*keys_of(tape), writer_key(tape, "w"))
    assert {key_slot(key.encode()) for key in keys} == {key_slot(tape.encode())}
    assert tape_of_meta(keys[1]) == tape


@pytest.mark.parametrize("tape", ["", "a{b}", "}a", "{"])
def test_names_that_would_not_are_refused(tape: str) -> None:
    with pytest.raises(LogError):
        keys_of(tape)


def test_a_job_is_known_by_its_name() -> None:
    assert is_job_tape(job_tape("a"))
    assert not is_job_tape("job_event:a")


def test_the_scripts_are_in_the_package() -> None:
    for name in NAMES:
        assert text_of(name).startswith("-- ")
    assert header("ab", safe=True, promoted=False).splitlines() == ["local RUN = '1ab'", "local PROMOTED = false"]
