"""Promises: what a log's users were told, and whether a recovered log keeps it.

    made                              shmlog.open(create=True) has returned
    durable  lsn writer sequence      this record is durable, and all below it
    trim     lsn                      a trim up to here was asked for
    place    lsn begun                a cursor's commit: begun, and then done

After a power cut the log recovers; every record that was promised is there and equal; what
is there is a prefix of what was appended, whole; what was dropped is reported as it was;
the dropped bytes are zeros and a second recovery finds nothing more to do.

This module knows a log's files after a cut.  It may not know how the cut was made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from support.processes import whose
from support.pyreader import RESTARTED, BadFrame, PyLog

from shmlog.disk import directory, recovery
from shmlog.disk.cursors import CursorFile
from shmlog.disk.recovery import Case, Recovery
from shmlog.errors import CorruptionError, FormatError
from shmlog.format.geometry import Geometry

SEGMENT_BYTES = 64 << 10
CURSOR = "etl"
Record = tuple[int, int, int]
"""LSN, writer, sequence"""


class Violation(AssertionError):
    """A promise that was not kept."""


class LostError(Violation):
    """A record that was promised is not there, and recovery says that it has dropped something."""


class RefusedError(Violation):
    """The log calls itself damaged."""


@dataclass
class Promises:
    """What had been promised at the moment of a cut."""

    made: bool = False
    """an open(create=True) returned"""
    durable: dict[int, tuple[int, int]] = field(default_factory=dict)
    trim_lsn: int = 0
    place_lsn: int = 0
    place_begun_lsn: int = 0
    writers: set[int] = field(default_factory=set)
    """who may have appended"""
    kept: list[Record] | None = None
    """an earlier recovery ended with these records, at kept_end_lsn: nothing else may be below it"""
    kept_end_lsn: int = 0
    fresh: set[int] = field(default_factory=set)
    """who appended after that recovery: all that may be above kept_end_lsn"""

    def after(self, found: Found) -> Promises:
        """The promises as they are once a log has been recovered like this."""
        return replace(self, kept=found.records, kept_end_lsn=found.recovery.end_lsn, fresh=set())

    def and_then(self, notes: Iterable[dict[str, Any]]) -> Promises:
        """These and what was noted since."""
        return replace(self)._add(notes)

    def _add(self, notes: Iterable[dict[str, Any]]) -> Promises:
        self.durable = durable = dict(self.durable)
        for note in notes:
            kind = note["kind"]
            if kind == "made":
                self.made = True
            elif kind == "writer":
                self.writers = self.writers | {note["writer"]}
                self.fresh = self.fresh | {note["writer"]}
            elif kind == "durable":
                durable[note["lsn"]] = note["writer"], note["sequence"]
            elif kind == "trim":
                self.trim_lsn = max(self.trim_lsn, note["lsn"])
            elif kind == "place":
                self.place_begun_lsn = note["lsn"]
                if not note["begun"]:
                    self.place_lsn = note["lsn"]
        return self


@dataclass
class Found:
    """A log that was recovered and kept its promises."""

    recovery: Recovery
    records: list[Record]


def check(path: Path, promises: Promises, boot_id: bytes) -> Found:
    """Recover the log at `path` on a machine with this boot id; Violation unless all is kept."""
    try:
        return _check(path, promises, boot_id)
    except Violation:
        raise
    except Exception as error:  # of the log, or of the reader that shares nothing with it
        raise Violation(f"{type(error).__name__}: {error}") from error


def _check(path: Path, promises: Promises, boot_id: bytes) -> Found:
    if not promises.made and not directory.exists(str(path)):
        where = directory.create(str(path), Geometry(SEGMENT_BYTES, SEGMENT_BYTES), 0o600)
    else:
        where = directory.load(str(path))
    reader = PyLog(path)
    expected, damage = None, None
    try:
        expected = reader.kept(RESTARTED) if reader.segments() else None
    except BadFrame as error:
        damage = error
    try:
        found = recovery.recover(where, boot_id)
    except CorruptionError as error:
        raise RefusedError(f"CorruptionError: {error}") from error
    if damage is not None:
        raise Violation(f"recovered to {found.end_lsn}, and another reader finds damage {damage}")
    if expected is None:
        if found.case is not Case.EMPTY:
            raise Violation(f"recovered as {found.case.value} without a segment")
    elif (found.end_lsn, found.dropped_bytes) != (expected.end_lsn, max(0, expected.dropped_bytes)):
        raise Violation(
            f"reported end {found.end_lsn} and {found.dropped_bytes} dropped bytes;"
            f" another reader finds {expected.end_lsn} and {expected.dropped_bytes}"
        )
    if bool(found.dropped_bytes) != bool(found.reason):
        raise Violation(f"{found.dropped_bytes} bytes dropped, and the reason is {found.reason!r}")
    records = _read(reader, found)
    _check_again(where, found, boot_id)
    _check_cursor(where, path, promises)
    _compare(promises, found, records)
    return Found(found, records)


def _read(reader: PyLog, found: Recovery) -> list[Record]:
    """Every record, whole; each writer's in its order without a gap."""
    records: list[Record] = []
    following: dict[int, int] = {}
    for frame in reader.records(found.trimmed_lsn, found.end_lsn):
        writer, sequence = whose(frame.payload)
        if writer != frame.tag:
            raise Violation(f"LSN {frame.lsn}: writer {writer} appended with tag {frame.tag}")
        if following.get(writer, sequence if found.trimmed_lsn else 0) != sequence:
            raise Violation(
                f"LSN {frame.lsn}: writer {writer}'s record {sequence}, not {following.get(writer, 0)}"
            )
        following[writer] = sequence + 1
        records.append((frame.lsn, writer, sequence))
    return records


