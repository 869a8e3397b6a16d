"""From what arrives on the pins to the model that a block declares. Pure, lenient, never `eval`.

Text becomes a number, a truth value or a JSON container, a number becomes text, a single value a list of one, inner
elements too; a value that already fits stays as it is. What does not fit is refused, naming the pin.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticSerializationError, from_json, to_json

from livetape.engine.block import BlockSchema
from livetape.engine.pins import merge_inputs
from livetape.errors import BlockInputError

MAX_JSON = 1024 * 1024
MAX_DIGITS = 1000
MAX_LISTED = 5
# Elements of larger containers are left as they are: looking at each would hold up everybody else.
MAX_CONVERTED = 20_000

TRUE_WORDS = frozenset({"true", "1", "yes", "on"})
FALSE_WORDS = frozenset({"false", "0", "no", "off", ""})


def coerce_input(model: type[BlockSchema], values: Mapping[str, Any]) -> BlockSchema:
    """The block's input from pin values, selectors in pin names included; BlockInputError says what does not fit."""
    merged = merge_inputs(values)
    for name, field in model.model_fields.items():
        _check_length(name, merged.get(name), field)
    prepared = {
        name: convert(merged[name], _annotation(field.annotation))
        for name, field in model.model_fields.items()
        if name in merged
    }
    try:
        return model.model_validate(prepared)
    except ValidationError as error:
        raise BlockInputError(_summary(error)) from None


def _check_length(name: str, value: Any, field: FieldInfo) -> None:
    """Refuse what is too long before anybody looks at its parts: a million wrong items would be a million findings."""
    if not isinstance(value, str | list | tuple | dict) or len(value) <= MAX_LISTED:
        return
    limit = max(_limits(field.annotation, field.metadata, type(value)), default=len(value))
    if len(value) > limit:
        unit = "characters" if isinstance(value, str) else "items"
        raise BlockInputError(f"{name}: at most {limit} {unit} are allowed, not {len(value)}")


def _limits(wanted: Any, metadata: Iterable[Any], kind: type) -> Iterator[int]:
    """The largest lengths that a value of this kind may have, one for each way in which it may be meant."""
    if get_origin(wanted) is Annotated:
        wanted, *more = get_args(wanted)
        yield from _limits(wanted, [*metadata, *more], kind)
    elif get_origin(wanted) in {Union, types.UnionType}:
        for member in get_args(wanted):
            yield from _limits(member, (), kind)
    elif (get_origin(wanted) or wanted) is (list if kind is tuple else kind):
        found = [limit for part in metadata for limit in _max_lengths(part)]
        yield min(found, default=sys.maxsize)


def _max_lengths(part: Any) -> Iterator[int]:
    for constraint in part.metadata if isinstance(part, FieldInfo) else (part,):
        limit = getattr(constraint, "max_length", None)
        if isinstance(limit, int):
            yield limit


def convert(value: Any, wanted: Any) -> Any:
    """`value` as the type `wanted` if there is a plain way to see it so, otherwise `value` itself."""
    if wanted is Any:
        return value
    wanted = _annotation(wanted)
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is Union or origin is types.UnionType:
        return _to_union(value, arguments)
    if origin is Literal:
        return next((option for option in arguments if _same_text(option, value)), value)
    if not isinstance(origin or wanted, type):
        return value
    kind: type = origin or wanted
    if kind is bool:
        return _to_bool(value)
    if kind is int or kind is float:
        return _to_number(value, kind)
    if kind is str:
        return _to_text(value)
    if issubclass(kind, list):
        return _to_list(value, arguments)
    if issubclass(kind, dict):
        return _to_dict(value, arguments)
    if issubclass(kind, Enum):
        return next((option.value for option in kind if _same_text(option.value, value)), value)
    if _is_model(kind) and isinstance(value, str):
        parsed = parse_json(value)
        return parsed if isinstance(parsed, dict) else value
    return value


