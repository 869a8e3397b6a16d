from __future__ import annotations

import resource
import time
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livetape.engine.template_limits import MAX_WORK
from livetape.engine.templates import render
from livetape.errors import BlockExecutionError

BIG = "x" * 900_000

VALUES: dict[str, Any] = {
    "name": "Ann",
    "xs": [1, 2, 3],
    "d": {"a": 1, "items": 5, "_p": 6},
    "rows": [{"n": "a", "v": 1}, {"n": "b", "v": 2}],
    "words": ["b", "a", "C"],
    "big": BIG,
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("", ""),
        ("Hi {{ name }}!\n", "Hi Ann!\n"),
        (
            "{% for x in xs %}{{ loop.index }}/{{ loop.length }}={{ x }} {% else %}none{% endfor %}",
            "1/3=1 2/3=2 3/3=3 ",
        ),
        ("{% for x in [] %}{{ x }}{% else %}none{% endfor %}", "none"),
        ("{% for x in xs if x is odd %}{{ x }}{% endfor %}", "13"),
        ("{% for k, v in d.items() %}{{ k }}{% endfor %}{{ d['items'] }}{{ d._p }}", "aitems_p56"),
        ("{{ xs|join(', ') }} {{ ', '.join(words) }}", "1, 2, 3 b, a, C"),
        ("{{ rows|map(attribute='n')|join('-') }} {{ rows|sum(attribute='v') }}", "a-b 3"),
        ("{{ rows|selectattr('v', 'gt', 1)|list }}", "[{'n': 'b', 'v': 2}]"),
        ("{% for g in rows|groupby('n') %}{{ g.grouper }}{{ g.list|length }}{% endfor %}", "a1b1"),
        ("{{ words|sort|list }} {{ words|unique|list|length }} {{ xs|reverse|list }}", "['a', 'b', 'C'] 3 [3, 2, 1]"),
        ("{{ xs|batch(2)|list }}{{ xs|slice(2)|list }}", "[[1, 2], [3]][[1, 2], [3]]"),
        (
            "{{ '%05.2f'|format(3.14159) }} {{ '%s has %d%%' % (name, 5) }} {{ '%(a)s'|format(a=1) }}",
            "03.14 Ann has 5% 1",
        ),
        ("{{ '{:,.2f} {n}'.format(12345.678, n=name) }}", "12,345.68 Ann"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) }}{{ m('a') }}", "<1><a>"),
        ("{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}in{% endcall %}", "[in]"),
        ("{% set ns = namespace(t=0) %}{% for x in xs %}{% set ns.t = ns.t + x %}{% endfor %}{{ ns.t }}", "6"),
        ("{% for x in [[1, [2]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}", "12"),
        ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}", "aba"),
        ("{% set j = joiner('-') %}{% for x in xs %}{{ j() }}{{ x }}{% endfor %}", "1-2-3"),
        ("{% set t %}abc{{ name }}{% endset %}{{ t|length }} {% filter upper %}up{% endfilter %}", "6 UP"),
        ("{{ missing }}|{{ missing|default('none') }}|{{ missing is defined }}", "|none|False"),
        ("{{ name.lower() }} {{ name[0:2] }} {{ name ~ 1 }} {{ name|replace('A', 'a') }}", "ann An Ann1 ann"),
        (
            "{{ 2 ** 10 }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 1 < 2 < 3 }} {{ 2 in xs }} {{ 9 not in xs }}",
            "1024 3 3 True True True",
        ),
        ("{{ '<b>x</b> <!-- c --> y &amp; z < 3'|striptags }}", "x y & z < 3"),
        ("{{ d|tojson }}", '{"_p": 6, "a": 1, "items": 5}'),
        ("{{ big|length }} {{ big[:3] }} {{ 'a b c'|wordcount }} {{ 2.345|round(1) }}", "900000 xxx 3 2.3"),
        ("{{ '<' }}{% autoescape true %}{{ '<' }}{% endautoescape %}", "<&lt;"),
    ],
)
def test_templates_do_what_people_write_them_for(template: str, text: str) -> None:
    assert render(template, VALUES) == text


