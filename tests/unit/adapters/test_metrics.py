"""What is counted is what Prometheus is told, each once."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from livetape.adapters.prometheus.metrics import KEPT_DURATIONS, PrometheusMetrics


def lines(metrics: PrometheusMetrics) -> dict[str, float]:
    text, _ = metrics.render()
    pairs = (line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs if "_created" not in name}


def test_counts_add_up_over_several_looks() -> None:
    metrics = PrometheusMetrics("lt")
    metrics.count("things_total", kind="a")
    metrics.count("things_total", 2, kind="a")
    metrics.count("things_total", kind="b")
    metrics.count("plain_total")
    assert lines(metrics) == {'lt_things_total{kind="a"}': 3, 'lt_things_total{kind="b"}': 1, "lt_plain_total": 1}
    metrics.count("things_total", kind="a")
    assert lines(metrics)['lt_things_total{kind="a"}'] == 4


def test_a_gauge_is_its_last_value_and_some_names_stand_bare() -> None:
    metrics = PrometheusMetrics("lt")
    metrics.gauge("level", 3)
    metrics.gauge("level", 1)
    metrics.gauge("execution_manager_pool_size", 10)
    assert lines(metrics) == {"lt_level": 1, "execution_manager_pool_size": 10}
    assert lines(metrics)["lt_level"] == 1


def test_durations_are_all_there_even_if_nobody_looks() -> None:
    metrics = PrometheusMetrics("lt")
    for _ in range(KEPT_DURATIONS + 5):
        metrics.observe("step_seconds", 0.002, step="x")
    found = lines(metrics)
    assert found['lt_step_seconds_count{step="x"}'] == KEPT_DURATIONS + 5
    assert found['lt_step_seconds_bucket{le="0.001",step="x"}'] == 0
    assert found['lt_step_seconds_bucket{le="0.005",step="x"}'] == KEPT_DURATIONS + 5


def test_figures_of_one_of_several_workers_say_whose_they_are() -> None:
    metrics = PrometheusMetrics("ns", worker="3")
    metrics.count("a_total", 2)
    metrics.gauge("b", 1, kind="x{y} z")
    lines = metrics.render()[0].decode().splitlines()
    assert 'ns_a_total{worker="3"} 2.0' in lines
    assert 'ns_b{worker="3",kind="x{y} z"} 1.0' in lines
    assert "# TYPE ns_b gauge" in lines
    families = {family.name: family for family in text_string_to_metric_families("\n".join(lines) + "\n")}
    assert all(sample.labels["worker"] == "3" for family in families.values() for sample in family.samples)
