"""Metrics for Prometheus, kept in plain dictionaries and handed to the library when somebody looks.

Counting through the library takes some microseconds, and a busy loop counts many times for each event.
"""

from __future__ import annotations

import threading
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

# Known to dashboards under these very names, without a namespace (wire contract, section 7).
BARE: Final = frozenset(
    {"execution_manager_active_runs", "execution_manager_pool_size", "execution_manager_utilization_ratio"}
)
SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
KEPT_DURATIONS: Final = 4096
"""So many durations of one kind are handed on even if nobody looks."""

Key: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


class PrometheusMetrics:
    """Counts, gauges and durations under `{namespace}_{name}`. A name has the same labels wherever it is used.

    For the threads of one process; two that count the same thing at the same instant may lose one of the counts.
    """

    def __init__(self, namespace: str) -> None:
        self.registry = CollectorRegistry()
        self._namespace = namespace
        self._counts: dict[Key, float] = {}
        self._levels: dict[Key, float] = {}
        self._durations: dict[Key, list[float]] = {}
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._handing_on = threading.Lock()

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        key = (name, tuple(labels.items()))
        self._counts[key] = self._counts.get(key, 0) + amount

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self._levels[name, tuple(labels.items())] = value

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        key = (name, tuple(labels.items()))
        durations = self._durations.get(key)
        if durations is None:
            durations = self._durations[key] = []
        durations.append(seconds)
        if len(durations) >= KEPT_DURATIONS:
            self._hand_on()

    def render(self) -> tuple[bytes, str]:
        """The text of `/metrics` and its content type."""
        self._hand_on()
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _hand_on(self) -> None:
        with self._handing_on:
            counts, self._counts = self._counts, {}
            durations, self._durations = self._durations, {}
            for (name, labels), amount in counts.items():
                counter = self._counters.get(name)
                if counter is None:
                    counter = Counter(self._full(name), name, [label for label, _ in labels], registry=self.registry)
                    self._counters[name] = counter
                (counter.labels(**dict(labels)) if labels else counter).inc(amount)
            for (name, labels), value in self._levels.items():
                gauge = self._gauges.get(name)
                if gauge is None:
                    gauge = Gauge(self._full(name), name, [label for label, _ in labels], registry=self.registry)
                    self._gauges[name] = gauge
                (gauge.labels(**dict(labels)) if labels else gauge).set(value)
            for (name, labels), values in durations.items():
                histogram = self._histograms.get(name)
                if histogram is None:
                    names = [label for label, _ in labels]
                    histogram = Histogram(self._full(name), name, names, registry=self.registry, buckets=SECONDS)
                    self._histograms[name] = histogram
                child = histogram.labels(**dict(labels)) if labels else histogram
                for seconds in values:
                    child.observe(seconds)

    def _full(self, name: str) -> str:
        return name if name in BARE else f"{self._namespace}_{name}"
