"""Metrics for Prometheus: made at first use, in a registry of their own."""

from __future__ import annotations

from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

# Known to dashboards under these very names, without a namespace (wire contract, section 7).
BARE: Final = frozenset(
    {"execution_manager_active_runs", "execution_manager_pool_size", "execution_manager_utilization_ratio"}
)
SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class PrometheusMetrics:
    """Counts, gauges and durations under `{namespace}_{name}`. A name has the same labels wherever it is used."""

    def __init__(self, namespace: str) -> None:
        self.registry = CollectorRegistry()
        self._namespace = namespace
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        # Children by name and label values: looking one up through the library costs more than counting.
        self._children: dict[tuple[str, ...], Any] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        child = self._children.get((name, *labels.values()))
        if child is None:
            metric = self._counters.get(name)
            if metric is None:
                metric = Counter(self._full(name), name, tuple(labels), registry=self.registry)
                self._counters[name] = metric
            child = self._keep(name, metric, labels)
        child.inc(amount)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        child = self._children.get((name, *labels.values()))
        if child is None:
            metric = self._gauges.get(name)
            if metric is None:
                metric = self._gauges[name] = Gauge(self._full(name), name, tuple(labels), registry=self.registry)
            child = self._keep(name, metric, labels)
        child.set(value)

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        child = self._children.get((name, *labels.values()))
        if child is None:
            metric = self._histograms.get(name)
            if metric is None:
                metric = Histogram(self._full(name), name, tuple(labels), registry=self.registry, buckets=SECONDS)
                self._histograms[name] = metric
            child = self._keep(name, metric, labels)
        child.observe(seconds)

    def _keep(self, name: str, metric: Any, labels: dict[str, str]) -> Any:
        child = self._children[(name, *labels.values())] = metric.labels(**labels) if labels else metric
        return child

    def render(self) -> tuple[bytes, str]:
        """The text of `/metrics` and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _full(self, name: str) -> str:
        return name if name in BARE else f"{self._namespace}_{name}"
