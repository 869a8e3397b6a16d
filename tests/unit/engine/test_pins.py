from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from livetape.engine.pins import (
    MAX_INDEX,
    MAX_PADDING,
    Selector,
    base_name,
    field_of,
    merge_inputs,
    select_output,
    split_pin,
)
from livetape.errors import BlockInputError


@pytest.mark.parametrize(
    ("pin", "base", "selectors"),
    [
        ("result", "result", ()),
        ("list_$_0", "list", (Selector("$", "0"),)),
        ("values_#_a key", "values", (Selector("#", "a key"),)),
        ("obj_@_x_#_y_$_2", "obj", (Selector("@", "x"), Selector("#", "y"), Selector("$", "2"))),
        ("tricky_#_a_b", "tricky", (Selector("#", "a_b"),)),
        ("_$_0", "_$_0", ()),
        ("a_#_", "a_#_", ()),
        ("a_#__$_0", "a_#__$_0", ()),
        ("a_%_b", "a_%_b", ()),
        ("", "", ()),
    ],
)
def test_a_pin_name_is_a_base_and_selectors_and_a_malformed_one_is_plain(
    pin: str, base: str, selectors: tuple[Selector, ...]
) -> None:
    assert split_pin(pin) == (base, selectors)
    assert base_name(pin) == base


class Model(BaseModel):
    x: int = 1


@dataclass
class Data:
    x: int = 1
    _hidden: int = 2

    @property
    def loud(self) -> int:
        raise AssertionError("properties are never read")


Named = namedtuple("Named", "x")

NESTED = {"a": [{"b": 1}, {"b": None}], "_p": 2, "m": Model(), "d": Data(), "n": Named(1), "t": (5, 6)}


@pytest.mark.parametrize(
    ("name", "value", "source", "fired"),
    [
        ("out", 5, "out", (True, 5)),
        ("out", None, "out", (True, None)),
        ("out", 5, "other", (False, None)),
        ("out_$_0", 5, "out_$_0", (True, 5)),
        ("out", [7, 8], "out_$_1", (True, 8)),
        ("out", [7, 8], "out_$_2", (False, None)),
        ("out", [7, 8], "out_$_-1", (False, None)),
        ("out", [7, 8], "out_$_x", (False, None)),
        ("out", [7, 8], "out_$_" + "9" * 5000, (False, None)),
        ("out", [None], "out_$_0", (False, None)),
        ("out", [0], "out_$_0", (True, 0)),
        ("out", "text", "out_$_0", (False, None)),
        ("out", NESTED, "out_#_a_$_0_#_b", (True, 1)),
        ("out", NESTED, "out_#_a_$_1_#_b", (False, None)),
        ("out", NESTED, "out_#_t_$_1", (True, 6)),
        ("out", NESTED, "out_@_a_$_0_@_b", (True, 1)),
        ("out", NESTED, "out_#__p", (True, 2)),
        ("out", NESTED, "out_@__p", (False, None)),
        ("out", NESTED, "out_@_m_@_x", (True, 1)),
        ("out", NESTED, "out_@_d_@_x", (True, 1)),
        ("out", NESTED, "out_@_n_@_x", (True, 1)),
        ("out", NESTED, "out_@_d_@__hidden", (False, None)),
        ("out", NESTED, "out_@_d_@_loud", (False, None)),
        ("out", NESTED, "out_@_m_@_model_dump", (False, None)),
        ("out", "text", "out_@_upper", (False, None)),
        ("out", NESTED, "out_@___class__", (False, None)),
        ("other", NESTED, "out_#_a", (False, None)),
    ],
)
def test_an_output_fires_its_own_pin_and_selectors_that_lead_to_something(
    name: str, value: Any, source: str, fired: tuple[bool, Any]
) -> None:
    assert select_output(name, value, source) == fired


def test_fields_are_declared_ones_only() -> None:
    assert field_of({"a": 1}, "a") == 1
    assert field_of({"a": 1}, "keys") is None
    assert field_of(5, "real") is None


