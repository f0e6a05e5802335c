"""Metrics: a log's figures as OpenMetrics text, from a look that joins nothing.

The format is that of https://prometheus.io/docs/specs/om/open_metrics_spec/; the parser of
Prometheus' older text format takes it, too.

This module knows the text.  It may not know what the figures mean.
"""

from __future__ import annotations

import os

from shmlog.handle.readonly import open_readonly
from shmlog.memory.metrics import Metric

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def metrics_text(path: str | os.PathLike[str]) -> str:
    """The figures of a live or dead log; errors as open_readonly()."""
    with open_readonly(path) as log:
        return render(log.statistics().metrics(), log.path)


def render(found: tuple[Metric, ...], path: str) -> str:
    """Every sample has the log's path as the label `log`."""
    lines = []
    for metric in found:
        lines += [f"# TYPE {metric.name} {metric.kind}"]
        if metric.unit:
            lines += [f"# UNIT {metric.name} {metric.unit}"]
        lines += [f"# HELP {metric.name} {metric.text}"]
        suffix = {"counter": "_total", "histogram": "_bucket", "gauge": ""}[metric.kind]
        for sample in metric.samples:
            labels = {"log": path, **sample.labels}
            lines.append(f"{metric.name}{suffix}{_labels(labels)} {_number(sample.value)}")
        if metric.kind == "histogram":
            lines.append(f"{metric.name}_count{_labels({'log': path})} {_number(metric.samples[-1].value)}")
            lines.append(f"{metric.name}_sum{_labels({'log': path})} {_number(metric.sum)}")
    return "\n".join([*lines, "# EOF", ""])


def _labels(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    plain = value.encode(errors="surrogateescape").decode(errors="replace")  # a path may be no UTF-8
    return plain.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)