def test_values_become_json_first() -> None:
    assert render("{{ day }} {{ sorted[0] }}", {"day": date(1865, 11, 26), "sorted": (1, 2)}) == "1865-11-26 1"


def test_values_are_escaped_for_html_and_the_template_is_not() -> None:
    e, q = "&lt;b&gt;", "&#39;&lt;b&gt;&#39;"
    for template, text in {
        "<p>{{ x }}": f"<p>{e}",
        "{{ x|safe }}": "<b>",
        "{{ '%s'|format(x) }}": e,
        "{{ x ~ '<' }}": f"{e}&lt;",
        "{{ '{}'.format(x) }}": e,
        "{{ ('<i>%s %r</i>'|safe) % (x, x) }}": f"<i>{e} {q}</i>",
        "{{ ('<i>{} {!r}</i>'|safe).format(x, x) }}": f"<i>{e} {q}</i>",
        "{{ ('<i>{:>5}</i>'|safe).format(x) }}": f"<i>  {e}</i>",
        "{{ [x, x]|join('<') }}": f"{e}&lt;{e}",
        "{% set y %}<q>{{ x }}{% endset %}{{ y }}": f"<q>{e}",
        "{% macro m() %}<q>{{ x }}{% endmacro %}{{ m() }}": f"<q>{e}",
    }.items():
        assert render(template, {"x": "<b>"}, escape_html=True) == text


# --- attacks -----------------------------------------------------------------------------------------------------

RUNS_LONG = [
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(1000) %}" * 3 + "x" + "{% endfor %}" * 3,
    "{% for x in big %}{% for y in big %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}" + "{% if name %}{% endif %}" * 3000 + "{% endfor %}",
    "{% for i in range(99999) if range(99999)|list %}{% endfor %}",
    "{% for i in range(100000) %}{% if big|upper == 'x' %}{% endif %}{% endfor %}",
    "{% for i in range(100000) %}{% if 'zz' in big %}{% endif %}{% endfor %}",
    "{% for i in range(100000) %}{% if 'a' is in(big) %}{% endif %}{% endfor %}",
    "{% for i in range(100000) %}{{ xs|sort|list|unique|list }}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "{{ ([[1, 2]] * 20000)|sum(start=[]) }}",
    "{{ range(100000)" + "|map(attribute='a')" * 300 + "|list }}",
    "{{ range(100000)" + "|list" * 200 + "|length }}" * 1 + "{{ range(99999)|list|list|list|length }}" * 50,
    "{% set t = (range(99999)|list, 1)[0] %}{% for i in range(99999) %}{{ 'a' if t.index(99998) }}{% endfor %}",
    "{% set t = (0,) * 99999 %}{% for i in range(99999) %}{{ d[t] }}{% endfor %}",
    "{% set t = (0,) * 99999 %}{% for i in range(99999) %}{{ d.get(t) }}{% endfor %}",
    "{% set t = [[0] * 9999] * 9 %}{% for i in range(99999) %}{{ t|unique|first == t|max }}{% endfor %}",
    "{% set t = [[0] * 9999] * 9 %}{% for i in range(99999) %}{{ loop.changed(t) }}{% endfor %}",
    "{{ big|wordwrap(1) }}",
    "{{ ('%('*300000) % 1 }}",
    "{{ ('%' + '0' * 900000) % 1 }}",
]

