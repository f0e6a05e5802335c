"""Metrics: a log's figures for prometheus-client and OpenTelemetry.

Both ask when they are scraped or export, of a look that joins nothing; the figures, their
names, kinds and units are those of Statistics.metrics().  A log that cannot be looked at
then has no figures, but for `shmlog_up` 0.

This module knows two client libraries and shmlog's public names.  It may not know where
the figures come from.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import shmlog

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from prometheus_client.core import Metric as PrometheusMetric


class _Look:
    """A log that is opened when it is first asked for, and again after an error."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        self._lock = threading.Lock()
        self._log: shmlog.ReadonlyLog | None = None

    def metrics(self) -> tuple[shmlog.Metric, ...]:
        """Those of now; none if the log cannot be looked at."""
        with self._lock:
            try:
                if self._log is None:
                    self._log = shmlog.open_readonly(self.path)
                return self._log.statistics().metrics()
            except (shmlog.ShmlogError, OSError):
                if self._log is not None:
                    self._log.close()
                self._log = None
                return ()


class ShmlogCollector:
    """A collector of prometheus-client: REGISTRY.register(ShmlogCollector("events"))."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._look = _Look(path)

    def describe(self) -> Iterable[PrometheusMetric]:
        """Nothing: so the log need not be there when this is registered."""
        return ()

    def collect(self) -> Iterator[PrometheusMetric]:
        """Called at each scrape."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        path = self._look.path
        found = self._look.metrics()
        up = GaugeMetricFamily("shmlog_up", "Whether the log can be looked at.", labels=["log"])
        up.add_metric([path], float(bool(found)))
        yield up
        for metric in found:
            if metric.kind == "histogram":
                family = HistogramMetricFamily(metric.name, metric.text, labels=["log"], unit=metric.unit)
                buckets = [(sample.labels["le"], sample.value) for sample in metric.samples]
                family.add_metric([path], buckets, metric.sum)
                yield family
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            names = sorted({name for sample in metric.samples for name in sample.labels})
            own = kind(metric.name, metric.text, labels=["log", *names], unit=metric.unit)
            for sample in metric.samples:
                own.add_metric([path, *(sample.labels[name] for name in names)], sample.value)
            yield own


def observe(path: str | os.PathLike[str], meter: Meter | None = None) -> None:
    """Make OpenTelemetry instruments of a log's figures, with the meter given or the global one's.

    The log must be there. Counters and gauges are observed when they are exported. Of the sync latency, which
    OpenTelemetry cannot observe as a histogram, there are two counters: syncs and their seconds.
    """
    from opentelemetry import metrics

    meter = meter or metrics.get_meter("shmlog", shmlog.__version__)
    look = _Look(path)

    def callback(name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observed(_: CallbackOptions) -> Iterable[Observation]:
            for metric in look.metrics():
                if metric.name == name:
                    for sample in metric.samples:
                        labels = {"log": look.path, **sample.labels}
                        yield metrics.Observation(sample.value, labels)

        return observed

    def syncs(value: Callable[[shmlog.Metric], float]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observed(_: CallbackOptions) -> Iterable[Observation]:
            for metric in look.metrics():
                if metric.kind == "histogram":
                    yield metrics.Observation(value(metric), {"log": look.path})

        return observed

    units = {"bytes": "By", "seconds": "s"}
    with shmlog.open_readonly(path) as log:
        known = log.statistics().metrics()
    for metric in known:
        make: Any = meter.create_observable_gauge
        if metric.kind == "counter":
            make = meter.create_observable_counter
        elif metric.kind == "histogram":
            meter.create_observable_counter(
                "shmlog_syncs", [syncs(lambda metric: metric.samples[-1].value)], description="Syncs."
            )
            meter.create_observable_counter(
                metric.name, [syncs(lambda metric: metric.sum)], unit="s", description=metric.text
            )
            continue
        make(metric.name, [callback(metric.name)], unit=units.get(metric.unit, "1"), description=metric.text)
