"""Metrics: the figures of a log under names, with kinds and units, for monitoring systems.

Named as OpenMetrics asks: units last, without the suffixes that a kind brings (_total,
_bucket ...).  This module knows figures.  It may not know in which form they go out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from shmlog.memory.statistics import Statistics


class Sample(NamedTuple):
    """One value, and what tells it from the metric's others."""

    labels: dict[str, str]
    value: float


class Metric(NamedTuple):
    """One metric."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    samples: tuple[Sample, ...]
    """of a histogram: how many were at most so large, by the label le, ascending up to +Inf"""
    unit: str = ""
    sum: float = 0.0
    """of a histogram"""


def metrics(now: Statistics) -> tuple[Metric, ...]:
    """Those of one look at a log."""
    marks = ("reserved", "committed", "durable", "trimmed", "limit")
    blocked_s = 0.0
    if now.blocked_by is not None and now.blocked_by.since_ns is not None:
        blocked_s = max(0.0, (time.time_ns() - now.blocked_by.since_ns) / 1e9)

    def one(name: str, kind: Literal["gauge", "counter"], text: str, value: float, unit: str = "") -> Metric:
        return Metric(name, kind, text, (Sample({}, float(value)),), unit)

    return (
        Metric(
            "shmlog_watermark_bytes",
            "gauge",
            "The log's watermarks, as LSNs.",
            tuple(Sample({"watermark": mark}, float(getattr(now, f"{mark}_lsn"))) for mark in marks),
            "bytes",
        ),
        one("shmlog_records", "counter", "Records appended.", now.records),
        one("shmlog_payload_bytes", "counter", "Payload appended.", now.payload_bytes, "bytes"),
        one("shmlog_waits", "counter", "Waits for room or for a watermark.", now.waits),
        one("shmlog_commits", "counter", "Steps of the committed watermark.", now.commits),
        _sync_seconds(now),
        one("shmlog_rolls", "counter", "Segments begun.", now.rolls),
        one("shmlog_holes_filled", "counter", "Ranges that dead writers left.", now.holes_filled),
        one("shmlog_hole_bytes", "counter", "Their bytes.", now.hole_bytes, "bytes"),
        one("shmlog_flushers", "counter", "Flusher processes that came to serve.", now.flushers),
        one("shmlog_flusher_up", "gauge", "Whether a flusher runs.", now.flusher_pid is not None),
        one("shmlog_failed", "gauge", "Whether the log has failed.", now.failed is not None),
        one("shmlog_participants", "gauge", "Processes that use the log.", len(now.participants)),
        one("shmlog_budget_held", "gauge", "Whether room waits for a trim.", now.budget_held),
        one(
            "shmlog_blocked_seconds",
            "gauge",
            "For how long somebody has held the committed watermark back.",
            blocked_s,
            "seconds",
        ),
        Metric(
            "shmlog_cursor_lag_bytes",
            "gauge",
            "How far each named cursor is behind the committed watermark.",
            tuple(Sample({"cursor": place.name}, float(place.lag_bytes)) for place in now.cursors),
            "bytes",
        ),
        *_shippers(now),
    )


def _shippers(now: Statistics) -> list[Metric]:
    """Of those cursors whose shipper says something."""
    known: list[tuple[str, Literal["gauge", "counter"], str, str]] = [
        ("lag_bytes", "gauge", "How far the engine is behind the committed watermark.", "bytes"),
        ("lag_records", "gauge", "The records that it does not have yet.", ""),
        ("lag_seconds", "gauge", "The age of the oldest of them.", "seconds"),
        ("retries", "counter", "Errors of the engine.", ""),
        ("resyncs", "counter", "Positions that were asked for anew.", ""),
        ("failing", "gauge", "Whether the last attempt was an error.", ""),
        ("time_ns", "gauge", "When the shipper last said so, since 1970.", "seconds"),
    ]
    found = []
    for field, kind, text, unit in known:
        name = "reported_seconds" if field == "time_ns" else field
        samples = tuple(
            Sample({"cursor": place.name}, float(place.shipper[field]) / (1e9 if field == "time_ns" else 1))
            for place in now.cursors
            if place.shipper is not None
        )
        found.append(Metric(f"shmlog_shipper_{name}", kind, text, samples, unit))
    return found


def _sync_seconds(now: Statistics) -> Metric:
    seen, samples = 0, []
    for bucket, count in enumerate(now.sync_latency[:-1]):
        seen += count
        samples.append(Sample({"le": repr(2**bucket / 1e6)}, float(seen)))
    samples.append(Sample({"le": "+Inf"}, float(sum(now.sync_latency))))
    text = "How long syncs took."
    return Metric("shmlog_sync_seconds", "histogram", text, tuple(samples), "seconds", now.sync_seconds)