EATS_MEMORY = [
    "{{ (('f' * 1000000)|int(base=16) // ('f' * 500000)|int(base=16)) and 1 }}",
    "{{ (('f' * 1000000)|int(base=16)) > 1 }}",
    "{{ (0x" + "f" * 60_000 + " % 0x" + "f" * 30_000 + ") and 1 }}",
    "{{ range(0x" + "f" * 60_000 + ", 0x" + "f" * 60_000 + ")|length }}",
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ [1] * 10**9 }}",
    "{{ [[1] * 1000] * 10000 }}",
    "{{ [big, big]|join }}",
    "{{ big ~ big }}",
    "{{ big + big }}",
    "{{ (('9' * 4000)|int) * (('9' * 4000)|int) }}",
    "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
    "{{ 2 ** -(10 ** 9) }}",
    "{{ 5|round(10**9) }}",
    "{{ 'a'.center(10**9) }}",
    "{{ 'a'|center(10**9) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 'a'.rjust(10**9) }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ 'a'|indent(10**9) }}",
    "{{ ('\\n' * 100000)|indent(1000) }}",
    "{{ xs|join('a' * 1000000) }}",
    "{{ ('a' * 1000000).join(words) }}",
    "{{ big.replace('x', 'y' * 1000) }}",
    "{{ big|replace('', 'yyyy') }}",
    "{{ big|replace(old='x', new='yy') }}",
    "{{ ('<' * 900000)|e }}",
    "{{ big|list|length }}",
    "{{ big.split('x')|length }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%(abc)1000000000d' % {'abc': 1} }}",
    "{{ '%((a)b)1000000000d' % {'(a)b': 1} }}",
    "{{ '%.1000000000f'|format(1) }}",
    "{{ ['%999999d']|map('format', 1)|list }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=10**9) }}",
    "{{ ('%(a)s' * 1000) % {'a': big} }}",
    "{{ ('%s' * 1000) % ((big,) * 1000) }}",
    "{{ ('{a}' * 1000).format(a=big) }}",
    "{{ d|tojson(indent=10**9) }}",
    "{{ xs|batch(10**9, 'a')|list }}",
    "{{ xs|slice(10**9)|list }}",
    "{{ xs|slice(slices=10**9)|list }}",
    "{{ 'a b'|wordwrap(1, wrapstring=big) }}",
    "{{ dict(a=big, b=big) }}",
    "{{ range(10**9)|list }}",
    "{{ range(10**30) }}",
    "{{ big }}{{ big }}",
    "{% for i in range(100000) %}" + "a" * 900 + "{% endfor %}",
    "{% set x %}{% for i in range(100000) %}" + "a" * 90_000 + "{% endfor %}{% endset %}",
    "{% macro m() %}" + "a" * 90_000 + "{% endmacro %}{% for i in range(100000) %}{% set y = m() %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}",
    "{% set n = namespace(x='aaaa') %}{% for i in range(30) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "{% set n = namespace(x=1) %}{% for i in range(9) %}{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ [n.x] }}",
    "".join(f"{{% set v{i} = big ~ {i} %}}" for i in range(300)),
    "".join(f"{{% set v{i} = big[1:] %}}" for i in range(300)),
]

REACHES_OUT = [
    "{{ ''.__class__.__mro__ }}",
    "{{ xs.__class__.__base__.__subclasses__() }}",
    "{{ ''|attr('__class__') }}",
    "{{ xs|map('attr', '__class__')|list }}",
    "{{ xs|map(attribute='__class__.__mro__')|list }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0[__class__]}'.format(d) }}",
    "{{ '{a.b}'.format_map({'a': 1}) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__.os.system('true') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ range.__globals__.sys }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ loop.__class__.x }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{{ (1).to_bytes(10, 'big') }}",
    "{{ name.encode() }}",
    "{{ xs.append(1) }}",
    "{{ d.update({'a': 2}) }}",
    "{{ lipsum(10) }}",
    "{{ name() }}",
    "{{ xs|map('upper') }}",
    "{{ [xs|map('upper')] }}",
    "{{ range }}",
    "{{ [range] }}",
    "{{ cycler }}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "{% from 'x' import y %}",
    "{% block a %}{% endblock %}",
]

IS_NO_TEMPLATE = [
    "{{ name",
    "{% endfor %}",
    "{% for %}",
    "{{ xs|nosuch }}",
    "{{ xs is nosuch }}",
    "{# note",
    "{{ 1 / 0 }}",
    "{{ name + 1 }}",
    "{{ missing.a }}",
    "{{ missing() }}",
    "{{ dict(xs) }}",
    "{{ '%y' % 5 }}",
    "{{ '%s%s' % 'a' }}",
    "{{ '%d' % 'a' }}",
    "{{ '{x}'.format() }}",
    "x" * 100_001,
    "{{ [" + "1," * 30_000 + "] }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "not " * 20_000 + "1 }}",
    "{{ " + "-" * 50_000 + "1 }}",
    "{{ " + "[" * 30_000 + " }}",
    "{{ name" + ".a" * 5_000 + " }}",
    "{{ " + "1+" * 5_000 + "1 }}",
    "{{ x" + "|e" * 5_000 + " }}",
    "{% for i in xs %}" * 100 + "{% endfor %}" * 100,
]


