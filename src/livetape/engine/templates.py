"""Text templates: Jinja2 in its sandbox, with a budget so that no template runs long or eats memory.

Three rules bound the cost, and none needs a clock:
1. Values come in as JSON, so a template can reach no object of ours.
2. No value grows above MAX_VALUE. Whatever can make a bigger value from smaller ones (operators, `~`, filters, calls,
   literals, slices) checks before where the growth can be foreseen, and measures afterwards.
3. Everything costs work: each operation, loop turn and character written. A render has MAX_WORK.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, ItemsView, Iterable, KeysView, Mapping, ValuesView
from functools import lru_cache
from types import BuiltinFunctionType, CodeType, MethodType
from typing import Any, Final

from jinja2 import Template, Undefined, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.filters import do_join, make_attrgetter
from jinja2.runtime import Context, LoopContext, Macro, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import Cycler, Joiner, Namespace
from markupsafe import Markup
from pydantic_core import PydanticSerializationError, to_jsonable_python
from typing_extensions import override

from livetape.engine.template_limits import (
    CALL,
    FILTER_GUARDS,
    MAX_INPUT,
    MAX_KEPT,
    MAX_NODES,
    MAX_OUTPUT,
    MAX_TEMPLATE,
    MAX_VALUE,
    MAX_WORK,
    METHOD_GUARDS,
    STEP,
    BoundedFormatter,
    bounded_range,
    check_operands,
    cost_of_numbers,
    failure,
    guard_join,
    kind_of,
    measure,
    percent,
    too_big,
)
from livetape.errors import BlockExecutionError


def render(template: str, values: Mapping[str, Any], *, escape_html: bool = False) -> str:
    """Fill `template` with `values`. Whatever is wrong is a BlockExecutionError of one line."""
    if len(template) > MAX_TEMPLATE:
        raise failure(f"longer than {MAX_TEMPLATE} characters")
    try:
        return _render(template, values, escape_html)
    except BlockExecutionError:
        raise
    except TemplateSyntaxError as error:
        raise failure(f"line {error.lineno}: {error.message}") from None
    except TemplateError as error:
        raise failure(error.message or type(error).__name__) from None
    except (RecursionError, SyntaxError):  # SyntaxError: what Python says of the code that Jinja2 wrote
        raise failure("nested too deeply") from None
    except MemoryError:
        raise failure("too complex") from None
    except Exception as error:  # a template may raise whatever Python's operators and methods raise
        raise failure(f"{type(error).__name__}: {error}") from None


def _render(template: str, values: Mapping[str, Any], escape_html: bool) -> str:
    measure(values, MAX_INPUT, any_kind=True)
    try:
        data = to_jsonable_python(dict(values))
    except PydanticSerializationError as error:
        raise failure(f"a value is not JSON: {error}") from None
    environment = _Environment(autoescape=escape_html)
    code = (_kept_code if len(template) <= MAX_KEPT else _compile)(template, escape_html)
    compiled = Template.from_code(environment, code, environment.make_globals(None))
    written: list[str] = []
    size = 0
    # Not `generate`: it rewrites the trace of an error, which nobody sees here and which costs a second when deep.
    for part in compiled.root_render_func(compiled.new_context(data)):
        size += len(part)
        if size > MAX_OUTPUT:
            raise failure(f"writes more than {MAX_OUTPUT} characters")
        written.append(part)
    return "".join(written)


def _compile(template: str, escape_html: bool) -> CodeType:
    environment = _Environment(autoescape=escape_html)
    tree = environment.parse(template)
    _prepare(tree)
    return environment.compile(tree)


# Compiling takes most of the time of a small template, and one node renders the same one over and over.
_kept_code: Final = lru_cache(maxsize=64)(_compile)


def _prepare(tree: nodes.Template) -> None:
    """Refuse what reaches outside one template, and make every loop turn and macro call pay for its body."""
    for outside in tree.find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport, nodes.Block)):
        name = type(outside).__name__.lower()
        raise TemplateSyntaxError(f"{name} is not available, a template stands alone", outside.lineno)
    if sum(1 for _ in tree.find_all(nodes.Node)) > MAX_NODES:
        raise failure(f"has more than {MAX_NODES} parts")
    for node in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
        assert isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock)
        weight = STEP * (1 + sum(1 for _ in node.find_all(nodes.Node)))
        node.body.insert(0, nodes.Output([_charge("", weight, node.lineno)], lineno=node.lineno))
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.And(_charge(True, weight, node.lineno), node.test, lineno=node.lineno)


def _charge(value: object, weight: int, lineno: int) -> nodes.Expr:
    # The space keeps the name out of reach of a template.
    arguments: list[nodes.Expr] = [nodes.Const(weight, lineno=lineno)]
    return nodes.Filter(nodes.Const(value, lineno=lineno), " charge", arguments, [], None, None, lineno=lineno)


class _Generator(CodeGenerator):
    """Sends through the environment what Jinja2 would compile to plain Python."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        # Nothing is written past `finalize`, not even the text between the tags: it may stand in a loop.
        raise nodes.Impossible

    @override
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.join_parts(context, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    @override
    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._through("weigh", node, super().visit_Getitem, frame)
        else:
            super().visit_Getitem(node, frame)

    @override
    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._through("weigh", node, super().visit_List, frame)

    @override
    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._through("weigh", node, super().visit_Tuple, frame)
        else:
            super().visit_Tuple(node, frame)

    @override
    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._through("weigh", node, super().visit_Dict, frame)

    @override
    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(")
        self._through("compared", node.expr, self.visit, frame)
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")

    @override
    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:
        self.write(f" {_OPERATORS[node.op]} ")
        self._through("compared", node.expr, self.visit, frame)

    def _through(self, method: str, node: nodes.Node, visit: Callable[..., Any], frame: Frame) -> None:
        self.write(f"environment.{method}(")
        visit(node, frame)
        self.write(")")


_OPERATORS: Final = {
    "eq": "==",
    "ne": "!=",
    "gt": ">",
    "gteq": ">=",
    "lt": "<",
    "lteq": "<=",
    "in": "in",
    "notin": "not in",
}


class _Environment(ImmutableSandboxedEnvironment):
    """One render: the rules of the sandbox, and the work that is left."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, *, autoescape: bool) -> None:
        # Without the optimizer nothing is computed while compiling, where no budget holds.
        super().__init__(autoescape=autoescape, optimized=False, finalize=_written, keep_trailing_newline=True)
        self.work = MAX_WORK
        self.globals = {
            "range": bounded_range,
            "dict": dict,
            "namespace": _Namespace,
            "cycler": Cycler,
            "joiner": Joiner,
        }
        self.filters = dict(_FILTERS)
        self.tests = dict(_TESTS)

    def spend(self, work: int) -> None:
        self.work -= work
        if self.work < 0:
            raise failure("takes too much work, make its loops or texts smaller")

    def weigh(self, value: Any) -> Any:
        """Let a new value through if it is not too big; it costs its size."""
        self.spend(STEP + measure(value, MAX_VALUE))
        return value

    def compared(self, value: Any) -> Any:
        self.spend(STEP + _cost_to_compare(value))
        return value

    def join_parts(self, context: Context, parts: tuple[Any, ...]) -> str:
        if sum(measure(part, MAX_VALUE) for part in parts) > MAX_VALUE:
            too_big()
        text: str = markup_join(parts) if context.eval_ctx.autoescape else str_join(parts)
        self.weigh(text)
        return text

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.spend(STEP)
        if operator == "%" and isinstance(left, str):
            return self.weigh(percent(self.spend, left, right))
        check_operands(operator, left, right)
        self.spend(cost_of_numbers(left, right))
        return self.weigh(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            self.compared(argument)  # as a key: Python hashes all of it each time
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """A list of what is allowed: methods that change nothing, and what loops and groups offer."""
        if not super().is_safe_attribute(obj, attr, value):
            return False
        return any(isinstance(obj, kind) and (names is None or attr in names) for kind, names in ATTRIBUTES)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if isinstance(value, BuiltinFunctionType | MethodType) and value.__name__ in ("format", "format_map"):
            text = value.__self__
            if isinstance(text, str):
                return _TextFormat(self, text, value.__name__)
        return None

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.spend(CALL + sum(map(_cost_to_compare, args)))
        if isinstance(obj, BuiltinFunctionType | MethodType):
            owner = obj.__self__
            self.spend(_cost_to_compare(owner) if isinstance(owner, list | tuple) else _cost_to_walk(owner))
            if isinstance(owner, str) and obj.__name__ in METHOD_GUARDS:
                METHOD_GUARDS[obj.__name__](owner, *args)
            elif not isinstance(owner, str | dict | list | tuple | LoopContext | Cycler):
                raise failure(f"{obj.__name__} cannot be called")
        elif not isinstance(obj, _CALLABLE) and obj not in _FUNCTIONS:
            raise failure(f"a {kind_of(obj)} cannot be called")
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, KeysView | ValuesView | ItemsView):
            result = list(result)
        return self.weigh(result)


class _TextFormat:
    """`"...".format` with checked widths and a bounded result."""

    def __init__(self, environment: _Environment, text: str, name: str) -> None:
        self.environment = environment
        self.text = text
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        if self.name == "format_map":
            raise failure("format_map is not available, use format")
        formatter = BoundedFormatter(self.environment.spend, isinstance(self.text, Markup))
        result = formatter.vformat(str(self.text), args, kwargs)
        return Markup(result) if formatter.escape else result  # noqa: S704 (its fields were escaped one by one)


class _Namespace(Namespace):
    def __repr__(self) -> str:
        # The attributes may hold the namespace itself, or hold one another in numbers without end.
        return "namespace"


# What a template may call, besides the methods in ATTRIBUTES.
_CALLABLE: Final = (Macro, LoopContext, Joiner, Undefined, _TextFormat)
_FUNCTIONS: Final = (bounded_range, dict, _Namespace, Cycler, Joiner)


@pass_context
def _written(context: Context, value: Any) -> Any:
    """Jinja2's `finalize`: sees each piece of output before it becomes text."""
    if isinstance(value, Undefined):
        return value
    if not isinstance(value, str | int | float | list | tuple | dict | range | None):
        raise failure(f"a {kind_of(value)} cannot be written, turn it into a list or text")
    _environment(context).weigh(value)
    return value


def _environment(context: Context) -> _Environment:
    assert isinstance(context.environment, _Environment)
    return context.environment


# --- filters and methods -----------------------------------------------------------------------------------------

# fmt: off
FILTERS: Final = frozenset({
    "abs", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "filesizeformat",
    "first", "float", "forceescape", "groupby", "indent", "int", "items", "last", "length", "list", "lower", "map",
    "max", "min", "random", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr",
    "slice", "sort", "string", "title", "tojson", "trim", "truncate", "unique", "upper", "urlencode", "wordcount",
    "wordwrap", "xmlattr",
})

COMPARING: Final = frozenset({"dictsort", "groupby", "max", "min", "sort", "unique"})
_STR_METHODS: Final = frozenset({
    "capitalize", "casefold", "center", "count", "endswith", "find", "format", "index", "isalnum", "isalpha",
    "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "ljust",
    "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust",
    "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
    "zfill",
})

# fmt: on

# Types and what a template may take from them; None: whatever does not start with an underscore.
ATTRIBUTES: Final[tuple[tuple[type, frozenset[str] | None], ...]] = (
    (str, _STR_METHODS),
    (dict, frozenset({"get", "items", "keys", "values"})),
    (list, frozenset({"count", "index"})),
    (tuple, frozenset({"count", "index", "grouper", "list"})),
    (LoopContext, None),
    (Cycler, frozenset({"current", "next", "reset"})),
    (Namespace, None),
    (Macro, frozenset({"name"})),
)


def _metered(
    function: Callable[..., Any], cost: Callable[[Any], int], guard: Callable[..., None] | None = None
) -> Callable[..., Any]:
    """A filter or test that pays for its arguments by `cost` and for its result by size.

    Taking the context also keeps it from running while compiling.
    """
    passes = getattr(function, "jinja_pass_arg", None)
    kind = passes.name if passes is not None else ""

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        environment = _environment(context)
        environment.spend(CALL + sum(map(cost, (value, *args))))
        if guard is not None:
            guard(value, *args, **kwargs)
        if kind:
            first = {"context": context, "eval_context": context.eval_ctx, "environment": environment}[kind]
            result = function(first, value, *args, **kwargs)
        else:
            result = function(value, *args, **kwargs)
        if isinstance(result, Iterable) and not isinstance(result, str | list | tuple | dict | range | Undefined):
            return _paid(environment, result)
        return environment.weigh(result)

    return run


def _cost_to_walk(value: Any) -> int:
    if isinstance(value, str):
        return len(value) // 16
    return len(value) if isinstance(value, list | tuple | dict | range) else 0


def _cost_to_compare(value: Any) -> int:
    return (len(value) if isinstance(value, str) else measure(value, MAX_INPUT)) // 16


def _paid(environment: _Environment, items: Iterable[Any]) -> Generator[Any, None, None]:
    for item in items:
        environment.weigh(item)
        yield item


@pass_context
def _charge_work(context: Context, value: Any, work: int) -> Any:
    _environment(context).spend(work)
    return value


@pass_context
def _sum(context: Context, items: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    """Adds like the operator does, so that texts and lists cannot grow unseen."""
    environment = _environment(context)
    take = make_attrgetter(environment, attribute) if attribute is not None else None
    for item in items:
        start = environment.call_binop(context, "+", start, take(item) if take else item)
    return start


@pass_context
def _join(context: Context, items: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> str:
    environment = _environment(context)
    take = make_attrgetter(environment, attribute) if attribute is not None else None
    parts = [take(item) if take else item for item in items]
    guard_join(d if isinstance(d, str) else str(d), parts)
    text: str = do_join(context.eval_ctx, parts, d)
    return text


@pass_context
def _format(context: Context, text: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise failure("format takes positions or names, not both")
    return percent(_environment(context).spend, text if isinstance(text, str) else str(text), kwargs or args)


def _striptags(value: Any) -> str:
    """Text without comments and tags, blanks run together; in one pass, where a pattern could take for ever."""
    text = value.__html__() if hasattr(value, "__html__") else str(value)
    for opening, closing in (("<!--", "-->"), ("<", ">")):
        parts: list[str] = []
        position = 0
        while (start := text.find(opening, position)) >= 0:
            end = text.find(closing, start)
            if end < 0:
                break
            parts.append(text[position:start])
            position = end + len(closing)
        text = "".join([*parts, text[position:]])
    return Markup(" ".join(text.split())).unescape()  # noqa: S704 (unescape gives plain text)


def _all_filters() -> dict[str, Callable[..., Any]]:
    functions: dict[str, Any] = {name: JINJA_FILTERS[name] for name in FILTERS}
    functions |= {"striptags": _striptags, "sum": _sum, "join": _join, "format": _format, " charge": _charge_work}
    return {
        name: _metered(function, _cost_to_compare if name in COMPARING else _cost_to_walk, FILTER_GUARDS.get(name))
        for name, function in functions.items()
    }


def _all_tests() -> dict[str, Callable[..., Any]]:
    functions: dict[str, Any] = dict(JINJA_TESTS)
    return {name: _metered(function, _cost_to_compare) for name, function in functions.items()}


_FILTERS: Final = _all_filters()
_TESTS: Final = _all_tests()
