from __future__ import annotations

import contextlib
import math
import time
from datetime import date, datetime
from enum import Enum, StrEnum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from livetape.engine.block import BlockSchema
from livetape.engine.coerce import MAX_JSON, coerce_input, convert, fits
from livetape.errors import BlockInputError


class Colour(StrEnum):
    RED = "red"


class Level(Enum):
    LOW = 1


class Point(BaseModel):
    x: int


@pytest.mark.parametrize(
    ("value", "wanted", "converted"),
    [
        # numbers
        (" 12 ", int, 12),
        ("12.0", int, 12),
        (12.0, int, 12),
        (True, int, 1),
        ("1" * 40, int, int("1" * 40)),
        ("-2.5e3", float, -2500.0),
        (3, float, 3.0),
        ("inf", float, math.inf),
        # truth
        ("TRUE", bool, True),
        ("off", bool, False),
        ("", bool, False),
        (0, bool, False),
        (2, bool, True),
        # text
        (12, str, "12"),
        (1.5, str, "1.5"),
        (True, str, "true"),
        ([1, "a"], str, '[1,"a"]'),
        ({"a": None}, str, '{"a":null}'),
        (date(1865, 11, 26), str, "1865-11-26"),
        (Colour.RED, str, "red"),
        # containers
        ("one", list[str], ["one"]),
        (5, list[str], ["5"]),
        ("[1, 2]", list[int], [1, 2]),
        ('["1", "2"]', list[int], [1, 2]),
        ("[broken", list[str], ["[broken"]),
        ((1, 2), list[Any], [1, 2]),
        ({"a": 1}, list[Any], [{"a": 1}]),
        ('{"a": "1"}', dict[str, int], {"a": 1}),
        ({1: "2"}, dict[str, int], {"1": 2}),
        ([1, ["2"]], list[list[int]], [[1], [2]]),
        (Point(x=1), dict, {"x": 1}),
        # choices and models
        ("1", Literal[1, 2], 1),
        (1, Level, 1),
        ("1", Level, 1),
        ('{"x": 1}', Point, {"x": 1}),
        ("5", Annotated[int, Field(ge=1)], 5),
        # members of a union stay
        ("5", int | str, "5"),
        (5, str | int, 5),
        (None, int | None, None),
        ("5", int | None, 5),
        ([1, 2], list[int] | str, [1, 2]),
        (["1"], list[int] | dict[str, int], [1]),
        ('{"x": 1}', Point | None, {"x": 1}),
        ("x", Any, "x"),
    ],
)
def test_values_become_what_is_wanted(value: Any, wanted: Any, converted: Any) -> None:
    got = convert(value, wanted)
    assert got == converted
    assert type(got) is type(converted)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("many", int),
        ("1.5", int),
        (1.5, int),
        (math.nan, int),
        (math.inf, int),
        ("9" * 5000, int),
        (10**400, float),
        ("perhaps", bool),
        (math.nan, bool),
        (None, str),
        (None, list[int]),
        ([1], int),
        ("[1]", dict[str, int]),
        ("blue", Colour),
        ("x", Literal["a"]),
        (object(), str),
        ("__import__('os').getcwd()", list[int] | dict[str, int]),
    ],
)
def test_what_has_no_plain_meaning_stays_as_it_is(value: Any, wanted: Any) -> None:
    got = convert(value, wanted)
    assert got is value or wanted == list[int] | dict[str, int]


def test_a_number_with_more_digits_than_python_writes_stays() -> None:
    huge = 10**5000
    assert convert(huge, str) is huge


def test_a_union_member_inside_a_container_stays() -> None:
    assert convert(["1", 2], list[str | int]) == ["1", 2]
    assert fits(["1", 2], list[str | int])
    assert not fits([True], list[int])


class Input(BlockSchema):
    number: int
    words: list[str] = Field(default_factory=list)
    options: dict[str, float] = Field(default_factory=dict)
    colour: Colour = Colour.RED
    limited: Annotated[list[int], Field(max_length=2)] = Field(default_factory=list)
    when: datetime | None = None


def test_pins_with_selectors_are_merged_and_converted() -> None:
    data = coerce_input(Input, {"number": "3", "words_$_1": 5, "words_$_0": "a", "options_#_x": "1.5", "unknown": 1})
    assert data == Input(number=3, words=["a", "5"], options={"x": 1.5})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "number: this field is required"),
        ({"number": "many"}, "number: should be a valid integer"),
        ({"number": 1, "words_$_2": "c"}, "words: item 0 should be a valid string"),
        ({"number": 1, "colour": "blue"}, "colour: should be 'red'"),
        ({"number": 1, "limited": [1, 2, 3]}, "limited: list should have at most 2 items"),
        ({"number": 1, "when": "tea time"}, "when: "),
        ({"number": None, "colour": "blue"}, "number: .*; colour: "),
    ],
)
def test_every_pin_that_does_not_fit_is_named_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockInputError, match=message) as caught:
        coerce_input(Input, values)
    assert "\n" not in str(caught.value)


def test_the_refused_value_is_not_shown() -> None:
    with pytest.raises(BlockInputError) as caught:
        coerce_input(Input, {"number": "hunter2-secret"})
    assert "hunter2" not in str(caught.value)


def test_long_and_deep_texts_are_not_parsed() -> None:
    long = "[" + "1," * (MAX_JSON // 2) + "1]"
    assert convert(long, list[Any]) == [long]
    deep = "[" * 100_000
    assert convert(deep, list[Any]) == [deep]
    started = time.perf_counter()
    assert convert("9" * 1_000_000, int) == "9" * 1_000_000
    assert time.perf_counter() - started < 5


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
wanted_types = st.sampled_from(
    [
        int,
        float,
        bool,
        str,
        list[int],
        dict[str, list[str]],
        list[str | int],
        int | None,
        Colour,
        Literal["a", 1],
        Point,
    ]
)


@given(st.dictionaries(st.sampled_from(["number", "words", "options", "colour", "when", "words_$_0"]), anything))
def test_coercing_never_fails_but_by_refusing(values: dict[str, Any]) -> None:
    with contextlib.suppress(BlockInputError):
        assert isinstance(coerce_input(Input, values), Input)


@given(anything, wanted_types)
def test_converting_twice_changes_nothing_more(value: Any, wanted: Any) -> None:
    once = convert(value, wanted)
    assert repr(convert(once, wanted)) == repr(once)


@given(st.integers() | st.text() | st.lists(st.integers()) | st.dictionaries(st.text(), st.integers()) | st.booleans())
def test_what_fits_is_not_touched(value: Any) -> None:
    wanted = type(value)
    assert convert(value, wanted) == value
    assert fits(value, wanted)
