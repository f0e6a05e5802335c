"""Info: what a log is and who uses it, live or dead, without joining it.

This module asks the files, the locks and the control block's read-only view.  It may
not know how any of them is made.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from typing import Any

from shmlog.disk import cursors, directory, reports
from shmlog.disk.failure import Failure
from shmlog.disk.recovery import inspect
from shmlog.disk.segments import list_segments, segment_path
from shmlog.errors import CorruptionError, RestartUnclearError
from shmlog.format.geometry import PARTICIPANT_COUNT
from shmlog.format.layout import CB, PT, STATE_FAILED
from shmlog.memory.participants import Table, slot_offset
from shmlog.memory.statistics import blocked_by
from shmlog.session.look import view_of
from shmlog.system import files
from shmlog.system.locks import FIRST_PARTICIPANT_BYTE, LEASE_BYTE, LockView


def describe(path: str) -> dict[str, Any]:
    """A plain dictionary; FileNotFoundError or FormatError when there is no log."""
    where = directory.load(path, to_look=True)
    identity = where.identity
    segments = list_segments(where)
    blocks = 0
    for first in segments:
        with contextlib.suppress(FileNotFoundError):  # trimmed meanwhile
            blocks += os.stat(segment_path(where, first)).st_blocks
    facts: dict[str, Any] = {
        "path": where.path,
        "log_id": identity.log_id.hex(),
        "created": datetime.datetime.fromtimestamp(identity.created_ns / 1e9, datetime.UTC).isoformat(),
        "segment_bytes": identity.geometry.segment_bytes,
        "window_bytes": identity.geometry.window_bytes,
        "segments": len(segments),
        "disk_bytes": blocks * 512,
    }
    facts |= _shippers(where)
    view = view_of(where, files.boot_id())
    if view is None:
        return facts | _dead(where)
    with LockView(where.lock_path, where.owner) as lock:
        pids = [
            view.load(slot_offset(number, PT.PID))
            for number in range(PARTICIPANT_COUNT)
            if lock.locked(FIRST_PARTICIPANT_BYTE + number)
        ]
        flusher = view.load(CB.FLUSHER_PID) if lock.locked(LEASE_BYTE) else None
        blocker = blocked_by(view.load, Table(view.load, lock.locked))
    failed = view.load(CB.STATE) == STATE_FAILED
    latched = Failure(view.load(CB.FAILED_ERRNO), view.load(CB.FAILED_LSN))
    return facts | {
        "state": "failed" if failed else "live",
        "failure": str(latched) if failed else None,
        "reserved_lsn": view.load(CB.RESERVED_LSN),
        "committed_lsn": view.load(CB.COMMITTED_LSN),
        "durable_lsn": view.load(CB.DURABLE_LSN),
        "trimmed_lsn": view.load(CB.TRIMMED_LSN),
        "epoch": view.load(CB.EPOCH),
        "syncs": view.load(CB.SYNCS),
        "holes_filled": view.load(CB.FILL_COUNT),
        "flusher_pid": flusher,
        "blocked_by": blocker and blocker._asdict(),
        "participant_pids": [pid for pid in pids if pid != flusher],
    }


def _dead(where: directory.Directory) -> dict[str, Any]:
    try:
        found = inspect(where, files.boot_id())
    except CorruptionError as error:
        return {"state": "corrupt", "problem": str(error), "problem_lsn": error.lsn}
    except RestartUnclearError as error:
        return {"state": "unclear", "problem": str(error), "problem_lsn": error.lsn}
    return {
        "state": found.case.value,
        "failure": found.failure and str(found.failure),
        "committed_lsn": found.end_lsn,
        "durable_lsn": found.vouched_lsn,
        "trimmed_lsn": found.trimmed_lsn,
        "epoch": found.epoch,
        "dropped_bytes": found.dropped_bytes,
        "holes": len(found.holes),
    }


def _shippers(where: directory.Directory) -> dict[str, Any]:
    """What those who ship the log said last, by the names of their cursors."""
    found = {name: reports.look(where, name) for name, _ in cursors.paths(where)}
    said = {name: report for name, report in found.items() if report is not None}
    return {"shippers": said} if said else {}


def _shipper_text(report: dict[str, Any]) -> str:
    text = (
        f"at LSN {report['position_lsn']}, {report['lag_records']} records ({report['lag_bytes']} bytes,"
        f" {report['lag_seconds']:.1f} s) behind, {report['retries']} errors, {report['resyncs']} resyncs"
    )
    age_s = max(0.0, (time.time_ns() - report["time_ns"]) / 1e9)
    return f"{text}, {age_s:.0f} s ago" + (
        f"; last error: {report['last_error']}" * bool(report["last_error"])
    )


def text(facts: dict[str, Any]) -> str:
    """For people: one fact a line."""
    shippers = facts.get("shippers") or {}
    lines = {key: value for key, value in facts.items() if key != "shippers"}
    lines |= {f"shipper {name}": _shipper_text(report) for name, report in shippers.items()}
    width = max(len(key) for key in lines)
    return "\n".join(f"{key.replace('_', ' '):{width}}  {value}" for key, value in lines.items())
