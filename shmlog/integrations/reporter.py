"""Reporter: a shipper's word to those who look at the log, in a file that they may read.

    LOG/shipping/NAME.json      how far, how far behind, what went wrong; `shmlog info` shows it

A report is replaced by a rename and not synced: it is news. A disk that is full, or a directory that may
not be written, costs the report and nothing else.

This module knows a file and figures.  It may not know engines.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any, Final, Protocol

import shmlog

REPORT_S: Final = 2.0
QUIET_S: Final = 10.0
"""How often, at most; and where nothing has changed."""
SHARE: Final = 100
"""Counting what is behind may take one of so many parts of the time."""


class Reporting(Protocol):
    """Who has something to say."""

    statistics: Any

    @property
    def lag(self) -> shmlog.Lag: ...


class Reporter:
    """The reports of one shipper."""

    def __init__(self, log_path: str, name: str) -> None:
        self._path = Path(log_path, "shipping", f"{name}.json")
        self._next_at, self._failing = time.monotonic() + REPORT_S, False
        self._said: Any = None

    def say(self, who: Reporting, at_once: bool = False) -> None:
        """Report, if the last time is long enough ago, or an error begins or ends."""
        began, now = time.monotonic(), who.statistics
        same = now == self._said
        due = began >= self._next_at + (QUIET_S - REPORT_S) * same
        if not (due or at_once or now.failing != self._failing):
            return
        with contextlib.suppress(OSError, shmlog.ShmlogError):
            lag = who.lag
            report = {
                "time_ns": time.time_ns(),
                "pid": os.getpid(),
                "position_lsn": now.position_lsn,
                "lag_bytes": lag.bytes,
                "lag_records": lag.records,
                "lag_seconds": float(lag.seconds),
                "retries": now.retries,
                "resyncs": now.resyncs,
                "failing": now.failing,
                "last_error": now.last_error,
            }
            self._write(json.dumps(report).encode())
        self._said, self._failing = now, now.failing
        ended = time.monotonic()
        self._next_at = ended + max(REPORT_S, SHARE * (ended - began))

    def _write(self, data: bytes) -> None:
        """For whoever may read the log."""
        mode = self._path.parent.parent.stat().st_mode & 0o777
        if not self._path.parent.exists():
            self._path.parent.mkdir(exist_ok=True)
            self._path.parent.chmod(mode)
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            with new.open("wb") as file:
                os.fchmod(file.fileno(), mode & 0o666)
                file.write(data)
            new.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            raise
