"""Metrics for Prometheus, kept in plain dictionaries and handed to the library when somebody looks.

Counting through the library takes some microseconds, and a busy loop counts many times for each event.
"""

from __future__ import annotations

import threading
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from livetape.figures import FIGURES, SECONDS

# Known to dashboards under these very names, without a namespace (wire contract, section 7).
BARE: Final = frozenset(
    {"execution_manager_active_runs", "execution_manager_pool_size", "execution_manager_utilization_ratio"}
)
KEPT_DURATIONS: Final = 4096
"""So many durations of one kind are handed on even if nobody looks."""

Key: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


class PrometheusMetrics:
    """Counts, gauges and durations under `{namespace}_{name}`. A name has the same labels wherever it is used.

    For the threads of one process; two that count the same thing at the same instant may lose one of the counts.
    """

    def __init__(self, namespace: str, *, worker: str | None = None) -> None:
        """`worker`: a label of every figure, for a process that shares its port with others."""
        self._worker = worker
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
        text = generate_latest(self.registry)
        return text if self._worker is None else _labelled(text, self._worker), CONTENT_TYPE_LATEST

    def _hand_on(self) -> None:
        with self._handing_on:
            counts, self._counts = self._counts, {}
            durations, self._durations = self._durations, {}
            for (name, labels), amount in counts.items():
                counter = self._counters.get(name)
                if counter is None:
                    counter = Counter(
                        self._full(name), _help(name), [label for label, _ in labels], registry=self.registry
                    )
                    self._counters[name] = counter
                (counter.labels(**dict(labels)) if labels else counter).inc(amount)
            for (name, labels), value in self._levels.items():
                gauge = self._gauges.get(name)
                if gauge is None:
                    gauge = Gauge(self._full(name), _help(name), [label for label, _ in labels], registry=self.registry)
                    self._gauges[name] = gauge
                (gauge.labels(**dict(labels)) if labels else gauge).set(value)
            for (name, labels), values in durations.items():
                histogram = self._histograms.get(name)
                if histogram is None:
                    histogram = Histogram(
                        self._full(name),
                        _help(name),
                        [label for label, _ in labels],
                        registry=self.registry,
                        buckets=_buckets(name),
                    )
                    self._histograms[name] = histogram
                child = histogram.labels(**dict(labels)) if labels else histogram
                for seconds in values:
                    child.observe(seconds)

    def _full(self, name: str) -> str:
        return name if name in BARE else f"{self._namespace}_{name}"


def _help(name: str) -> str:
    known = FIGURES.get(name)  # an application may count what it likes
    return name if known is None else known.meaning


def _buckets(name: str) -> tuple[float, ...]:
    known = FIGURES.get(name)
    return SECONDS if known is None or not known.buckets else known.buckets


def _labelled(text: bytes, worker: str) -> bytes:
    """The exposition with a label `worker` on every sample."""
    label = b'worker="%b"' % worker.encode()
    return b"\n".join(
        line if not line or line.startswith(b"#") else _with_label(line, label) for line in text.split(b"\n")
    )


def _with_label(sample: bytes, label: bytes) -> bytes:
    name, brace, rest = sample.partition(b"{")
    if brace:
        return name + b"{" + label + b"," + rest
    name, _, value = sample.partition(b" ")
    return name + b"{" + label + b"} " + value
