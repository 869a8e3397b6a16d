"""Metrics for Prometheus: made at first use, in a registry of their own."""

from __future__ import annotations

from typing import Final

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

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        metric = self._counters.get(name)
        if metric is None:
            metric = self._counters[name] = Counter(self._full(name), name, tuple(labels), registry=self.registry)
        (metric.labels(**labels) if labels else metric).inc(amount)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        metric = self._gauges.get(name)
        if metric is None:
            metric = self._gauges[name] = Gauge(self._full(name), name, tuple(labels), registry=self.registry)
        (metric.labels(**labels) if labels else metric).set(value)

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        metric = self._histograms.get(name)
        if metric is None:
            metric = self._histograms[name] = Histogram(
                self._full(name), name, tuple(labels), registry=self.registry, buckets=SECONDS
            )
        (metric.labels(**labels) if labels else metric).observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """The text of `/metrics` and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _full(self, name: str) -> str:
        return name if name in BARE else f"{self._namespace}_{name}"
