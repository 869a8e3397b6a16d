"""The list of figures is what the code counts, no more and no less."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from livetape.adapters.prometheus.metrics import BARE, PrometheusMetrics
from livetape.events.tally import Tally
from livetape.figures import FIGURES, PARTS
from livetape.observability import Metrics
from support import ROOT

KINDS = {"count": "counter", "gauge": "gauge", "observe": "histogram"}
SOURCES = [path for path in (ROOT / "src" / "livetape").rglob("*.py") if path.name != "figures.py"]

BY_A_NAME = {"adapters/redis/bus.py", "events/tally.py"}
"""Where a figure is counted whose name is in a constant there, and none has labels."""


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    """Everything that is counted, and of which kind."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in KINDS
                and isinstance(node.func.value, ast.Name | ast.Attribute)
                and "metrics" in ast.unparse(node.func.value)
            ):
                yield path, node, KINDS[node.func.attr]


def test_what_is_counted_is_listed_and_the_other_way_round() -> None:
    found: dict[str, set[tuple[str, tuple[str, ...]]]] = {}
    by_a_name = set()
    for path, call, kind in calls():
        name = call.args[0]
        if isinstance(name, ast.Constant):
            labels = tuple(keyword.arg or "**" for keyword in call.keywords)
            found.setdefault(name.value, set()).add((kind, labels))
        else:
            by_a_name.add(str(path.relative_to(ROOT / "src" / "livetape")))
    assert by_a_name == BY_A_NAME
    for source in BY_A_NAME:
        for node in ast.walk(ast.parse((ROOT / "src" / "livetape" / source).read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                name = node.value
                for ending, kind in (("_total", "counter"), ("_seconds", "histogram")):
                    if name.endswith(ending) and name != ending:
                        found.setdefault(name, {(kind, ())})
    listed = {figure.name: {(figure.kind, figure.labels)} for figure in FIGURES.values()}
    assert found == listed


def test_each_is_listed_once_and_has_buckets_if_it_needs_them() -> None:
    figures = [figure for part in PARTS for figure in part.figures]
    assert len({figure.name for figure in figures}) == len(figures)
    assert set(FIGURES) >= BARE
    for figure in figures:
        assert (figure.kind == "histogram") == bool(figure.buckets)
        assert list(figure.buckets) == sorted(set(figure.buckets))
        assert figure.meaning.endswith(".")
        assert "|" not in figure.meaning
        # `websocket_connections_total` is the one that dashboards know as a gauge.
        assert (
            figure.name.endswith("_total") == (figure.kind == "counter") or figure.name == "websocket_connections_total"
        )


async def test_prometheus_is_told_the_meaning_and_the_buckets() -> None:
    metrics = PrometheusMetrics("lt")
    counted: Metrics = metrics
    counted.observe("gateway_fan_out_seconds", 0.0002)
    counted.observe("of_an_application", 0.0002)
    tally = Tally.of_bus(metrics)
    assert tally is not None
    tally.add(5, 1)
    tally.hand_on()
    text = metrics.render()[0].decode()
    assert f"# HELP lt_gateway_fan_out_seconds {FIGURES['gateway_fan_out_seconds'].meaning}" in text
    assert 'lt_gateway_fan_out_seconds_bucket{le="0.0001"} 0.0' in text
    assert 'lt_gateway_fan_out_seconds_bucket{le="0.00025"} 1.0' in text
    assert 'lt_of_an_application_bucket{le="0.001"} 1.0' in text
    assert "# TYPE lt_bus_published_bytes_total counter" in text
