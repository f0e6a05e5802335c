"""Repair: go on with a log that is damaged, losing what is destroyed and nothing else.

    shmlog.repair(path)               says what would be done, and which LSNs are lost
    shmlog.repair(path, apply=True)   does it

What is overwritten or moved is kept first, with an account of it, in the log's directory:

    events/repaired/20261124T093000Z/
      repair.json                            what was done, change by change
      segments/00000000000000000000.seg@96   the bytes that were at offset 96
      segments/notes.txt                     a file that was moved away

Being interrupted leaves a log that can be repaired again.

This module knows who may repair, and the order of doing it.  It may not know what is
damaged.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from shmlog.disk import recovery, salvage, segment
from shmlog.disk.ownership import Change
from shmlog.disk.recovery import Recovery
from shmlog.disk.salvage import Loss, Salvage
from shmlog.errors import AttachError, FormatError
from shmlog.format.layout import FORMAT_VERSION
from shmlog.format.marks import Header
from shmlog.memory import block
from shmlog.session.attachment import somebody_lives
from shmlog.system import files
from shmlog.system.deadlines import check_timeout, deadline_after
from shmlog.system.locks import LockFile, take_setup
from shmlog.tools.verify import VerifyReport, verify

KEPT = "repaired"


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What repair() would do, or has done.  `changes`: none if the log is not damaged."""

    path: str
    changes: tuple[Change, ...]
    lost: tuple[Loss, ...]
    """ranges of LSNs whose records are gone, in the order in which they were found"""
    applied: bool = False
    kept: str = ""
    """the directory with what was overwritten or moved"""
    recovery: Recovery | None = None
    """what the ordinary recovery did above what was vouched for"""
    verified: VerifyReport | None = None

    @property
    def lost_bytes(self) -> int:
        """Of all ranges together."""
        return sum(loss.end_lsn - loss.begin_lsn for loss in self.lost)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        recovered = self.recovery
        return {
            "path": self.path,
            "damaged": bool(self.changes),
            "applied": self.applied,
            "changes": [_change_facts(change) for change in self.changes],
            "lost": [asdict(loss) for loss in self.lost],
            "lost_bytes": self.lost_bytes,
            "kept": self.kept or None,
            "end_lsn": recovered.end_lsn if recovered else None,
            "dropped_bytes": recovered.dropped_bytes if recovered else None,
            "verified": self.verified.to_dict() if self.verified else None,
        }


def repair(
    path: str | os.PathLike[str],
    *,
    apply: bool = False,
    restarted: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
    timeout: float = 30.0,
) -> RepairReport:
    """Say what of a damaged log that nobody uses can be kept, and with apply=True keep it.

    Every frame that is valid stays where it is; ranges between them become FILL, which
    readers pass over; files that are not the log's are moved away, and missing ones made.
    Above what was vouched for the ordinary recovery decides, as at the next open, unless this
    is a copy of the log: of that all that is valid is kept. restarted: as for recover().
    progress, if given, is called with (bytes looked at, bytes in all). Raises AttachError if
    somebody uses the log, FormatError if nothing tells whose files they are,
    RestartUnclearError, FileNotFoundError; before anything was changed.
    """
    deadline = deadline_after(check_timeout(timeout))
    where = os.path.abspath(os.fsdecode(path))
    files.check_directory(where)
    if not os.path.lexists(os.path.join(where, "segments")):
        raise FormatError(f"{where} is not a log: it has no segments")
    lock = LockFile(os.path.join(where, "LOCK"))
    try:
        take_setup(lock, deadline)
        if somebody_lives(lock):
            raise AttachError(f"{where} is in use: a live log is not repaired")
        boot_id = files.boot_id()
        plan = salvage.find(where, boot_id, restarted, progress)
        report = RepairReport(where, plan.changes, plan.lost)
        if not apply or not plan.changes:
            return report
        mode = stat.S_IMODE(os.stat(lock.path).st_mode)
        kept = _keep(plan, report)
        for change in plan.changes:
            _apply(plan, change, kept, mode)
        for directory in (plan.directory.segments_path, plan.directory.cursors_path, where):
            if os.path.isdir(directory):
                files.sync_directory(directory)
        block.unlink_all(plan.directory.identity.log_id)  # nobody lives, and it tells of what was
        found = recovery.recover(plan.directory, boot_id, restarted=restarted)
    finally:
        lock.close()
    return RepairReport(where, plan.changes, plan.lost, True, kept, found, verify(where))