@pytest.mark.parametrize("template", EATS_MEMORY + REACHES_OUT + IS_NO_TEMPLATE, ids=lambda template: template[:60])
def test_a_bad_template_is_refused_soon_in_one_line(template: str) -> None:
    check_refused(template)


@pytest.mark.parametrize("template", RUNS_LONG, ids=lambda template: template[:60])
def test_a_template_that_runs_long_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A smaller allowance gives the same answers sooner.
    monkeypatch.setattr("livetape.engine.templates.MAX_WORK", MAX_WORK // 8)
    check_refused(template)


def test_the_whole_allowance_is_used_up_in_a_second_or_so() -> None:
    check_refused("{% for x in big %}{% for y in big %}{% endfor %}{% endfor %}")


def check_refused(template: str) -> None:
    # CPU time: the machine is shared. What is forgotten here takes minutes or gigabytes.
    started, before = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BlockExecutionError) as caught:
        render(template, VALUES)
    assert time.thread_time() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    assert str(caught.value).startswith("template: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    "template",
    [
        # Silent, as everything is that does not exist; none gives anything away.
        "{{ ''.__class__ }}",
        "{{ d['__class__'] }}",
        "{{ self.__init__ }}",
        "{{ range.__call__ }}",
        "{{ xs.__len__ }}",
        "{{ name.format.__self__ }}",
    ],
)
def test_private_names_are_nothing(template: str) -> None:
    assert render(template, VALUES) == ""


def test_nothing_is_computed_while_compiling() -> None:
    for constant in ("'a'|center(10**9)", "10**9**9", "'a' * 10**10", "'%999999999d' % 1"):
        assert render(f"{{% if false %}}{{{{ {constant} }}}}{{% endif %}}ok", {}) == "ok"


@pytest.mark.parametrize(
    "values",
    [
        {"x": "a" * 5_000_000},
        {"x": ["aaaa"] * 2_000_000},
        {"x": object()},
    ],
    ids=["long text", "long list", "not JSON"],
)
def test_values_that_are_too_big_or_not_json_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(BlockExecutionError, match="template: "):
        render("{{ x }}", values)


def test_values_that_share_parts_without_end_are_refused() -> None:
    laughs: list[Any] = ["ha"]
    for _ in range(60):
        laughs = [laughs, laughs]
    with pytest.raises(BlockExecutionError, match="bigger than"):
        render("{{ x }}", {"x": laughs})
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(BlockExecutionError, match="bigger than"):
        render("{{ x }}", {"x": circle})


def test_a_loop_of_ordinary_length_is_allowed() -> None:
    rows = [{"name": f"row {n}", "value": n} for n in range(5_000)]
    text = render(
        "{% for r in rows %}{{ loop.index }}. {{ r.name|upper }}: {{ r.value + 1 }}\n{% endfor %}", {"rows": rows}
    )
    assert text.count("\n") == 5_000


pieces = st.sampled_from(
    [
        "{{ x }}",
        "{{ x|upper }}",
        "{{ x * 3 }}",
        "{{ x ~ y }}",
        "{% for i in x %}",
        "{% endfor %}",
        "{% if y %}",
        "{% endif %}",
        "{{ y|length }}",
        "{% set x = [x, y] %}",
        "{{ '%s' % x }}",
        "{{ x|join(y) }}",
        "{{ '{}'.format(x) }}",
        "{{ x[1:] }}",
        "{{ x.items() }}",
        "text",
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
    ]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(pieces | st.text(max_size=5), max_size=8).map("".join), json_values, json_values, st.booleans())
def test_rendering_gives_text_or_refuses(template: str, x: Any, y: Any, escape: bool) -> None:
    try:
        text = render(template, {"x": x, "y": y}, escape_html=escape)
    except BlockExecutionError as error:
        text = str(error)
        assert "\n" not in text
    assert isinstance(text, str)