def fits(value: Any, wanted: Any) -> bool:
    """Whether `value` is of the type `wanted` already, elements included."""
    wanted = _annotation(wanted)
    origin, arguments = get_origin(wanted), get_args(wanted)
    if wanted is Any or wanted is object:
        return True
    if origin is Union or origin is types.UnionType:
        return any(fits(value, member) for member in arguments)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in arguments)
    if wanted is None:
        return value is None
    kind = origin or wanted
    if not isinstance(kind, type) or not isinstance(value, kind):
        return False
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, list | dict) and len(value) > MAX_CONVERTED:
        return True
    if isinstance(value, list) and arguments:
        return all(fits(item, arguments[0]) for item in value)
    if isinstance(value, dict) and arguments:
        return all(fits(key, arguments[0]) and fits(item, arguments[1]) for key, item in value.items())
    return True


def parse_json(text: str) -> Any:
    """The value that a JSON text stands for; the text itself if it is none, or longer than 1 MiB."""
    if len(text) > MAX_JSON:
        return text
    try:
        return from_json(text)
    except (ValueError, TypeError):  # the latter for half a character
        return text


def _annotation(wanted: Any) -> Any:
    while get_origin(wanted) is Annotated:
        wanted = get_args(wanted)[0]
    return wanted


def _to_union(value: Any, members: tuple[Any, ...]) -> Any:
    if any(fits(value, member) for member in members):
        return value
    for member in members:
        converted = convert(value, member)
        if fits(converted, member) or (converted is not value and _is_model(member)):
            return converted
    return value


def _is_model(wanted: Any) -> bool:
    """Whether pydantic makes an object of a dictionary here."""
    return isinstance(wanted, type) and issubclass(wanted, BaseModel)


def _to_bool(value: Any) -> Any:
    if isinstance(value, str):
        word = value.strip().lower()
        return True if word in TRUE_WORDS else False if word in FALSE_WORDS else value
    if isinstance(value, int | float) and not (isinstance(value, float) and math.isnan(value)):
        return bool(value)
    return value


def _to_number(value: Any, kind: type[int] | type[float]) -> Any:
    """A whole number stays exact; a fraction is never cut off to make one."""
    if isinstance(value, str):
        text = value.strip()
        if len(text) > MAX_DIGITS:
            return value
        try:
            number: int | float = int(text)
        except ValueError:
            try:
                number = float(text)
            except ValueError:
                return value
    elif isinstance(value, int | float):
        number = value
    else:
        return value
    if kind is int:
        return int(number) if isinstance(number, int) or number.is_integer() else value
    try:
        return float(number)
    except OverflowError:
        return value


def _to_text(value: Any) -> Any:
    """Containers and truth values as JSON, as the console shows them; None is not text."""
    if value is None or type(value) is str:
        return value
    if isinstance(value, Enum):
        return _to_text(value.value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bool | list | tuple | dict | BaseModel):
        try:
            return to_json(value, inf_nan_mode="constants").decode()
        except (PydanticSerializationError, ValueError, RecursionError):
            return value
    if isinstance(value, int | float):
        try:
            return str(value)
        except ValueError:  # more digits than Python writes
            return value
    return value


def _to_list(value: Any, arguments: tuple[Any, ...]) -> Any:
    if value is None:
        return value
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_json(value)
    items = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
    if not arguments or len(items) > MAX_CONVERTED:
        return items
    return [convert(item, arguments[0]) for item in items]


def _to_dict(value: Any, arguments: tuple[Any, ...]) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = parse_json(value)
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if not isinstance(value, dict) or not arguments or len(value) > MAX_CONVERTED:
        return value
    return {convert(key, arguments[0]): convert(item, arguments[1]) for key, item in value.items()}


def _same_text(option: Any, value: Any) -> bool:
    if isinstance(value, Enum):
        value = value.value
    return type(value) in (str, int, float, bool) and _to_text(option) == _to_text(value)


def _summary(error: ValidationError) -> str:
    """One line, the first finding of each pin. The values stay out: they may be secret or long."""
    found: dict[str, str] = {}
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        found.setdefault(str(detail["loc"][0]) if detail["loc"] else "input", _finding(detail))
    listed = [f"{pin}: {text}" for pin, text in list(found.items())[:MAX_LISTED]]
    more = len(found) - len(listed)
    return "; ".join(listed) + (f"; and {more} more" if more else "")


def _finding(detail: ErrorDetails) -> str:
    if detail["type"] == "missing" and len(detail["loc"]) == 1:
        return "this field is required"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("\n", " ")
    message = message[:1].lower() + message[1:200]
    if len(detail["loc"]) > 1 and isinstance(detail["loc"][1], int):
        return f"item {detail['loc'][1]} {message}"
    return message