def _compare(promises: Promises, found: Recovery, records: list[Record]) -> None:
    if found.trimmed_lsn > promises.trim_lsn:
        raise Violation(f"trimmed up to {found.trimmed_lsn}, and only {promises.trim_lsn} was asked for")
    strangers = {writer for _, writer, _ in records} - promises.writers
    if strangers:
        raise Violation(f"records of writers {sorted(strangers)}, who had appended nothing")
    if promises.kept is not None:
        old = [record for record in records if record[0] < promises.kept_end_lsn]
        if old != [record for record in promises.kept if record[0] >= found.trimmed_lsn]:
            raise Violation("what an earlier recovery had kept is not the same any more")
        if found.end_lsn < promises.kept_end_lsn:
            raise Violation(f"goes on at {found.end_lsn}, an earlier recovery at {promises.kept_end_lsn}")
        back = [record for record in records[len(old) :] if record[1] not in promises.fresh]
        if back or (not promises.fresh and found.end_lsn > promises.kept_end_lsn):
            raise Violation(
                f"dropped at {promises.kept_end_lsn}, and back: {back[:3]}, up to {found.end_lsn}"
            )

    there = {lsn: (writer, sequence) for lsn, writer, sequence in records}
    for lsn, who in promises.durable.items():
        if lsn >= found.trimmed_lsn and there.get(lsn) != who:
            said = f"{found.case.value}, goes on at {found.end_lsn}, {found.reason or 'no reason'}"
            kind = LostError if lsn >= found.end_lsn and found.dropped_bytes else Violation
            raise kind(f"the record {who} at LSN {lsn} was promised and is lost ({said})")


def _check_again(where: directory.Directory, found: Recovery, boot_id: bytes) -> None:
    """A recovery after this one, on the same machine or restarted again, finds nothing to do."""
    for boot in (boot_id, bytes(byte ^ 0xFF for byte in boot_id)):
        again = recovery.inspect(where, boot)
        if (again.end_lsn, again.dropped_bytes, again.holes) != (found.end_lsn, 0, ()):
            raise Violation(f"recovered to {found.end_lsn}, and then found as {again}")


def _check_cursor(where: directory.Directory, path: Path, promises: Promises) -> None:
    file = path / "cursors" / CURSOR
    if not file.exists():
        if promises.place_lsn:
            raise Violation(f"the cursor at {promises.place_lsn} is gone")
        return
    try:
        cursor = CursorFile(where, CURSOR, 0o600, begin=lambda: 0)
    except FormatError as error:
        raise (Violation if promises.place_lsn else RefusedError)(f"FormatError: {error}") from error
    cursor.close()
    low, high = promises.place_lsn, promises.place_begun_lsn
    if not low <= cursor.lsn <= high:
        raise Violation(f"the cursor is at {cursor.lsn}, and was moved from {low} to {high}")