@pytest.mark.parametrize(
    ("given_values", "merged"),
    [
        ({"a": 1}, {"a": 1}),
        ({"v_#_a": 1, "v_#_b": 2}, {"v": {"a": 1, "b": 2}}),
        ({"v": {"a": 0, "c": 3}, "v_#_a": 1}, {"v": {"a": 1, "c": 3}}),
        ({"l_$_2": "c", "l_$_0": "a"}, {"l": ["a", None, "c"]}),
        ({"l": ["x", "y"], "l_$_1": "z"}, {"l": ["x", "z"]}),
        ({"o_@_x": 1, "o_#_y": 2}, {"o": {"x": 1, "y": 2}}),
        ({"a_#_b_$_1_@_c": 1}, {"a": {"b": [None, {"c": 1}]}}),
        ({"a_#_b": {"x": 1}, "a_#_b_#_y": 2}, {"a": {"b": {"x": 1, "y": 2}}}),
        ({"a_#_b_#_y": 2, "a_#_b": {"x": 1}}, {"a": {"b": {"x": 1, "y": 2}}}),
        ({"a": None, "a_$_0": 1}, {"a": [1]}),
        ({"a_#_": 1}, {"a_#_": 1}),
    ],
)
def test_selectors_on_a_sink_build_containers(given_values: dict[str, Any], merged: dict[str, Any]) -> None:
    assert merge_inputs(given_values) == merged


def test_merging_leaves_the_given_containers_as_they_are() -> None:
    base = {"v": {"a": {"x": [1]}}, "v_#_a_#_x_$_1": 2}
    assert merge_inputs(base) == {"v": {"a": {"x": [1, 2]}}}
    assert base["v"] == {"a": {"x": [1]}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"l_$_x": 1}, "index must be an integer"),
        ({"l_$_1_0": 1}, "index must be an integer"),
        ({"l_$_-1": 1}, "index must be 0 to"),
        ({f"l_$_{MAX_INDEX + 1}": 1}, "index must be 0 to"),
        ({"l_$_" + "9" * 5000: 1}, "index must be an integer"),
        ({"o_@__class__": 1}, "private"),
        ({"a_#_x": 1, "a_$_0": 2}, "make this a dictionary"),
        ({"a": "text", "a_#_x": 1}, "cannot be set in a str"),
        ({"a": {"x": 1}, "a_$_0": 1}, "cannot be set in a dict"),
        ({"a" + "_#_b" * 51: 1}, "selectors"),
        ({f"a_$_{n}_$_{MAX_INDEX}": 1 for n in range(MAX_PADDING // MAX_INDEX)}, "too far apart"),
    ],
)
def test_what_cannot_be_built_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockInputError, match=message):
        merge_inputs(values)


# --- properties --------------------------------------------------------------------------------------------------

plain_names = st.text(st.characters(codec="utf-8", exclude_characters="_"), min_size=1, max_size=5)
steps = st.one_of(
    st.tuples(st.just("$"), st.integers(0, 30).map(str)),
    st.tuples(st.sampled_from("#@"), plain_names),
)
values = st.recursive(
    st.integers() | st.text(max_size=3) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_names, inner, max_size=3),
    max_leaves=6,
)


@given(plain_names, st.lists(steps, min_size=1, max_size=4), values)
def test_what_a_pin_puts_in_the_same_pin_takes_out(base: str, path: list[tuple[str, str]], value: Any) -> None:
    pin = base + "".join(f"_{kind}_{key}" for kind, key in path)
    merged = merge_inputs({pin: value})
    assert list(merged) == [base]
    assert select_output(base, merged[base], pin) == (True, value)


anything = st.recursive(
    st.none() | st.integers() | st.text(max_size=4) | st.floats() | st.builds(object) | st.just(Model()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
pin_names = st.lists(st.sampled_from(["a", "b", "_$_", "_#_", "_@_", "0", "1", "_", "-1", "99999"]), max_size=7).map(
    "".join
)


@given(st.dictionaries(pin_names, anything, max_size=5))
def test_merging_never_fails_but_by_refusing(pins: dict[str, Any]) -> None:
    try:
        merged = merge_inputs(pins)
    except BlockInputError:
        return
    assert set(merged) == {base_name(pin) for pin in pins}


@given(pin_names, anything, pin_names)
def test_selecting_never_fails(name: str, value: Any, source: str) -> None:
    fired, got = select_output(name, value, source)
    assert fired or got is None