def _keep(plan: Salvage, report: RepairReport) -> str:
    """Copy what will be overwritten, durably, before anything is."""
    root = os.path.join(plan.directory.path, KEPT)
    now = os.path.join(root, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
    kept = next(name for name in (now, *(f"{now}-{n}" for n in range(2, 1000))) if not os.path.lexists(name))
    for directory in (root, kept, os.path.join(kept, "segments"), os.path.join(kept, "cursors")):
        if not os.path.isdir(directory):
            files.make_directory(directory, 0o700)
    renames = [change for change in reversed(plan.changes) if change.kind == "rename"]
    for change in plan.changes:
        path = change.path
        for rename in renames:  # to where its bytes are now
            path = rename.path if rename.to == path else path
        if change.kind in ("patch", "identity", "resize") and os.path.lexists(path):
            with files.descriptor(files.open_file(path, writable=False)) as fd:
                size = os.fstat(fd).st_size
                begin, count = change.offset, len(change.data)
                if change.kind == "identity":
                    begin, count = 0, min(size, 1 << 20)
                elif change.kind == "resize":
                    begin, count = min(size, change.size), max(0, size - change.size)
                if begin < size and count:
                    _copy(fd, begin, count, f"{_kept_path(plan, change.path, kept)}@{begin}")
    account = json.dumps({"format": FORMAT_VERSION, **report.to_dict()}, indent=2).encode()
    files.write_atomically(os.path.join(kept, "repair.json"), account + b"\n", 0o600)
    for directory in (os.path.join(kept, "segments"), os.path.join(kept, "cursors"), kept):
        files.sync_directory(directory)
    return kept


def _copy(fd: int, begin: int, count: int, to: str) -> None:
    with files.descriptor(files.create_file(to, 0o600)) as copy:
        done = 0
        while done < count and (data := os.pread(fd, min(1 << 20, count - done), begin + done)):
            files.write_all(copy, data, done)
            done += len(data)
        os.fsync(copy)


def _kept_path(plan: Salvage, path: str, kept: str) -> str:
    return os.path.join(kept, os.path.relpath(path, plan.directory.path))


def _apply(plan: Salvage, change: Change, kept: str, mode: int) -> None:
    directory = plan.directory
    if change.kind == "identity":
        files.write_atomically(change.path, change.data, mode)
    elif change.kind == "aside":
        os.rename(change.path, _kept_path(plan, change.path, kept))
    elif change.kind == "rename":
        if os.path.lexists(change.to):
            raise FormatError(f"{change.to} is there already")
        os.rename(change.path, change.to)
    elif change.kind == "make":
        assert plan.mark is not None
        geometry = directory.identity.geometry
        header = Header(
            directory.identity.log_id, change.offset, geometry.segment_bytes, plan.mark.epoch, time.time_ns()
        )
        os.close(segment.create(change.path, header, plan.mark, geometry, mode))
    else:
        with files.descriptor(files.open_file(change.path, writable=True)) as fd:
            if change.kind == "resize":
                os.ftruncate(fd, change.size)
            else:
                files.write_all(fd, change.data, change.offset)
            os.fsync(fd)


def _change_facts(change: Change) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": change.kind, "path": change.path, "why": change.why}
    if change.to:
        facts["to"] = change.to
    if change.kind == "patch":
        facts |= {"offset": change.offset, "bytes": len(change.data)}
    if change.kind == "resize":
        facts["bytes"] = change.size
    return facts
