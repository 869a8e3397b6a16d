"""What a template may grow to: sizes, and the checks before anything grows. Pure.

Every refusal is a BlockExecutionError of one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any, Final, NoReturn

from jinja2 import Undefined
from markupsafe import Markup

from livetape.errors import BlockExecutionError

MAX_TEMPLATE = 100_000
# The compiled form of templates up to this length is kept.
MAX_KEPT = 4_000
# Compiling takes longer than running, in proportion to this.
MAX_NODES = 20_000
MAX_INPUT = 4 * 1024 * 1024
MAX_VALUE = 1024 * 1024
MAX_OUTPUT = 1024 * 1024
MAX_RANGE = 100_000
MAX_BITS = 4096
# More than any number in JSON that Python reads. Division takes the product of both lengths, and nobody else's turn.
MAX_NUMBER_BITS = 16_384
MAX_WIDTH = 1000
MAX_WORK = 8 * 1024 * 1024
MAX_ERROR = 300

# In units of one character written.
STEP: Final = 10
CALL: Final = 40
# A place in a container, which is what 8 characters take.
PLACE: Final = 8

# `wordwrap` copies the rest of a long word for each line it cuts off.
MAX_WRAPPED = 20_000


def failure(text: str) -> BlockExecutionError:
    return BlockExecutionError(f"template: {' '.join(text.split())}"[:MAX_ERROR])


def too_big(limit: int = MAX_VALUE) -> NoReturn:
    raise failure(f"a value is bigger than {limit} characters")


def kind_of(value: object) -> str:
    return type(value).__name__.lstrip("_").lower()


def measure(value: Any, limit: int, *, any_kind: bool = False) -> int:
    """The size of a value in characters of text, at least; refused as soon as it passes `limit`.

    Shared parts count as often as they are used, for that is how often they would be written. Containers may hold
    JSON only: a generator or function would show its address in memory. `any_kind` takes whatever comes.
    """
    size = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, Mapping):
            size += PLACE * len(item)
            waiting.extend(item.keys())
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            size += PLACE * len(item)
            waiting.extend(item)
        elif isinstance(item, range):
            size += PLACE * len(item)
        elif isinstance(item, int) and not any_kind:
            check_number(item)
            size += 1
        elif any_kind or item is value or item is None or isinstance(item, float | Undefined):
            size += 1
        else:
            raise failure(f"a {kind_of(item)} cannot be put into a list or dictionary")
        if size > limit:
            too_big(limit)
    return size


def check_number(number: int) -> None:
    if number.bit_length() > MAX_NUMBER_BITS:
        raise failure("a number is too big")


class BoundedFormatter(Formatter):
    def __init__(self, spend: Callable[[int], None], escape: bool) -> None:
        self.spend = spend
        self.escape = escape
        self.size = 0

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        # Fields are plain names or positions: `{a.b}` would reach attributes past the sandbox.
        if re.search(r"[.\[]", field_name):
            raise failure("format takes plain names only, as in {name}")
        return self.get_value(int(field_name) if field_name.isdecimal() else field_name, args, kwargs), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        _check_widths(format_spec)
        text = str(value) if not format_spec else format(value, format_spec)
        if self.escape:
            text = str(Markup.escape(value if not format_spec else text))
        self.size += len(text)
        if self.size > MAX_VALUE:
            too_big()
        self.spend(STEP + len(text))
        return text


# --- operators ---------------------------------------------------------------------------------------------------


def cost_of_numbers(left: Any, right: Any) -> int:
    """Of an operation on two numbers, beside that of any operation."""
    if not isinstance(left, int) or not isinstance(right, int):
        return 0
    return (left.bit_length() * right.bit_length()) >> 16


def check_operands(operator: str, left: Any, right: Any) -> None:
    for operand in (left, right):
        if isinstance(operand, int):
            check_number(operand)
    if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        if len(left) + len(right) > MAX_VALUE:
            too_big()
    elif operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                if measure(sequence, MAX_VALUE) * times > MAX_VALUE:
                    too_big()
                return
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MAX_BITS:
            raise failure("a number is too big")
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):  # noqa: SIM102 (one arm per operator)
        if left.bit_length() * abs(right) > MAX_BITS:
            raise failure("a number is too big")


_CONVERSION = re.compile(
    r"%(?:\((?P<key>[^()]{0,200})\))?(?P<flags>[-+ #0]{0,5})(?P<width>[0-9]{0,5})(?P<precision>(?:\.[0-9]{0,5})?)"
    r"(?P<kind>[diouxXeEfFgGcrsa%])"
)


def percent(spend: Callable[[int], None], text: str, arguments: Any) -> str:
    """`text % arguments`, one conversion after the other so that the result cannot explode."""
    escape = isinstance(text, Markup)
    positional = iter(arguments if isinstance(arguments, tuple) else (arguments,))
    parts: list[str] = []
    position = size = 0
    for match in _CONVERSION.finditer(text):
        between = text[position : match.start()]
        if "%" in between:
            break
        position = match.end()
        _check_widths(match["width"] + match["precision"])
        if match["kind"] == "%":
            piece = "%"
        else:
            if match["key"] is not None:
                value = arguments[match["key"]]
            else:
                try:
                    value = next(positional)
                except StopIteration:
                    raise failure("not enough arguments for the format text") from None
            spec = f"%{match['flags']}{match['width']}{match['precision']}{match['kind']}"
            piece = spec % (value,)
            if escape and not (match["kind"] == "s" and hasattr(value, "__html__")):
                piece = str(Markup.escape(piece))
        parts += [between, piece]
        size += len(between) + len(piece)
        if size > MAX_VALUE:
            too_big()
        spend(STEP + len(piece))
    rest = text[position:]
    if "%" in rest:
        raise failure("unknown format after '%'")
    result = "".join([*parts, rest])
    return Markup(result) if escape else result  # noqa: S704 (its parts were escaped one by one)


def _check_widths(spec: str) -> None:
    if any(len(digits) > 4 or int(digits) > MAX_WIDTH for digits in re.findall(r"[0-9]+", spec)):
        raise failure(f"a width is more than {MAX_WIDTH}")


def bounded_range(*args: int) -> range:
    numbers = range(*args)
    try:
        size = len(numbers)
    except OverflowError:
        size = MAX_RANGE + 1
    if size > MAX_RANGE:
        raise failure(f"range has more than {MAX_RANGE} numbers")
    return numbers


def _check_width(width: Any) -> None:
    if not isinstance(width, int) or abs(width) > MAX_WIDTH:
        raise failure(f"a width is more than {MAX_WIDTH}")


def _guard_width(_value: Any, width: Any = 80, *_fill: Any) -> None:
    _check_width(width)


def _guard_indent(value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> None:
    size = len(width) if isinstance(width, str) else width
    _check_width(size)
    text = str(value)
    if len(text) + (len(text.splitlines()) + 1) * size > MAX_VALUE:
        too_big()


def _guard_replace(value: Any, old: Any, new: Any, count: Any = None) -> None:
    text, old, new = str(value), str(old), str(new)
    times = text.count(old)
    if isinstance(count, int) and count >= 0:
        times = min(times, count)
    if len(text) + times * (len(new) - len(old)) > MAX_VALUE:
        too_big()


def guard_join(delimiter: str, items: Any) -> None:
    if not isinstance(items, str | list | tuple | dict):
        raise failure("join needs a list")
    if measure(items, MAX_VALUE) + len(delimiter) * len(items) > MAX_VALUE:
        too_big()


def _guard_batch(_value: Any, linecount: Any, fill_with: Any = None) -> None:
    _check_places(linecount)


def _guard_slice(_value: Any, slices: Any, fill_with: Any = None) -> None:
    _check_places(slices)


def _check_places(places: Any) -> None:
    if not isinstance(places, int) or not 0 < places <= MAX_WIDTH:
        raise failure(f"a number of places must be 1 to {MAX_WIDTH}")


def _guard_round(_value: Any, precision: Any = 0, method: str = "common") -> None:
    if not isinstance(precision, int) or abs(precision) > 30:
        raise failure("round takes at most 30 digits")


def _guard_tojson(_value: Any, indent: Any = None) -> None:
    if indent is not None and (not isinstance(indent, int) or not 0 <= indent <= 16):
        raise failure("tojson takes an indent of at most 16")


def _guard_wordwrap(
    value: Any,
    width: Any = 79,
    break_long_words: bool = True,
    wrapstring: Any = None,
    break_on_hyphens: bool = True,
) -> None:
    _check_places(width)
    if len(str(value)) > MAX_WRAPPED or len(str(wrapstring or "")) > 20:
        raise failure(f"wordwrap takes at most {MAX_WRAPPED} characters")


FILTER_GUARDS: Final[Mapping[str, Callable[..., None]]] = {
    "center": _guard_width,
    "indent": _guard_indent,
    "replace": _guard_replace,
    "batch": _guard_batch,
    "slice": _guard_slice,
    "round": _guard_round,
    "tojson": _guard_tojson,
    "wordwrap": _guard_wordwrap,
}
METHOD_GUARDS: Final[Mapping[str, Callable[..., None]]] = {
    "center": _guard_width,
    "ljust": _guard_width,
    "rjust": _guard_width,
    "zfill": _guard_width,
    "replace": _guard_replace,
    "join": guard_join,
}
